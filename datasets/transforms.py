"""Batched augmentation of images and masks together, each sample by its own operation and strength.

A policy is plain data, so a baseline, a search result and a `policy.json` are the same thing:

    {"flip": 0.5,            # probability of a horizontal flip, which swaps left and right classes
     "num_ops": 1,           # operations drawn for each sample, with replacement
     "p_identity": 0.07,     # probability that a drawn operation is none
     "levels": [0, 30],      # strength is level / 30 of the bound, level uniform between these two
     "scale": 1.0,           # times every bound
     "ops": [{"name": "rotate", "m_neg": 135.0, "m_pos": 135.0, "weight": 1.0}, ...],
     # and, if wanted:
     "scale_max": 1.0,       # how far train_finetune.py --control may raise the scale (default: scale)
     "schedule": [[0, 0.2], [200, 0.5]],  # from this step on, this scale
     "allocation": {"ft": [ids], "reward": [ids], "quarantine": [ids]}}  # who trains on which photo

Geometry is composed into one resampling; colour follows in the order drawn. What is drawn is a pure
function of (seed, position), except CutMix's partner, the previous image of the process's batch.
"""

import json
import math

import torch
import torch.nn.functional as F

from datasets.faces import IGNORE
from utils import rng
from utils.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as torchvision's weights expect


