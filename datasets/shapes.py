"""Ten shapes in four styles, rendered on the spot: images with a class and a domain, nothing on disk.

An image is a function of (seed, index): its class is index % 10, its domain index // 10 % 4; place, size,
proportions, rotation, colours and background are drawn by `utils/rng.py`.
"""

import math

import torch

from datasets.faces import Sample
from utils.rng import uniform

CLASSES = "arrow circle crescent cross heart pentagon ring square star triangle".split()
DOMAINS = "flat noise outline texture".split()
SPLITS = {"train": 4000, "unlabelled": 1000, "val": 400, "test": 800}  # images in each
PIECE = 200  # images rendered at once


def samples(split):
    """`Sample`s of one split: `image` is the index."""
    return [Sample(f"{split}/{i}", i, (i % 10, i // 10 % 4), f"{split}/{i}") for i in range(SPLITS[split])]


def render(seed, indices, size):
    """(N, 3, size, size) uint8 of a list of indices."""
    pieces = torch.tensor(indices).split(PIECE)
    return torch.cat([_images(seed, piece, size) for piece in pieces])


def _images(seed, index, size):
    draw = uniform(seed, index, 24)[:, :, None, None]  # (B, 24, 1, 1), numbers that hold for a whole image
    between = lambda lane, low, high: low + (high - low) * draw[:, lane]
    grid = (torch.arange(size) + 0.5) * (2 / size) - 1
    v, u = grid[None, :, None], grid[None, None, :]  # -1 to 1, downwards and to the right
    scale = between(0, 0.55, 0.85)
    left, top = u - between(1, -1, 1) * (1 - scale), v - between(2, -1, 1) * (1 - scale)
    turn = between(3, -0.4, 0.4)
    stretch = between(4, 0.85, 1.18)
    x = (left * turn.cos() + top * turn.sin()) / scale * stretch
    y = (top * turn.cos() - left * turn.sin()) / scale / stretch
    distance = torch.empty(len(index), size, size)
    for i, name in enumerate(CLASSES):
        rows = index % 10 == i
        distance[rows] = FORMS[name](x[rows], y[rows])
    pixels = distance * scale * (size / 2)  # from the border, about; negative inside

    back = draw[:, 5:8]
    shade = draw[:, 8:9] * (u * between(9, -1, 1) + v * between(10, -1, 1))[:, None] / 2
    fore = (back + 0.3 + 0.4 * draw[:, 11:14]) % 1  # of another brightness in each channel
    grain = 2 * uniform(seed, index, size * size, stream=1).view(-1, 1, size, size) - 1
    stripes = [_stripes(u, v, between(lane, 0, math.pi), between(lane + 1, 8, 30)) for lane in (14, 16)]
    width = between(18, 0.02, 0.05) * size
    inside = (0.5 - pixels).clamp(0, 1)[:, None]
    edge = (0.5 + width / 2 - pixels.abs()).clamp(0, 1)[:, None]
    paper = 1 - 0.25 * back
    styles = {
        "flat": back + shade + (fore - back) * inside,
        "noise": 0.5 + (back - 0.5) * 0.6 + shade + (fore - back) * 0.5 * inside + 0.35 * grain,
        "outline": paper + (0.5 * fore - paper) * edge * (1 + 0.5 * grain),
        "texture": (back + stripes[0]) * (1 - inside) + (fore + stripes[1]) * inside,
    }
    style = torch.stack([styles[name] for name in DOMAINS])
    images = style[index // 10 % 4, torch.arange(len(index))]
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def _stripes(u, v, angle, rate):
    """(B, 1, S, S), lighter and darker by 0.2 in turn."""
    return 0.2 * torch.sin((u * angle.cos() + v * angle.sin()) * rate).sign()[:, None]


# ---- forms: how far points (x, y) are from the border, about; negative inside, the form reaches to about 1


def _arrow(x, y):
    head = torch.maximum(0.05 - x, (0.75 * (x - 0.95) + 0.9 * y.abs()) / math.hypot(0.75, 0.9))
    return torch.minimum(head, _box(x + 0.4, y, 0.55, 0.25))


def _box(x, y, a, b):
    return torch.maximum(x.abs() - a, y.abs() - b)


def _crescent(x, y):
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.8 - torch.hypot(x - 0.5, y))


def _heart(x, y):
    side = 0.68 / 2**0.5  # half of it
    square = _box((x + y) / 2**0.5, (x - y) / 2**0.5, side, side)
    return torch.minimum(square, torch.hypot(x.abs() - 0.34, y + 0.34) - side)


def _polygon(n, inner):
    """A regular one of n sides, whose border is `inner` from the middle."""
    angles = [2 * math.pi * k / n for k in range(n)]
    return lambda x, y: torch.stack([x * math.cos(a) + y * math.sin(a) for a in angles]).amax(0) - inner


def _star(x, y):
    """Five points at 1, five corners at 0.45: by its symmetry a tenth of it, which is a half-plane."""
    fold = (torch.atan2(y, x) % (0.4 * math.pi) - 0.2 * math.pi).abs()
    radius = torch.hypot(x, y)
    a, b = (
        0.45 * math.cos(0.2 * math.pi),
        0.45 * math.sin(0.2 * math.pi),
    )  # the corner; the point is at (1, 0)
    return (b * (radius * fold.cos() - 1) + (1 - a) * radius * fold.sin()) / math.hypot(b, 1 - a)


FORMS = {
    "arrow": _arrow,
    "circle": lambda x, y: torch.hypot(x, y) - 0.85,
    "crescent": _crescent,
    "cross": lambda x, y: torch.minimum(_box(x, y, 0.9, 0.3), _box(x, y, 0.3, 0.9)),
    "heart": _heart,
    "pentagon": _polygon(5, 0.75),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.7).abs() - 0.22,
    "square": lambda x, y: _box(x, y, 0.75, 0.75),
    "star": _star,
    "triangle": _polygon(3, 0.5),
}
