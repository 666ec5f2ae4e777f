"""Faces in other domains: what light, weather or a pencil makes of a photo taken in daylight.

Only what is seen changes, never where it is, so labels stay. Everything is drawn by (seed, position), and a
photo comes out the same, bit for bit on the CPU, in whatever batch it is changed (see render.py).
"""

import torch
import torch.nn.functional as F

from datasets.synthetic.render import Draw, clouds, edge
from utils.rng import cells, normal

DOMAINS = ("daylight", "night", "fog", "snow", "sketch", "red light")
FIRST = 30  # stream of random numbers; those before it are others'
FLAKES = ((8, 0.25), (14, 0.35), (26, 0.4))  # cells along a side, share of them that hold a flake


def change(images, domain, seed, positions):
    """Photos (B, 3, H, W) uint8 of daylight -> the same in a domain, one of `DOMAINS`.

    positions: (B,) int64, on the device of the images: a photo depends on (seed, position) alone.
    """
    if domain == "daylight":
        return images
    draw = Draw(seed, positions, stream=FIRST + DOMAINS.index(domain))
    scene = Scene(seed, positions, *images.shape[2:])
    changed = {"night": night, "fog": fog, "snow": snow, "sketch": sketch, "red light": red_light}[domain]
    return (changed(images / 255, draw, scene).clamp_(0, 1) * 255).round_().to(torch.uint8)


class Scene:
    """Where pixels are, x and y in -1 to 1, and random fields of B photos, each (B, channels, H, W)."""

    def __init__(self, seed, positions, height, width):
        self.key = seed, positions
        self.shape = height, width
        self.y = ((torch.arange(height, device=positions.device) + 0.5) * (2 / height) - 1).view(1, 1, -1, 1)
        self.x = ((torch.arange(width, device=positions.device) + 0.5) * (2 / width) - 1).view(1, 1, 1, -1)

    def clouds(self):
        """Smooth noise in -2 to 2."""
        height, width = self.shape
        return clouds(*self.key, max(self.shape), FIRST + 10, 1)[..., :height, :width]

    def noise(self, channels):
        """Standard normal, for each pixel."""
        height, width = self.shape
        drawn = normal(*self.key, channels * height * width, FIRST + 11)
        return drawn.view(-1, channels, height, width)

    def cells(self, side, stream):
        """In 0 to 1, the same within cells of side x side pixels."""
        return cells(*self.key, self.shape, side, FIRST + stream)[:, None]


def one(number):
    """(B, 1, 1) -> (B, 1, 1, 1)."""
    return number[:, None]


def rgb(red, green, blue):
    """Three (B, 1, 1) -> (B, 3, 1, 1)."""
    return torch.stack([red, green, blue], 1)


def lamp(draw, scene, reach):
    """Light that falls off with the square of the distance from somewhere beside the face: 0 to 1."""
    x, y = one(draw(-1.2, 1.2)), one(draw(-1.3, 0.3))
    return 1 / (1 + ((scene.x - x) ** 2 + (scene.y - y) ** 2) / one(reach) ** 2)


def blur(images, reach):
    """Binomial, over `reach` pixels to each side, by sums of neighbours: a convolution's order of summation
    may change with the batch."""
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        wide = F.pad(images, pad, mode="replicate")
        n = images.shape[axis]
        before, middle, after = (wide.narrow(axis, k * reach, n) for k in range(3))
        images = (before + after) * 0.25 + middle * 0.5
    return images


def grey(images):
    """Luma (ITU-R BT.601), (B, 1, H, W)."""
    return (0.299 * images[:, :1] + 0.587 * images[:, 1:2]) + 0.114 * images[:, 2:]


def night(images, draw, scene):
    """Little, bluish light, often with a warm lamp in it, and the noise of a sensor that amplifies it."""
    light = images.square()  # about linear
    light = light + 0.6 * (grey(light) - light)  # few colours are seen
    sky = draw(0.04, 0.12)
    blue = rgb(sky * draw(0.5, 0.7), sky * draw(0.7, 0.85), sky * draw(1.2, 1.6))
    glow = torch.where(draw.chance(0.6), draw(0.1, 0.5), 0.0)
    warm = rgb(glow, glow * draw(0.6, 0.8), glow * draw(0.25, 0.45))
    light = light * (blue + warm * lamp(draw, scene, draw(0.4, 0.9)))
    shot = (light.clamp(min=0) * 0.006 + one(draw(0.003, 0.012)).square()).sqrt()
    return (light + shot * scene.noise(3)).clamp(min=0).sqrt()


def fog(images, draw, scene):
    """A white veil, in swathes and denser to one end, that leaves little contrast."""
    soft = blur(blur(images, 1), 1)
    veil = one(draw(0.12, 0.45)) + one(draw(-0.1, 0.1)) * scene.y + 0.06 * scene.clouds()
    white, blue = draw(0.74, 0.92), draw(0.0, 0.03)
    white = rgb(white - blue / 2, white, white + blue)
    return soft + veil.clamp(0, 0.95) * (white - soft)


def snow(images, draw, scene):
    """Bright and pale, with flakes of several sizes before it."""
    images = images + one(draw(0.3, 0.5)) * (grey(images) - images)
    haze = one(draw(0.25, 0.5))
    images = images + haze * (one(draw(0.88, 0.97)) - images)
    dense = one(draw(0.7, 1.3))
    for k, (count, share) in enumerate(FLAKES):
        side = max(3, round(max(scene.shape) / count))  # a flake stays within its cell
        there, size, x, y = (scene.cells(side, 12 + 4 * k + j) for j in range(4))
        radius = side * (0.12 + 0.2 * size)
        x, y = (radius + place * (side - 2 * radius) for place in (x, y))
        rows, columns = (torch.arange(n, device=x.device) % side + 0.5 for n in scene.shape)
        away = ((columns.view(1, 1, 1, -1) - x) ** 2 + (rows.view(1, 1, -1, 1) - y) ** 2).sqrt()
        flake = edge(away - radius, 1.5) * (there < share * dense) * (0.75 + 0.25 * size)
        images = images + flake * (0.97 - images)
    return images


def sketch(images, draw, scene):
    """Pencil on paper: dark where a photo is darker than around it, paper elsewhere."""
    tone = grey(images) + 0.04
    step = max(1, round(max(scene.shape) / 96))
    around = blur(blur(blur(tone, step), step), 2 * step)
    line = (1 - tone / around).clamp(min=0) * one(draw(2.0, 4.0))
    shade = (0.55 - tone).clamp(min=0) * one(draw(0.0, 0.35))  # hatching of what is dark
    stroke = 0.75 + 0.25 * scene.noise(1)  # the grain of paper, which takes graphite unevenly
    dark = ((line + shade) * stroke).clamp(0, 0.85)
    paper = one(draw(0.86, 0.97)) + 0.012 * scene.clouds()
    return (paper - dark * 0.9) * rgb(*(1 - share * draw(0.0, 0.06) for share in (0.0, 0.4, 1.0)))


def red_light(images, draw, scene):
    """One red lamp: what is not red is dark, and the rest of the photo fades away from it."""
    light = images.square()
    color = rgb(draw(1.0, 1.4), draw(0.02, 0.1), draw(0.02, 0.14))
    mixed = light + 0.25 * (grey(light) - light)
    falls = one(draw(0.1, 0.3)) + one(draw(0.7, 1.1)) * lamp(draw, scene, draw(0.6, 1.2))
    noise = scene.noise(3)
    return (mixed * color * falls + 0.0036 * noise).clamp(min=0).sqrt() + 0.012 * noise
