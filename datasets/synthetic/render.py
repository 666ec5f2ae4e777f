"""A small ray caster: ellipsoids to depth and labels, and depth, colour and light to a photo.

Rays are parallel. Camera frame: u to the right, v down, t towards the viewer. Every sample has its
own shapes: numbers are (B, 1, 1) and fields (B, H, W). A sample must come out the same, bit for bit
on the CPU, in whatever batch it is rendered; hence no matrix products, whose order of summation may
change with the batch, and no atan2 or pow, whose last bit may change with the place in memory.
"""

import math
import typing

import torch
import torch.nn.functional as F

from utils.rng import uniform

FAR = -4.0  # depth where a ray meets nothing at all
MISS = -9.0  # its depth at one part that it misses: so far behind that blending does nothing
OCTAVES = (4, 8, 16, 32)  # cells along a side, each twice the last


class Draw:
    """Random numbers of each sample, one call after the other, all of shape (B, 1, 1)."""

    def __init__(self, seed, positions, stream=0):
        self.left = iter(uniform(seed, positions, 256, stream)[:, :, None, None].unbind(1))

    def __call__(self, low=0.0, high=1.0):
        return low + (high - low) * next(self.left)

    def chance(self, share):
        return next(self.left) < share

    def rgb(self, low=0.0, high=1.0):
        """(B, 3, 1, 1)."""
        return torch.stack([self(low, high) for _ in range(3)], 1)

    def tone(self, tones, share=1.0):
        """(B, 3, 1, 1): mixes two neighbours among the first `share` of `tones` (RGB rows)."""
        place = (self() * share).flatten() * (len(tones) - 1.001)
        tones = torch.tensor(tones, device=place.device)
        low, mix = place.long(), place.frac()[:, None]
        color = tones[low] + mix * (tones[low + 1] - tones[low])
        return (color[..., None, None] * (1 + self.rgb(-0.05, 0.05))).clamp(0, 1)


class Part(typing.NamedTuple):
    """One ellipsoid. Numbers may be floats or (B, 1, 1)."""

    label: int
    centre: tuple  # x, y, z in its frame
    radii: tuple
    tilt: float = 0.0  # turn about x, radians; positive moves the lower end forward
    blend: float = 0.0  # how softly it melts into the parts before it
    show: typing.Any = None  # (B, 1, 1) bool: whose it is; None: everybody's
    keep: typing.Callable = None  # (x, y, z in its frame) -> where its surface exists
    rough: typing.Any = None  # (B, 1, 1) how strongly noise moves its outline
    hollow: bool = False  # an open shell with a ragged rim, whose inside is seen; else a filled body
    frame: str = "head"  # or "body" or "camera"


def rotation(yaw, pitch, roll):
    """(B, 3, 3) from a frame with this pose to the camera: yaw first, then pitch, then roll."""
    c, cp, cr = (torch.cos(angle.flatten()) for angle in (yaw, pitch, roll))
    s, sp, sr = (torch.sin(angle.flatten()) for angle in (yaw, pitch, roll))
    x = torch.stack([cr * c + sr * sp * s, -sr * cp, -cr * s + sr * sp * c], 1)
    y = torch.stack([sr * c - cr * sp * s, cr * cp, -sr * s - cr * sp * c], 1)
    return torch.stack([x, y, torch.stack([cp * s, sp, cp * c], 1)], 1)


def turn_back(frame, u, v, t):
    """Camera coordinates -> x, y, z in a frame, each (B, H, S)."""
    f = frame[..., None, None]
    return [(u * f[:, 0, k] + v * f[:, 1, k]).add_(t * f[:, 2, k]) for k in range(3)]


def rows(v, middle, half):
    """The image rows within `half` of v = `middle` for any sample, as a slice."""
    near = ((v - middle).abs() <= half).any(0).flatten().nonzero().flatten().tolist()
    return slice(near[0], near[-1] + 1) if near else slice(0, 0)


