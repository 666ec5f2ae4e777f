"""Applying a policy to a batch: images, and whatever goes where the image goes, each sample by its own draw.

A batch is a dict. Maps (B, H, W) of ids and weights (B, K, H, W) are mirrored, warped and pasted with the
image; CutMix keeps ids of `instance` apart from those that it pastes. Shares of classes (B, K), in float, are
mixed where CutMix and MixUp mix images; other vectors pass through. Geometry is composed into one resampling;
colour and mixing follow in order. What is drawn is a pure function of (seed, position), except the other
image of CutMix and MixUp: the one before it in the batch.
"""

import torch
import torch.nn.functional as F

from datasets.operations import COLOUR, GEOMETRY, box, coarse_noise, crop
from datasets.policies import operations_of
from utils import rng
from utils.metrics import IGNORE_INDEX


def sample_operations(policy, seed, positions):
    """What each sample gets: flip (B,) bool; op (B, A + N), an index into `operations_of(policy)` or -1; and
    m (B, A + N). First the A of `always`, then those that are drawn."""
    n = policy["num_ops"]
    ops = policy["ops"]
    u = rng.uniform(seed, positions, 1 + 4 * n, stream=1)
    flip, u = u[:, 0] < policy["flip"], u[:, 1:].reshape(len(u), n, 4)
    first, first_m = sample_always(policy, seed, positions)
    if not ops:
        return flip, first, first_m
    weights = torch.tensor([op["weight"] for op in ops])
    edges = policy["p_identity"] + (1 - policy["p_identity"]) * weights.cumsum(0) / weights.sum()
    op = torch.bucketize(u[..., 0].contiguous(), edges, right=True).clamp_max(len(ops) - 1)
    low, high = policy["levels"]
    strength = (low + (u[..., 1] * (high - low + 1)).floor()) / 30 * policy["scale"]
    m = bounds(ops, u[..., 2], op) * strength
    op = op.masked_fill(u[..., 0] < policy["p_identity"], -1)
    return flip, torch.cat([first, op], 1), torch.cat([first_m, m], 1)


def sample_always(policy, seed, positions):
    """`op` and `m` (B, A) of what is done to every image with probability p."""
    ops = policy.get("always", [])
    if not ops:
        return torch.empty(len(positions), 0, dtype=torch.long), torch.empty(len(positions), 0)
    u = rng.uniform(seed, positions, 3 * len(ops), stream=1001).reshape(len(positions), len(ops), 3)
    op = torch.arange(len(ops)).expand(len(positions), -1)
    m = bounds(ops, u[..., 2], op) * u[..., 1]
    for k in [k for k in range(len(ops)) if ops[k]["name"] == "crop"]:
        m[:, k] = ops[k]["m_pos"]  # within which it draws where it goes
    left_out = u[..., 0] >= torch.tensor([op["p"] for op in ops])
    return (op + len(policy["ops"])).masked_fill(left_out, -1), m


def bounds(ops, u, op):
    """The bound (B, N) of each operation, to one side: op (B, N) index into ops, u (B, N) in [0, 1)."""
    negative, positive = (torch.tensor([o[k] for o in ops])[op] for k in ("m_neg", "m_pos"))
    minus = (u < 0.5) & (negative > 0) | (positive == 0)
    return torch.where(minus, -negative, positive)