def normalise(images):
    """(B, 3, H, W) uint8, or float in [0, 1] -> float, zero mean and unit variance on ImageNet."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (MEAN, STD))
    return (images - mean) / std


def denormalise(images):
    """The inverse of `normalise`: (B, 3, H, W) float in [0, 1]."""
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (MEAN, STD))
    return images * std + mean


# ---- geometry: (B,) signed magnitudes -> (B, 2, 3) matrices from output to input, in [-1, 1]


def _matrix(a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0, like=None):
    cells = [x if torch.is_tensor(x) else torch.full_like(like, x) for x in (a, b, c, d, e, f)]
    return torch.stack(cells, 1).view(-1, 2, 3)


def _rotate(m):
    r = m * math.pi / 180
    return _matrix(r.cos(), r.sin(), 0.0, -r.sin(), r.cos(), like=m)


GEOMETRY = {
    "rotate": _rotate,  # degrees, clockwise
    "shear_x": lambda m: _matrix(b=-m, like=m),  # tangent
    "shear_y": lambda m: _matrix(d=-m, like=m),
    "translate_x": lambda m: _matrix(c=-2 * m, like=m),  # share of the width
    "translate_y": lambda m: _matrix(f=-2 * m, like=m),
    "zoom": lambda m: _matrix(a=2**-m, e=2**-m, like=m),  # octaves: 1 doubles the face
    "stretch": lambda m: _matrix(a=2**-m, like=m),  # octaves of the width alone
}


def warp(images, labels, theta):
    """One resampling of both: bilinear for the image, nearest for the mask. What comes from outside
    the photo is its mirror image, so that no black border gives the operation away, and is not
    labelled: there, left and right would be wrong. labels may be weights (B, K, H, W): bilinear, and
    0 there."""
    size = list(images.shape)
    grid = F.affine_grid(theta, size, align_corners=False)
    images = F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    if labels.dim() == 4:
        return images, F.grid_sample(labels, grid, "bilinear", "zeros", align_corners=False)
    shifted = labels[:, None].float() - IGNORE  # zero padding then means IGNORE
    shifted = F.grid_sample(shifted, grid, "nearest", "zeros", align_corners=False)
    return images, (shifted[:, 0] + IGNORE).to(labels.dtype)


# ---- colour: (B, 3, H, W) float in [0, 1] and (B, 1, 1, 1) signed magnitudes -> the same


def _blend(images, other, m):
    return (other + (images - other) * (1 + m)).clamp(0, 1)


def _grey(images):
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _contrast(images, m):
    return _blend(images, _grey(images).mean((2, 3), keepdim=True), m)


def _sharpness(images, m):
    kernel = torch.tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]], device=images.device) / 13
    smooth = images.clone()  # the one-pixel border stays as it is
    smooth[..., 1:-1, 1:-1] = F.conv2d(images, kernel.expand(3, 1, 3, 3), groups=3)
    return _blend(images, smooth, m)


def _hue(images, m):
    """Turn the hue by m of a full circle; HSV after Smith, "Color gamut transform pairs", 1978."""
    value, top = images.max(1, keepdim=True)
    chroma = value - images.amin(1, keepdim=True)
    r, g, b = images.split(1, 1)
    safe = chroma.clamp_min(1e-12)
    sector = torch.where(
        top == 0, (g - b) / safe, torch.where(top == 1, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )
    n = torch.tensor([5.0, 3, 1], device=images.device).view(3, 1, 1)
    k = (n + sector + 6 * m) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(images, m):
    """Gaussian of m per cent of the side as standard deviation, borders mirrored."""
    batch, channels, height, width = images.shape
    sigma = (m * 0.01 * max(height, width)).clamp_min(1e-3)
    radius = min(int(math.ceil(3 * float(sigma.max()))), height - 1, width - 1)
    x = torch.arange(-radius, radius + 1, device=images.device).float()
    near = x.abs() <= (3 * sigma.view(-1, 1)).ceil()  # whatever the other samples' widths are
    kernel = torch.exp(-0.5 * (x / sigma.view(-1, 1)) ** 2) * near
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    flat = images.reshape(1, batch * channels, height, width)
    flat = F.pad(flat, (radius, radius, radius, radius), mode="reflect")
    flat = F.conv2d(flat, kernel, groups=batch * channels)
    flat = F.conv2d(flat, kernel.transpose(2, 3), groups=batch * channels)
    return flat.view_as(images)


def _posterise(images, m):
    bits = m.round().int()
    return (((images * 255).round().int() >> bits) << bits).float() / 255


def _equalise(images, m):
    from torchvision.transforms.v2 import functional as TF  # here: it takes a second to import

    return TF.equalize((images * 255).round().to(torch.uint8)).float() / 255


def _autocontrast(images, m):
    from torchvision.transforms.v2 import functional as TF

    return TF.autocontrast(images)


COLOUR = {
    "brightness": lambda images, m: (images * (1 + m)).clamp(0, 1),
    "contrast": _contrast,
    "saturation": lambda images, m: _blend(images, _grey(images), m),
    "sharpness": _sharpness,
    "hue": _hue,
    "gamma": lambda images, m: images.clamp_min(1e-6) ** (2**m),  # octaves of the exponent
    "blur": _blur,
    "posterise": _posterise,  # bits dropped
    "solarise": lambda images, m: torch.where(images >= 1 - m, 1 - images, images),
    "autocontrast": _autocontrast,
    "equalise": _equalise,
}


# ---- regularisers: they leave the data's distribution by construction; m is the side of the box


def _box(u, m, height, width):
    """(B, H, W) bool: a box of m x m of the sides, its centre anywhere; u: (B, 2) in [0, 1)."""
    y = (torch.arange(height, device=u.device) + 0.5) / height
    x = (torch.arange(width, device=u.device) + 0.5) / width
    rows = (y - u[:, :1]).abs() < m.view(-1, 1) / 2
    columns = (x - u[:, 1:2]).abs() < m.view(-1, 1) / 2
    return rows[:, :, None] & columns[:, None]


def _like(box, labels):
    return box if labels.dim() == 3 else box[:, None]


def _erase(images, labels, m, u, donors):
    """Noise in a box, whose pixels are no longer labelled (Zhong et al., 1708.04896)."""
    box = _box(u, m, *labels.shape[-2:])
    noise = u[:, 2:].view(-1, 3, 8, 8).repeat_interleave(labels.shape[-2] // 8 + 1, 2)
    noise = noise.repeat_interleave(labels.shape[-1] // 8 + 1, 3)
    noise = noise[..., : labels.shape[-2], : labels.shape[-1]]
    blank = IGNORE if labels.dim() == 3 else 0
    return torch.where(box[:, None], noise, images), labels.masked_fill(_like(box, labels), blank)


def _cutmix(images, labels, m, u, donors):
    """A box of another image, with its mask (Yun et al., 1905.04899; for masks 1906.01916)."""
    box = _box(u, m, *labels.shape[-2:])
    return torch.where(box[:, None], donors[0], images), torch.where(_like(box, labels), donors[1], labels)


REGULARISERS = {"erase": _erase, "cutmix": _cutmix}
OPERATIONS = sorted({*GEOMETRY, *COLOUR, *REGULARISERS, "noise"})

# ---- policies


def _ops(**bounds):
    """One-sided where an operation has one direction; two-sided (m_neg = m_pos) elsewhere."""
    one = {"posterise", "solarise", "autocontrast", "equalise", "blur", "noise", *REGULARISERS}
    return [
        {"name": name, "m_neg": 0.0 if name in one else float(m), "m_pos": float(m), "weight": 1.0}
        for name, m in bounds.items()
    ]


FLIP = {"flip": 0.5, "num_ops": 0, "p_identity": 0.0, "levels": [0, 30], "scale": 1.0, "ops": []}
POLICIES = {
    "none": {**FLIP, "flip": 0.0},
    "flip": FLIP,
    # Cubuk et al., RandAugment, 1909.13719: N = 2, M = 9; bounds as torchvision's table
    "randaugment": {
        **FLIP, "num_ops": 2, "p_identity": 1 / 14, "levels": [9, 9],
        "ops": _ops(
            shear_x=0.3, shear_y=0.3, translate_x=150 / 331, translate_y=150 / 331, rotate=30,
            brightness=0.9, saturation=0.9, contrast=0.9, sharpness=0.9, posterise=4, solarise=1,
            autocontrast=1, equalise=1,
        ),
    },
    # Mueller and Hutter, TrivialAugment, 2103.10158, table "wide"; 32 pixels taken at 128
    "trivial": {
        **FLIP, "num_ops": 1, "p_identity": 1 / 14,
        "ops": _ops(
            shear_x=0.99, shear_y=0.99, translate_x=0.25, translate_y=0.25, rotate=135,
            brightness=0.99, saturation=0.99, contrast=0.99, sharpness=0.99, posterise=6,
            solarise=1, autocontrast=1, equalise=1,
        ),
    },
}  # fmt: skip


def with_cutmix(policy):
    """A policy, and in half of the images a box of half a side from another one: a regulariser."""
    drawn = (1 - 0.5 ** (1 / policy["num_ops"])) / (1 - policy["p_identity"])
    weight = sum(op["weight"] for op in policy["ops"]) * drawn / (1 - drawn)
    bound = 0.5 * 30 / policy["levels"][1] / policy["scale"]
    box = {"name": "cutmix", "m_neg": 0.0, "m_pos": bound, "weight": weight}
    return {**policy, "ops": [*policy["ops"], box]}


POLICIES["cutmix"] = with_cutmix(POLICIES["randaugment"])

# Every operation but the regularisers, as far as it goes: where ks_test.py --ops begins to search
WIDE = _ops(
    shear_x=0.99, shear_y=0.99, translate_x=0.5, translate_y=0.5, rotate=135, zoom=1, stretch=1,
    brightness=0.99, saturation=0.99, contrast=0.99, sharpness=0.99, hue=0.5, gamma=2, blur=6,
    noise=0.3, posterise=7, solarise=1, autocontrast=1, equalise=1,
)  # fmt: skip


def load_policy(name):
    """The policy called `name`, or read from a JSON file of the form above."""
    if name in POLICIES:
        return POLICIES[name]
    try:
        with open(name) as file:
            policy = {**FLIP, "num_ops": 1, **json.load(file)}
        ops = [{"weight": 1.0, "m_neg": 0.0, **op} for op in policy["ops"]]
        unknown = [op["name"] for op in ops if op["name"] not in OPERATIONS or "m_pos" not in op]
    except OSError:
        raise UserError(f"--augment {name}: no such file, nor one of {', '.join(POLICIES)}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"--augment {name}: not JSON of a policy ({error}); see transforms.py") from None
    if unknown:
        raise UserError(
            f"--augment {name}: operations {unknown} are unknown or without m_pos; "
            f"known: {', '.join(OPERATIONS)}"
        )
    if fault := _fault(policy):
        raise UserError(f"--augment {name}: {fault}")
    return {**policy, "ops": ops}


def _fault(policy):
    """What is wrong with a policy's scale, schedule and allocation, or None."""
    good = lambda x: type(x) in (int, float) and 0 <= x < math.inf
    scale, most = policy["scale"], policy.get("scale_max", policy["scale"])
    if not (good(scale) and good(most) and scale <= most):
        return f"scale {scale}, scale_max {most}: need numbers, 0 <= scale <= scale_max"
    if (schedule := policy.get("schedule")) is not None:
        pairs = isinstance(schedule, list) and all(isinstance(e, list) and len(e) == 2 for e in schedule)
        steps = [e[0] for e in schedule] if pairs else []
        if not (steps and steps[0] == 0 and all(type(s) is int and good(x) for s, x in schedule)):
            return "schedule: need [[step, scale], ...], whole steps from 0 on, scales of 0 or more"
        if steps != sorted(set(steps)):
            return f"schedule: the steps {steps} do not rise"
        if "scale_max" in policy and max(x for _, x in schedule) > most:
            return f"schedule: rises above scale_max {most}"
    if (allocation := policy.get("allocation")) is not None:
        known = {"mode", "ft", "reward", "quarantine"}
        if not isinstance(allocation, dict) or not allocation.keys() <= known:
            return 'allocation: need {"ft": [ids], "reward": [ids], "quarantine": [ids]}'
        for key in ("ft", "reward", "quarantine"):
            ids = allocation.get(key, [])
            if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
                return f"allocation: {key} is no list of sample ids"