def hit(part, frame, u, v, bumps):
    """Where rays meet one ellipsoid: rows (slice) and their depth (B, rows, S), or `MISS`.

    A point at (du, dv, t) from the centre lies on it where its coordinates along the axes, divided
    by the radii, have norm 1. This quadratic form g has the root t = linear + sqrt(quadratic).
    """
    centre, radii = (
        torch.stack([torch.as_tensor(n).to(u).expand_as(u[:, :, :1]).flatten() for n in row], 1)
        for row in (part.centre, part.radii)
    )
    c, s = math.cos(part.tilt), math.sin(part.tilt)
    x, y, z = frame.unbind(2)
    axes = torch.stack([x, c * y + s * z, c * z - s * y], 2)
    u0, v0, t0 = (frame * centre[:, None]).sum(2)[:, :, None, None].unbind(1)
    high = (axes * radii[:, None])[:, 1].square().sum(1).sqrt()[:, None, None]
    axes = axes / radii[:, None]

    def g(i, j):
        return (axes[:, i] * axes[:, j]).sum(1)[:, None, None]

    depth2 = 1 / g(2, 2)
    if part.rough is not None:
        high = high * (1 + 2 * part.rough / depth2).sqrt()  # bumps stay below 2
    band = rows(v, v0, high if part.show is None else torch.where(part.show, high, -1))
    du, dv = u - u0, v[:, band] - v0
    lean_u, lean_v = -g(0, 2) * depth2, -g(1, 2) * depth2
    constant = depth2 if part.show is None else torch.where(part.show, depth2, -9.0)
    squared = 2 * (lean_u * lean_v - g(0, 1) * depth2) * du * dv
    squared += constant - (g(0, 0) * depth2 - lean_u**2) * du**2
    squared += (lean_v**2 - g(1, 1) * depth2) * dv**2
    if part.rough is not None:
        squared += part.rough * bumps[:, band]
    met, root = squared > 0, squared.sqrt_()
    middle = lean_u * du + (t0 + lean_v * dv)
    front = torch.where(met, middle + root, MISS)
    if part.keep is None:
        return band, front
    ragged = 0.07 * bumps[:, band] if part.hollow else 0
    x, y, z = turn_back(frame, u, v[:, band], front)
    kept = met & part.keep(x, y + ragged, z)
    if not part.hollow:
        return band, torch.where(kept, front, MISS)
    back = middle - root
    x, y, z = turn_back(frame, u, v[:, band], back)
    back = torch.where(met & part.keep(x, y + ragged, z), back, MISS)
    return band, torch.where(kept, front, back)


def march(all_parts, frames, u, v, bumps):
    """Depth (B, S, S) and label (B, S, S) uint8 of the nearest surface."""
    depth = torch.full_like(bumps, FAR)
    label = torch.zeros_like(bumps, dtype=torch.uint8)
    for part in all_parts:
        band, near = hit(part, frames[part.frame], u, v, bumps)
        seen = depth[:, band]
        if part.blend:  # polynomial smooth maximum (I. Quilez, "smooth minimum", 2013)
            mix = ((near - seen) / (2 * part.blend) + 0.5).clamp_(0, 1)
            label[:, band].masked_fill_(mix > 0.5, part.label)
            seen += mix * (near - seen + part.blend * (1 - mix))
        else:
            label[:, band].masked_fill_(near > seen, part.label)
            torch.maximum(seen, near, out=seen)
    return depth, label


def clouds(seed, positions, size, stream, channels=4):
    """Smooth noise (B, channels, size, size) in -2..2: four octaves of random cells."""
    cells = [channels * k * k for k in OCTAVES]
    lattices = (2 * uniform(seed, positions, sum(cells), stream) - 1).split(cells, 1)
    noise = 0
    for k, lattice in zip(OCTAVES, lattices, strict=True):
        noise = noise + lattice.view(-1, channels, k, k) * (3 / k) ** 0.7
        larger = size if k == OCTAVES[-1] else 2 * k
        noise = F.interpolate(noise, size=larger, mode="bilinear")
    return noise


