"""Applying a policy to a batch: images, and whatever goes where the image goes, each sample by its own draw.

A batch is a dict. Maps (B, H, W) of ids and weights (B, K, H, W) are mirrored, warped and pasted with the
image, vectors pass through. Geometry is composed into one resampling; colour follows in the order drawn. What
is drawn is a pure function of (seed, position), except CutMix's partner: the image before it in the batch.
"""

import torch
import torch.nn.functional as F

from datasets.operations import COLOUR, GEOMETRY, box, coarse_noise
from utils import rng
from utils.metrics import IGNORE_INDEX


def sample_operations(policy, seed, positions):
    """What each sample gets: flip (B,) bool, op (B, N) index into policy["ops"] or -1, m (B, N)."""
    n = policy["num_ops"]
    ops = policy["ops"]
    u = rng.uniform(seed, positions, 1 + 4 * n, stream=1)
    flip, u = u[:, 0] < policy["flip"], u[:, 1:].reshape(len(u), n, 4)
    if not ops:
        return (
            flip,
            torch.empty(len(positions), 0, dtype=torch.long),
            torch.empty(len(positions), 0),
        )
    weights = torch.tensor([op["weight"] for op in ops])
    edges = policy["p_identity"] + (1 - policy["p_identity"]) * weights.cumsum(0) / weights.sum()
    op = torch.bucketize(u[..., 0].contiguous(), edges, right=True).clamp_max(len(ops) - 1)
    low, high = policy["levels"]
    strength = (low + (u[..., 1] * (high - low + 1)).floor()) / 30 * policy["scale"]
    negative, positive = (torch.tensor([o[k] for o in ops])[op] for k in ("m_neg", "m_pos"))
    minus = (u[..., 2] < 0.5) & (negative > 0) | (positive == 0)
    m = torch.where(minus, -negative, positive) * strength
    return flip, op.masked_fill(u[..., 0] < policy["p_identity"], -1), m


def augment(batch, policy, seed, positions, flip_pairs):
    """A batch as the policy changes it.

    batch: `image` (B, 3, H, W) uint8, and more by name. positions: (B,) int64 on the CPU, see
    `batches.positions`. flip_pairs: {key: [(left, right)]}, the ids or channels that a flip swaps.
    Returns a new dict: `image` float in [0, 1]; in maps 255, in weights 0 where a pixel came from outside the
    photo.
    """
    images = batch["image"].float() / 255
    device = batch["image"].device
    height, width = images.shape[-2:]
    maps = {k: v.clone() for k, v in batch.items() if k != "image" and torch.is_tensor(v) and v.dim() > 2}
    names = [op["name"] for op in policy["ops"]]
    flip, op, m = sample_operations(policy, seed, positions)
    rows = flip.nonzero()[:, 0].to(device)
    images[rows] = images[rows].flip(-1)
    for key, values in maps.items():
        values[rows] = mirror(values[rows], flip_pairs.get(key, ()))

    theta = torch.eye(3).repeat(len(images), 1, 1)
    for slot in range(op.shape[1]):
        for k, name in enumerate(names):
            if name in GEOMETRY and (rows := (op[:, slot] == k).nonzero()[:, 0]).numel():
                step = torch.eye(3).repeat(len(rows), 1, 1)
                step[:, :2] = GEOMETRY[name](m[rows, slot])
                theta[rows] = theta[rows] @ step
    rows = (theta != torch.eye(3)).any(2).any(1).nonzero()[:, 0]
    if rows.numel():
        theta, rows = theta[rows, :2].to(device), rows.to(device)
        grid = F.affine_grid(theta, [len(rows), 3, height, width], align_corners=False)
        images[rows] = warp_image(images[rows], grid)
        for values in maps.values():
            values[rows] = warp_map(values[rows], grid)

    for slot in range(op.shape[1]):
        for k, name in enumerate(names):
            chosen = (op[:, slot] == k).nonzero()[:, 0]
            if name in GEOMETRY or not chosen.numel():
                continue
            rows = chosen.to(device)
            strength = m[chosen, slot].to(device).view(-1, 1, 1, 1)
            if name in COLOUR:
                images[rows] = COLOUR[name](images[rows], strength)
                continue
            if name == "noise":
                lanes = images[0].numel()
                noise = rng.normal(seed, positions[chosen].to(device), lanes, stream=2 + 2 * slot)
                images[rows] = (images[rows] + strength * noise.view_as(images[rows])).clamp(0, 1)
                continue
            u = rng.uniform(seed, positions[chosen], 2 + 192, stream=3 + 2 * slot).to(device)
            inside = box(u[:, :2], strength.flatten(), height, width)
            erase = name == "erase"  # else cutmix: from the image before
            source = coarse_noise(u[:, 2:], height, width) if erase else images.roll(1, 0)[rows]
            images[rows] = paste(images[rows], source, inside)
            for values in maps.values():
                source = torch.full_like(values[rows], blank(values)) if erase else values.roll(1, 0)[rows]
                values[rows] = paste(values[rows], source, inside)
    return {**batch, "image": images.clamp(0, 1), **maps}


def blank(values):
    """What a pixel of a map (B, H, W) or of weights (B, K, H, W) holds where nothing is known."""
    return IGNORE_INDEX if values.dim() == 3 else 0


def mirror(values, pairs):
    """A map (B, H, W) mirrored, its left and right ids swapped by one table; or weights (B, K, H, W)."""
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