def real_like(policy):
    """The policy without regularisers: what they make is no photo, so no reward should be earned on it."""
    return {**policy, "ops": [op for op in policy["ops"] if op["name"] not in REGULARISERS]}


def at_step(policy, step):
    """The policy with the scale that holds at `step`: of the last entry of its schedule at or below it."""
    held = [scale for first, scale in policy.get("schedule") or [] if first <= step]
    return {**policy, "scale": held[-1]} if held else policy


def draw(policy, seed, positions):
    """What each sample gets: flip (B,) bool, op (B, N) index into policy["ops"] or -1, m (B, N)."""
    n, ops = policy["num_ops"], policy["ops"]
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


def augment(images, labels, policy, seed, positions, flip_pairs):
    """images (B, 3, H, W) uint8, labels (B, H, W) uint8, positions (B,) on the CPU.

    Returns float images in [0, 1] and uint8 labels, 255 where a pixel came from outside the photo.
    In place of labels, weights (B, K, H, W) of each class go the same way, and are 0 there.
    """
    images, device = images.float() / 255, images.device
    names = [op["name"] for op in policy["ops"]]
    flip, op, m = draw(policy, seed, positions)
    rows = flip.nonzero()[:, 0].to(device)
    images[rows], labels = images[rows].flip(-1), labels.clone()
    labels[rows] = flip_labels(labels[rows], flip_pairs)

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
        images[rows], labels[rows] = warp(images[rows], labels[rows], theta)

    for slot in range(op.shape[1]):
        for k, name in enumerate(names):
            chosen = (op[:, slot] == k).nonzero()[:, 0]
            if name in GEOMETRY or not chosen.numel():
                continue
            rows, strength = chosen.to(device), m[chosen, slot].to(device).view(-1, 1, 1, 1)
            if name in COLOUR:
                images[rows] = COLOUR[name](images[rows], strength)
            elif name == "noise":
                lanes = images[0].numel()
                noise = rng.normal(seed, positions[chosen].to(device), lanes, stream=2 + 2 * slot)
                images[rows] = (images[rows] + strength * noise.view_as(images[rows])).clamp(0, 1)
            else:
                u = rng.uniform(seed, positions[chosen], 194, stream=3 + 2 * slot).to(device)
                donors = images.roll(1, 0)[rows], labels.roll(1, 0)[rows]
                images[rows], labels[rows] = REGULARISERS[name](
                    images[rows], labels[rows], strength, u, donors
                )
    return images.clamp(0, 1), labels


def flip_labels(labels, flip_pairs):
    """(B, H, W) mirrored, left and right classes swapped by one table; or weights (B, K, H, W)."""
    if labels.dim() == 4:
        order = list(range(labels.shape[1]))
        for left, right in flip_pairs:
            order[left], order[right] = right, left
        return labels.flip(-1)[:, order]
    table = torch.arange(256, dtype=labels.dtype, device=labels.device)
    for left, right in flip_pairs:
        table[left], table[right] = right, left
    return table[labels.flip(-1).long()]