def edge(distance, soft):
    """Signed distance -> coverage in 0..1: 1 inside (negative), with a border `soft` wide."""
    return (0.5 - distance / soft).clamp_(0, 1)


def lay(albedo, alpha, color):
    """Paint in place. albedo: (B, 3, H, S); alpha: (B, H, S); color: (B, 3, 1, 1) or a number."""
    albedo += alpha[:, None] * (color - albedo)


def slopes(height, axis, step):
    """Derivative along an axis: the gentler of both one-sided ones, so that edges stay sharp."""
    after = height.diff(dim=axis, append=height.narrow(axis, -1, 1)) / step
    before = after.roll(1, axis)
    return torch.where(after.abs() < before.abs(), after, before).clamp_(-6, 6)


def light(draw, s, du, dv):
    """Shaded colours (B, 3, S, S): ambient and directional light, gloss, rim, nearby occlusion."""
    nx, ny = -slopes(s.height, 2, du), -slopes(s.height, 1, dv)
    nz = (nx**2 + ny**2 + 1).rsqrt()
    nx, ny = nx * nz, ny * nz
    lx, ly, lz = draw(-0.8, 0.8), draw(-1, 0), draw(0.7, 1.4)
    norm = (lx**2 + ly**2 + lz**2).rsqrt()
    lx, ly, lz = lx * norm, ly * norm, lz * norm
    cosine = nx * lx + ny * ly + nz * lz
    half = (2 + 2 * lz).rsqrt()  # the half vector between light and viewer has norm 1 / half
    shine = ((cosine + nz) * half).clamp_(min=0).square().square().square().square()
    wide = F.avg_pool2d(F.avg_pool2d(s.height.clamp(min=-1)[:, None], 5, 2, 2), 5, 2, 2)
    wide = F.interpolate(wide, size=s.height.shape[1:], mode="bilinear")[:, 0]
    ambient = draw(0.48, 0.78)
    shade = ambient + (1.2 - ambient) * (0.15 + 0.85 * cosine).clamp_(min=0)
    shade *= 1 - 1.6 * (wide - s.height).clamp_(0, 0.25)
    added = s.gloss * shine * draw(0.1, 0.7) + draw(0, 0.15) * (1 - nz) ** 3
    return s.albedo * shade[:, None] + added[:, None]


def camera(draw, image, fine):
    """What a photo adds: exposure, cast, gamma, saturation, a light blur, sensor noise."""
    image = image.clamp(1e-3, 1.2) * draw(0.85, 1.05)[:, None] * (1 + draw.rgb(-0.03, 0.03))
    spots = image[..., ::4, ::4]  # cameras meter; a pool, as its sums are the same in any batch
    gain = (0.45 / F.avg_pool2d(spots, spots.shape[2:]).mean(1, keepdim=True)).sqrt().clamp(0.8, 1.3)
    warm = draw(-0.02, 0.05) + draw(0, 0.05)
    image = image * (gain * torch.stack([1 + warm, torch.ones_like(warm), 1 - warm], 1))
    image = torch.exp(image.log_() * draw(1.0, 1.5)[:, None])
    grey = image.mean(1, keepdim=True)
    saturation = torch.where(draw.chance(0.16), draw(0.0, 0.8), draw(0.8, 1.2))
    image = grey + saturation[:, None] * (image - grey)
    soft = torch.where(draw.chance(0.9), draw(0.5, 1.0), 0.0)[:, None]
    wide = F.pad(image, (1, 1, 1, 1), mode="replicate")
    wide = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    wide = (wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]) / 16
    return image + soft * (wide - image) + (draw(0.0, 0.02) * (fine - 0.5))[:, None]