def augment(batch, policy, seed, positions, flip_pairs):
    """A batch as the policy changes it.

    batch: `image` (B, 3, H, W) uint8, and more by name. positions: (B,) int64 on the CPU, see
    `batches.positions`. flip_pairs: {key: [(left, right)]}, the ids or channels that a flip swaps.
    Returns a new dict: `image` float in [0, 1]; in maps 255, in weights 0 where a pixel came from outside the
    photo. Maps of ids cannot be mixed: with them `load_policy` refuses MixUp.
    """
    images = batch["image"].float().div_(255)
    device = batch["image"].device
    height, width = images.shape[-2:]
    tensors = {k: v for k, v in batch.items() if k != "image" and torch.is_tensor(v)}
    maps = {k: v.clone() for k, v in tensors.items() if v.dim() > 2}
    shares = {k: v.clone() for k, v in tensors.items() if v.dim() == 2 and v.is_floating_point()}
    names = [op["name"] for op in operations_of(policy)]
    flip, op, m = sample_operations(policy, seed, positions)
    rows = flip.nonzero()[:, 0].to(device)
    images[rows] = images[rows].flip(-1)
    for key, values in maps.items():
        values[rows] = mirror(values[rows], flip_pairs.get(key, ()))

    done = []  # in order: (name, samples, magnitudes, first stream of its random numbers)
    num_always = len(policy.get("always", []))
    for column in range(op.shape[1]):
        stream = 2 + 2 * (column - num_always if column >= num_always else 1000 + column)
        for k, name in enumerate(names):
            if (rows := (op[:, column] == k).nonzero()[:, 0]).numel():
                done.append((name, rows, m[rows, column], stream))

    theta = torch.eye(3).repeat(len(images), 1, 1)
    for name, rows, strength, stream in done:
        if name in GEOMETRY or name == "crop":
            step = torch.eye(3).repeat(len(rows), 1, 1)
            if name == "crop":
                u = rng.uniform(seed, positions[rows], 2, stream + 1)
                step[:, :2] = crop(u, strength, height, width)
            else:
                step[:, :2] = GEOMETRY[name](strength)
            theta[rows] = theta[rows] @ step
    rows = (theta != torch.eye(3)).any(2).any(1).nonzero()[:, 0]
    if rows.numel():
        theta, rows = theta[rows, :2].to(device), rows.to(device)
        grid = F.affine_grid(theta, [len(rows), 3, height, width], align_corners=False)
        images[rows] = warp_image(images.index_select(0, rows), grid)
        for values in maps.values():
            values[rows] = warp_map(values[rows], grid)

    for name, chosen, strength, stream in done:
        rows, strength = chosen.to(device), strength.to(device)
        if name in COLOUR:
            images[rows] = COLOUR[name](images.index_select(0, rows), strength.view(-1, 1, 1, 1))
        elif name == "noise":
            lanes = images[0].numel()
            noise = rng.normal(seed, positions[chosen].to(device), lanes, stream)
            noise = strength.view(-1, 1, 1, 1) * noise.view_as(images[rows])
            images[rows] = (images[rows] + noise).clamp(0, 1)
        elif name == "mixup":
            for values in (images, *maps.values(), *shares.values()):
                blend(values, rows, strength)
        elif name in ("erase", "cutmix"):
            erase = name == "erase"
            u = rng.uniform(seed, positions[chosen], 2 + 192 * erase, stream + 1).to(device)
            inside = box(u[:, :2], strength, height, width)
            source = coarse_noise(u[:, 2:], height, width) if erase else images[rows - 1]
            images[rows] = paste(images[rows], source, inside)
            for key, values in maps.items():
                source = torch.full_like(values[rows], blank(values)) if erase else values[rows - 1]
                if key == "instance" and not erase:
                    source = apart(source, values[rows])
                values[rows] = paste(values[rows], source, inside)
            if not erase:
                for values in shares.values():
                    blend(values, rows, inside.float().mean((1, 2)))
    return {**batch, "image": images.clamp_(0, 1), **maps, **shares}


def blend(values, rows, share):
    """In place: `rows` of values (B, ...), float, take a share (len(rows),) of the image before them."""
    share = share.to(values.dtype).view(-1, *[1] * (values.dim() - 1))
    values[rows] = torch.lerp(values[rows], values[rows - 1], share)


def blank(values):
    """What a pixel of a map (B, H, W) or of weights (B, K, H, W) holds where nothing is known."""
    return IGNORE_INDEX if values.dim() == 3 else 0


def apart(source, target):
    """Ids of instances (B, H, W) uint8, raised to above those of `target` in the same image: 0 and 255 stay,
    and 255 is what goes beyond 254."""
    known = lambda ids: ids.masked_fill(ids == IGNORE_INDEX, 0).int()
    ids = known(source)
    raised = ids + known(target).flatten(1).amax(1).view(-1, 1, 1)
    raised = torch.where(raised < IGNORE_INDEX, raised, IGNORE_INDEX).to(source.dtype)
    return torch.where(ids > 0, raised, source)


def mirror(values, pairs):
    """A map (B, H, W) mirrored, its left and right ids swapped by one table; or weights (B, K, H, W). Shares
    of classes (B, K) are those of the mirror image, too."""
    if values.dim() == 2:
        return values
    if values.dim() == 4:
        order = list(range(values.shape[1]))
        for left, right in pairs:
            order[left], order[right] = right, left
        return values.flip(-1)[:, order]
    if not pairs:
        return values.flip(-1)
    table = torch.arange(256, dtype=values.dtype, device=values.device)
    for left, right in pairs:
        table[left], table[right] = right, left
    return table[values.flip(-1).long()]


def warp_image(images, grid):
    """Bilinear. What comes from outside the photo is its mirror image, so that no black border gives the
    operation away."""
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)


def warp_map(values, grid):
    """Maps (B, H, W): nearest, and 255 from outside, where left and right would be wrong. Weights
    (B, K, H, W): bilinear, and 0 from outside."""
    if values.dim() == 4:
        return F.grid_sample(values, grid, "bilinear", "zeros", align_corners=False)
    shifted = values[:, None].float() - IGNORE_INDEX  # zero padding then means IGNORE_INDEX
    shifted = F.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)
    return (shifted[:, 0] + IGNORE_INDEX).to(values.dtype)


def paste(target, source, inside):
    """target (B, H, W) or (B, C, H, W) with the pixels of `source` where `inside` (B, H, W) holds."""
    return torch.where(inside if target.dim() == 3 else inside[:, None], source, target)
