"""The operations of augmentation, batched: each sample of a batch by its own signed magnitude.

Units of a magnitude stand beside each operation. Geometry gives matrices, so that several operations cost
one resampling; colour gives images; regularisers give a box and what is in it.
"""

import math

import torch
import torch.nn.functional as F

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


def crop(u, m, height, width):
    """(B, 2, 3) matrices that shift along x and y by up to m of the side, all shifts equally likely: a crop
    from the image padded by so much. By whole pixels, which blurs nothing. u: (B, 2) in [0, 1); m: (B,)."""
    sides = torch.tensor([width, height])
    most = (m[:, None] * sides).round()
    x, y = (2 * ((u * (2 * most + 1)).floor() - most) / sides).unbind(1)
    return _matrix(c=x, f=y, like=m)


# ---- colour: (B, 3, H, W) float in [0, 1] and (B, 1, 1, 1) signed magnitudes -> the same


def _blend(images, other, m):
    return (other + (images - other) * (1 + m)).clamp(0, 1)


def _grey(images):
    weights = torch.tensor([0.2989, 0.587, 0.114], device=images.device).view(3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _contrast(images, m):
    return _blend(images, _grey(images).mean((2, 3), keepdim=True), m)


def _sharpness(images, m):
    smooth = images.clone()  # the one-pixel border stays as it is
    three = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
    nine = three[..., :-2, :] + three[..., 1:-1, :] + three[..., 2:, :]
    smooth[..., 1:-1, 1:-1] = (nine + 4 * images[..., 1:-1, 1:-1]) / 13
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
    """Each channel by a table of its 256 levels that makes their cumulative histogram a line, as PIL does."""
    levels = (images * 255).round().long().flatten(2)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    below = counts.cumsum(2) - counts
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255  # pixels for each level of the result
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.gather(2, levels).view_as(images).float() / 255


def _autocontrast(images, m):
    """Each channel stretched to 0..1; one of a single value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    low, width = low.masked_fill(flat, 0), (high - low).masked_fill(flat, 1)
    return ((images - low) / width).clamp(0, 1)


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


# ---- regularisers: what they make is no photo of the kind that the data holds


def box(u, m, height, width):
    """(B, H, W) bool: a box of m x m of the sides, its centre anywhere. u: (B, 2) in [0, 1); m: (B,)."""
    y = (torch.arange(height, device=u.device) + 0.5) / height
    x = (torch.arange(width, device=u.device) + 0.5) / width
    rows = (y - u[:, :1]).abs() < m.view(-1, 1) / 2
    columns = (x - u[:, 1:2]).abs() < m.view(-1, 1) / 2
    return rows[:, :, None] & columns[:, None]


def coarse_noise(u, height, width):
    """u (B, 192) in [0, 1) -> (B, 3, H, W): 8 x 8 cells of any colour."""
    noise = u.view(-1, 3, 8, 8).repeat_interleave(height // 8 + 1, 2)
    return noise.repeat_interleave(width // 8 + 1, 3)[..., :height, :width]


# Zhong et al., 1708.04896; Yun et al., 1905.04899, for masks 1906.01916; Zhang et al., 1710.09412
REGULARISERS = ("erase", "cutmix", "mixup")
SWITCHES = ("autocontrast", "equalise")  # done or not, whatever the magnitude
UNITS = {  # of each operation's magnitude, for people
    **dict.fromkeys(("shear_x", "shear_y"), "tangent"),
    **dict.fromkeys(("translate_x", "translate_y", "crop", "cutmix", "erase"), "share of a side"),
    **dict.fromkeys(("zoom", "stretch", "gamma"), "octaves"),
    **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), "share of itself"),
    **dict.fromkeys(SWITCHES, "done or not"),
    "rotate": "degrees",
    "mixup": "share of the other image",
    "hue": "turns of the circle",
    "blur": "standard deviation, per cent of a side",
    "noise": "standard deviation, share of white",
    "posterise": "bits dropped, rounded",
    "solarise": "inverted from white down to 1 minus this",
}
RANGES = {  # most of each magnitude, to either side: beyond, another does the same, or nothing is left to see
    "rotate": (180, 180),
    **dict.fromkeys(("shear_x", "shear_y"), (2, 2)),
    **dict.fromkeys(("translate_x", "translate_y"), (1, 1)),
    **dict.fromkeys(("zoom", "stretch", "gamma"), (4, 4)),
    **dict.fromkeys(("brightness", "contrast", "saturation", "sharpness"), (1, 10)),
    "hue": (0.5, 0.5),
    "mixup": (0, 0.5),
    "blur": (0, 50),
    "posterise": (0, 7),
    **dict.fromkeys(("crop", "cutmix", "erase", "noise", "solarise", *SWITCHES), (0, 1)),
}
OPERATIONS = sorted({*GEOMETRY, *COLOUR, *REGULARISERS, "crop", "noise"})
