"""Synthetic faces: any number of labelled faces at any yaw, from a seed, with nothing on disk.

A head is some thirty ellipsoids. Seen along parallel rays, the depth of an ellipsoid is a linear plus
the root of a quadratic function of the image coordinates; the nearest ellipsoid gives the label, the
depth map gives the normals, and flat features (eyes, brows, lips, stubble) are painted where the
surface point, turned back into the frame of the head, lies in them. Nobody is copied.

Head frame: x to the subject's left (image right), y down, z forward; a head is about 1.8 high.
Beards and stubble are `skin`, as in FASSEG and CelebAMask-HQ. Glasses are rims and lenses, but eyes
and brows behind a lens keep their label, as CelebAMask-HQ paints its masks.
"""

import math
import types
import typing

import torch
import torch.nn.functional as F

from datasets import celebamask, fasseg, lapa
from datasets.faces import IGNORE
from utils.errors import UserError
from utils.rng import uniform

FULL = ["background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "glasses", "l_ear", "r_ear"]
FULL += ["nose", "mouth", "u_lip", "l_lip", "neck", "hair", "cloth", "hat"]
ID = types.SimpleNamespace(**{name: i for i, name in enumerate(FULL)})
FULL_COLORS = [(0, 0, 0), (236, 188, 160), (120, 72, 40), (176, 112, 64), (40, 96, 224)]
FULL_COLORS += [(64, 180, 240), (110, 110, 130), (255, 140, 0), (200, 90, 0), (0, 180, 120)]
FULL_COLORS += [(110, 0, 50), (235, 60, 100), (255, 130, 160), (200, 150, 110), (90, 40, 110)]
FULL_COLORS += [(90, 150, 60), (230, 220, 60)]
SKIN_TONES = [(0.97, 0.83, 0.75), (0.93, 0.74, 0.63), (0.82, 0.62, 0.49), (0.63, 0.44, 0.32)]
SKIN_TONES += [(0.46, 0.31, 0.22), (0.34, 0.22, 0.16)]
HAIR_TONES = [(0.06, 0.05, 0.05), (0.09, 0.07, 0.06), (0.17, 0.11, 0.08), (0.27, 0.18, 0.12)]
HAIR_TONES += [(0.38, 0.26, 0.16), (0.72, 0.57, 0.36), (0.80, 0.68, 0.47), (0.48, 0.21, 0.10)]
HAIR_TONES += [(0.62, 0.61, 0.60)]
IRIS_TONES = [(0.20, 0.11, 0.05), (0.12, 0.07, 0.04), (0.30, 0.18, 0.08), (0.25, 0.40, 0.58)]
IRIS_TONES += [(0.30, 0.42, 0.28)]
FAR = -4.0  # depth where a ray meets nothing


class Scheme(typing.NamedTuple):
    """What a class list means in terms of `FULL`. lookup[i]: the scheme's id of FULL[i], or 255."""

    classes: list[str]
    colors: list[tuple[int, int, int]]
    flip_pairs: list[tuple[int, int]]
    lookup: list[int]
    see_through: bool = False  # glasses are labelled as what is behind them


FASSEG_NAMES = {"l_ear": "skin", "r_ear": "skin", "neck": "skin", "l_brow": "hair", "r_brow": "hair"}
FASSEG_NAMES |= {"l_eye": "eyes", "r_eye": "eyes", "u_lip": "mouth", "l_lip": "mouth"}
LAPA_NAMES = {"l_ear": "skin", "r_ear": "skin", "glasses": None, "mouth": "inner_mouth"}
LAPA_NAMES |= {"l_brow": "right_eyebrow", "r_brow": "left_eyebrow"}  # left is image left here
LAPA_NAMES |= {"l_eye": "right_eye", "r_eye": "left_eye", "u_lip": "upper_lip", "l_lip": "lower_lip"}


def _scheme(module, same, see_through=False):
    """A data set's scheme. same: FULL name -> its name there, or None to ignore; equal names stay,
    and whatever the data set does not name is background."""
    classes = list(module.CLASSES)
    names = [same.get(name, name if name in classes else "background") for name in FULL]
    lookup = [IGNORE if name is None else classes.index(name) for name in names]
    return Scheme(classes, module.COLORS, getattr(module, "FLIP_PAIRS", []), lookup, see_through)


SCHEMES = {
    "full": Scheme(FULL, FULL_COLORS, [(2, 3), (4, 5), (7, 8)], list(range(len(FULL)))),
    "fasseg": _scheme(fasseg, FASSEG_NAMES, see_through=True),
    "celebamask": _scheme(celebamask, {"glasses": "eye_g"}),
    "lapa": _scheme(lapa, LAPA_NAMES),
}


def scheme_of(classes):
    """The name of the scheme with exactly this class list."""
    for name, scheme in SCHEMES.items():
        if scheme.classes == list(classes):
            return name
    known = "; ".join(f"{name}: {' '.join(s.classes)}" for name, s in SCHEMES.items())
    raise UserError(f"no synthetic faces with classes {' '.join(classes)}; known are {known}")


class Draw:
    """Random numbers of each sample, one call after the other; all of shape (B, 1, 1)."""

    def __init__(self, seed, positions):
        self.left = iter(uniform(seed, positions, 256)[:, :, None, None].unbind(1))

    def __call__(self, low=0.0, high=1.0):
        return low + (high - low) * next(self.left)

    def chance(self, share):
        return next(self.left) < share

    def color(self, tones, spread=0.06):
        """One of `tones` (rows of RGB in 0..1), or a mixture of two neighbours: (B, 3, 1, 1)."""
        tones = torch.tensor(tones, device=(place := self(0, len(tones) - 1)).device)
        low, mix = place.long().flatten(), place.frac().view(-1, 1)
        color = tones[low] + mix * (tones[(low + 1).clamp(max=len(tones) - 1)] - tones[low])
        return (color[..., None, None] * (1 + self.rgb(-spread, spread))).clamp(0, 1)

    def rgb(self, low=0.0, high=1.0):
        return torch.stack([self(low, high) for _ in range(3)], 1)


class Part(typing.NamedTuple):
    """One ellipsoid."""

    label: int
    centre: tuple  # x, y, z in its frame: numbers or (B, 1, 1)
    radii: tuple
    tilt: float = 0.0  # turn about x, radians; positive moves the lower end forward
    blend: float = 1e-3  # how softly it melts into the parts before it
    show: typing.Any = True  # bool or (B, 1, 1) bool
    keep: typing.Callable = None  # (x, y, z in its frame) -> where its surface exists
    rough: typing.Any = 0.0  # how strongly noise moves its outline
    frame: str = "head"  # or "body", or "camera"


def person(draw):
    """Shape, style and pose of B people, as (B, 1, 1) numbers."""
    p = types.SimpleNamespace()
    p.yaw = torch.deg2rad(draw(-95, 95))
    p.pitch, p.roll = draw(-0.2, 0.22), draw(-0.12, 0.12)
    p.body_yaw = p.yaw * draw(0.5, 1)
    p.width, p.jaw, p.chin = draw(0.93, 1.07), draw(0.44, 0.54), draw(-0.05, 0.06)
    p.eye_x, p.eye_y, p.eye_tilt = draw(0.22, 0.27), draw(-0.03, 0.03), draw(-0.02, 0.05)
    p.eye_w, p.eye_h = draw(0.115, 0.14), draw(0.045, 0.066)
    p.gaze, p.look = draw(-0.04, 0.04), draw(-0.012, 0.012)
    p.brow_y, p.brow_arch = p.eye_y - draw(0.15, 0.21), draw(0.01, 0.06)
    p.brow_h, p.brow_tilt = draw(0.028, 0.048), draw(-0.03, 0.03)
    p.nose_w, p.nose_y, p.nose_z = draw(0.8, 1.25), draw(0.25, 0.31), draw(-0.03, 0.06)
    p.mouth_y, p.mouth_w, p.smile = draw(0.50, 0.56), draw(0.17, 0.23), draw(-0.02, 0.06)
    p.upper, p.lower = draw(0.040, 0.065), draw(0.052, 0.082)
    p.gap = torch.where(draw.chance(0.6), draw(0.07, 0.16), 0.0)
    style = draw()  # bald, short, long, big, bun
    p.bald = style < 0.06
    p.long = ((style > 0.40) & (style < 0.70)) | (style > 0.92)
    p.big = (style > 0.70) & (style < 0.84)
    p.bun = (style > 0.84) & (style < 0.92)
    p.hair = torch.where(p.big, draw(0.14, 0.26), draw(0.03, 0.12))
    p.curl = torch.where(p.big, draw(0.10, 0.3), draw(0.0, 0.06))
    p.length, p.lock = draw(0.35, 1.0), draw(0.0, 0.25)
    p.line, p.slope, p.temple = draw(0.02, 0.22), draw(0.75, 0.98), draw(-0.2, 0.25)
    p.fringe = torch.where(draw.chance(0.3), draw(-0.42, -0.2), -9.0)
    p.part = draw(-0.3, 0.3)
    p.hat, p.brim = draw.chance(0.1), draw()
    p.glasses, p.rim = draw.chance(0.15), draw(0.018, 0.045)
    p.beard = torch.where(draw.chance(0.25), draw(0.15, 0.95), 0.0)
    p.collar = draw(0.36, 0.62)
    p.hide = draw.chance(0.07)
    return p


def parts(p, draw):
    """The ellipsoids of B people; skin first, since it blends in this order."""
    w, th = p.width, p.hair
    top = (0.60 * w + th, 0.68 + th, 0.74 + th)
    both = (1, -1)

    def cap(x, y, z):
        line = y + p.slope * z + p.temple * x.abs() < p.line
        return line | ((y < p.fringe + 0.25 * (x - p.part).abs()) & (z > 0))

    def strands(x, y, z):
        return z < 0.05 + p.lock * 2 * x.abs() - 0.1 * y

    def hat(x, y, z):
        return y + 0.22 * z < -0.30

    def cloth(x, y, z):
        return (x * x + (z - 0.1) ** 2).sqrt() > p.collar - 0.25 * (z > 0) * (y - 1.4)

    face = [
        Part(ID.skin, (0, -0.20, -0.05), (0.60 * w, 0.68, 0.74)),
        Part(ID.skin, (0, 0.28 + p.chin / 2, 0.13), (p.jaw * w, 0.62, 0.50), blend=0.06),
        Part(ID.skin, (0, 0.72 + p.chin, 0.38), (0.17, 0.15, draw(0.13, 0.19)), blend=0.05),
        Part(ID.skin, (0, -0.14, 0.50), (0.34, 0.11, draw(0.15, 0.20)), blend=0.05),
        *(Part(ID.skin, (s * 0.27 * w, 0.20, 0.27), (0.20, 0.2, 0.27), blend=0.05) for s in both),
        Part(ID.skin, (0, p.mouth_y - 0.05, 0.48), (0.19, 0.07, 0.17), blend=0.03),
        Part(ID.skin, (0, p.mouth_y + 0.07 + p.gap / 2, 0.46), (0.17, 0.07, 0.17), blend=0.03),
        Part(ID.nose, (0, 0.10, 0.59), (0.075 * p.nose_w, 0.24, 0.115), tilt=0.38, blend=0.02),
        *(
            Part(ID.nose, (s * 0.075 * p.nose_w, p.nose_y + 0.02, 0.58), (0.065, 0.06, 0.10))
            for s in both
        ),
        Part(ID.nose, (0, p.nose_y, 0.68 + p.nose_z), (0.09 * p.nose_w, 0.08, 0.13), blend=0.03),
        Part(ID.neck, (0, 1.05, -0.18), (0.36, 0.8, 0.36), tilt=0.15, blend=0.01, frame="body"),
        Part(ID.neck, (0, 2.0, -0.25), (1.2, 0.55, 0.46), blend=0.1, frame="body"),
    ]
    ear, flare = (draw(0.055, 0.085), draw(0.18, 0.23), draw(0.10, 0.13)), draw(0.55, 0.6)
    ears = [
        Part(label, (s * flare * w, 0.10, -0.08), ear, tilt=-0.25)
        for s, label in zip(both, (ID.l_ear, ID.r_ear), strict=True)
    ]
    return face + ears + [
        Part(ID.cloth, (0, 2.0, -0.25), (1.25, 0.60, 0.52), keep=cloth, frame="body"),
        Part(ID.hair, (0, -0.20 - th / 2, -0.06 - th / 3), top, 0, 1e-3, ~p.bald, cap, p.curl),
        Part(
            ID.hair,
            (0, p.length * 0.5 - 0.05, -0.22),
            (0.66 * w + th, 0.55 + 0.5 * p.length, 0.58 + th),
            show=p.long,
            keep=strands,
            rough=p.curl,
        ),
        Part(ID.hair, (0, -0.75, -0.6), (0.3, 0.3, 0.3), show=p.bun, rough=p.curl),
        Part(ID.hat, (0, -0.26, -0.06), tuple(r + 0.05 for r in top), show=p.hat, keep=hat),
        Part(ID.hat, (0, -0.42, 0.3), (0.62, 0.04, 0.8), 0.1, show=p.hat & (p.brim < 0.4)),
        Part(ID.hat, (0, -0.40, 0), (1.1, 0.04, 1.15), show=p.hat & (p.brim > 0.6)),
        Part(
            ID.background,
            (draw(-0.9, 0.9), draw(-0.6, 1), 2),
            (draw(0.1, 0.16), draw(0.5, 0.9), 0.1),
            show=p.hide,
            frame="camera",
        ),
    ]


def rotation(yaw, pitch, roll):
    """(B, 3, 3) from a frame with this pose to the camera: yaw first, then pitch, then roll."""
    c, cp, cr = (torch.cos(angle.flatten()) for angle in (yaw, pitch, roll))
    s, sp, sr = (torch.sin(angle.flatten()) for angle in (yaw, pitch, roll))
    x = torch.stack([cr * c + sr * sp * s, -sr * cp, -cr * s + sr * sp * c], 1)
    y = torch.stack([sr * c - cr * sp * s, cr * cp, -sr * s - cr * sp * c], 1)
    return torch.stack([x, y, torch.stack([cp * s, sp, cp * c], 1)], 1)


def turn_back(frame, u, v, t):
    """Camera coordinates -> x, y, z in a frame, each (B, S, S)."""
    f = frame[..., None, None]
    return [u * f[:, 0, k] + v * f[:, 1, k] + t * f[:, 2, k] for k in range(3)]


def hit(part, frame, u, v, bumps):
    """(B, S, S) depth where rays meet one ellipsoid, `FAR` where they miss.

    A point at (du, dv, t) from the centre lies on it where its coordinates along the axes, divided by
    the radii, have norm 1: a quadratic form G, and its root in t is linear + sqrt(quadratic).
    """
    centre, radii = (
        torch.stack([torch.as_tensor(n).to(u).expand_as(u[:, :, :1]).flatten() for n in row], 1)
        for row in (part.centre, part.radii)
    )
    c, s = math.cos(part.tilt), math.sin(part.tilt)
    x, y, z = frame.unbind(2)
    axes = torch.stack([x, c * y + s * z, c * z - s * y], 2) / radii[:, None]

    def g(i, j):
        return (axes[:, i] * axes[:, j]).sum(1)[:, None, None]

    u0, v0, t0 = (frame * centre[:, None]).sum(2)[:, :, None, None].unbind(1)
    du, dv, depth2 = u - u0, v - v0, 1 / g(2, 2)
    lean_u, lean_v = -g(0, 2) * depth2, -g(1, 2) * depth2
    squared = (depth2 - (g(0, 0) * depth2 - lean_u**2) * du**2) + (
        (lean_v**2 - g(1, 1) * depth2) * dv**2
    )
    squared = squared + (2 * (lean_u * lean_v - g(0, 1) * depth2) * du) * dv
    if bumps is not None and torch.is_tensor(part.rough):
        squared = squared + part.rough * bumps
    met = (squared > 0) & part.show
    root = squared.clamp(min=0).sqrt()
    middle = (t0 + lean_u * du) + lean_v * dv
    front = torch.where(met, middle + root, FAR)
    if part.keep is None:
        return front
    x, y, z = turn_back(frame, u, v, front)
    back = middle - root  # the inside of an open shell is seen through the opening
    xb, yb, zb = turn_back(frame, u, v, back)
    ragged = 0.06 * bumps if part.label == ID.hair else 0
    inside = torch.where(met & part.keep(xb, yb + ragged, zb), back, FAR)
    return torch.where(part.keep(x, y + ragged, z), front, inside)


def march(all_parts, frames, u, v, bumps):
    """Depth (B, S, S) and label (B, S, S) uint8 of the nearest surface."""
    depth = torch.full((len(u), v.shape[1], u.shape[2]), FAR, device=u.device)
    label = torch.zeros(depth.shape, dtype=torch.uint8, device=u.device)
    for part in all_parts:
        near = hit(part, frames[part.frame], u, v, bumps)
        mix = ((near - depth) / (2 * part.blend) + 0.5).clamp(0, 1)
        label = torch.where(mix > 0.5, part.label, label).to(torch.uint8)
        depth = depth + mix * (near - depth) + part.blend * mix * (1 - mix)
    return depth, label


def clouds(seed, positions, size, stream, channels=4):
    """Smooth noise (B, channels, size, size), about -1..1: four octaves of a random lattice."""
    cells = [channels * k * k for k in (4, 8, 16, 32)]
    lattices = (2 * uniform(seed, positions, sum(cells), stream) - 1).split(cells, 1)
    noise = 0
    for k, lattice in zip((4, 8, 16, 32), lattices, strict=True):
        noise = noise + lattice.view(-1, channels, k, k) * (3 / k) ** 0.7
        noise = F.interpolate(noise, size=size if k == 32 else 2 * k, mode="bilinear")
    return noise


def paint(p, draw, label, point, pixel, fine, cloud):
    """Flat features on the head: new label, albedo (B, 3, S, S) in 0..1, and gloss (B, S, S)."""
    x, y, z = point
    skin, hair = draw.color(SKIN_TONES), draw.color(HAIR_TONES)
    lips = skin * torch.stack([draw(0.82, 1.0), draw(0.5, 0.75), draw(0.55, 0.8)], 1)
    table = torch.stack([skin] * len(FULL), 2)  # (B, 3, 17, 1, 1)
    for part, color in ((ID.hair, hair), (ID.cloth, draw.rgb(0.05, 0.9)), (ID.hat, draw.rgb(0.05))):
        table[:, :, part] = color
    table[:, :, ID.background] = torch.where(draw.chance(0.6)[:, None], skin, draw.rgb())
    index = label.long().flatten(1)[:, None].expand(-1, 3, -1)
    albedo = table.flatten(2).gather(2, index).view(len(label), 3, *label.shape[1:])
    side, across = torch.where(x > 0, 1.0, -1.0), x.abs()
    face = (label == ID.skin) & (z > 0.05)

    def lay(distance, color, where=face, soft=1.0, strength=1.0):
        """Paint where the signed distance is negative, with an edge `soft` pixels wide."""
        nonlocal albedo
        alpha = (0.5 - distance / (soft * pixel)).clamp(0, 1) * where * strength
        albedo = albedo + alpha[:, None] * (color - albedo)

    def name(inside, left, right=None):
        nonlocal label
        new = left if right is None else torch.where(x > 0, left, right)
        label = torch.where(inside & face, new, label).to(torch.uint8)

    # Skin: blush, freckles, stubble and beard, nostrils, the hollow of the ear.
    skinlike = face | (label == ID.nose) | (label == ID.neck)
    albedo = albedo * (1 + 0.06 * (cloud[:, :1] + fine[:, None] - 0.5))
    red = skin * torch.tensor([1.0, 0.72, 0.70], device=x.device).view(1, 3, 1, 1)
    cheek = ((across - 0.28) ** 2 + (y - 0.24) ** 2).sqrt() - 0.08
    lay(cheek, red, soft=0.16 / pixel, strength=draw(0, 0.5))
    lay(0.93 - fine + 3 * cheek.clamp(min=0), red * 0.8, soft=0.02 / pixel, strength=draw(-1, 0.6).clamp(min=0))
    edge = 0.41 - 1.2 * (across - 0.27).clamp(min=0) + 0.04 * cloud[:, 1]
    lay(edge - y, hair * 0.9, face & (y < 0.95), 0.1 / pixel, p.beard * (0.55 + 0.45 * fine))
    nostril = ((across - 0.05 * p.nose_w) / 0.032) ** 2 + ((y - p.nose_y - 0.062) / 0.02) ** 2
    lay((nostril - 1) * 0.02, skin * 0.25, label == ID.nose, soft=1.5, strength=0.8)
    hollow = ((y - 0.08) / 0.10) ** 2 + ((z + 0.06) / 0.05) ** 2
    lay((hollow - 1) * 0.04, skin * 0.6, (label == ID.l_ear) | (label == ID.r_ear), 3, 0.7)

    # Brows.
    a = (across - p.eye_x - 0.01) / 0.165
    middle = p.brow_y - p.brow_arch * (1 - a**2) + p.brow_tilt * a
    brow = (y - middle).abs() - p.brow_h * (1 - 0.45 * a.clamp(min=0) ** 2)
    brow = torch.maximum(brow, (a.abs() - 1) * 0.165)
    lay(brow, torch.minimum(hair, skin * 0.62), soft=1.6, strength=0.65 + 0.35 * fine)
    name(brow < 0, ID.l_brow, ID.r_brow)

    # Eyes: the opening between two lids, iris, pupil, glint, lashes and the crease above.
    a = (across - p.eye_x) / p.eye_w
    bend = (1 - a**2).clamp(min=0)
    lids = p.eye_y - p.eye_tilt * a
    upper, lower = lids - p.eye_h * bend, lids + 0.7 * p.eye_h * bend
    eye = torch.maximum(torch.maximum(upper - y, y - lower), (a.abs() - 1) * p.eye_w)
    dx, dy = x - side * p.eye_x - p.gaze, y - p.eye_y - p.look + 0.008
    radius = (dx**2 + dy**2).sqrt()
    lay((upper - 0.028 - y).abs() - 0.008, skin * 0.72, face & (a.abs() < 1), 1.5, 0.8)
    lay(eye, draw(0.78, 0.95)[:, None] - 0.12 * a.abs()[:, None])
    ball = face & (eye < 0)
    lay(radius - 0.058, draw.color(IRIS_TONES), ball)
    lay((radius - 0.056).abs() - 0.008, 0.08, ball, strength=0.6)
    lay(radius - 0.026, 0.03, ball)
    lay(((dx + 0.02) ** 2 + (dy + 0.02) ** 2).sqrt() - 0.012, 0.95, ball)
    lay((upper - y).abs() - 0.012, hair * 0.4, face & (a.abs() < 1.02), strength=0.85)
    lay((lower - y).abs() - 0.004, skin * 0.5, face & (a.abs() < 1), strength=0.5)
    name(eye < 0, ID.l_eye, ID.r_eye)

    # Mouth: the lips around a gap that shows teeth and dark.
    a = x / p.mouth_w
    bend = (1 - a**2).clamp(min=0)
    seam = p.mouth_y - p.smile * a**2
    roof, floor = seam - 0.25 * p.gap * bend, seam + 0.75 * p.gap * bend
    bow = 1 - 0.3 * (1 - 5 * a.abs()).clamp(min=0)
    top, bottom = roof - p.upper * bend * bow, floor + p.lower * bend
    wide = (a.abs() - 1) * p.mouth_w
    inner = torch.maximum(torch.maximum(roof - y, y - floor), wide)
    lay(torch.maximum(torch.maximum(top - y, y - bottom), wide), lips, soft=1.5)
    lay((y - seam).abs() - 0.008, lips * 0.45, face & (a.abs() < 1) & (p.gap == 0))
    lay(inner, torch.tensor([0.22, 0.06, 0.06], device=x.device).view(1, 3, 1, 1))
    teeth = torch.maximum(inner, y - roof - 0.055 * bend)
    lay(teeth, 0.88, face & draw.chance(0.75))
    name((wide < 0) & (y > top) & (y < roof), ID.u_lip)
    name((wide < 0) & (y > floor) & (y < bottom), ID.l_lip)
    name((wide < 0) & (y >= roof) & (y <= floor) & (p.gap > 0), ID.mouth)

    # Hair: strands along planes through the head, so they fall from the parting to the sides.
    s = z + 0.6 * across + 0.2 * y + 0.12 * cloud[:, 2]
    strand = (torch.sin(61 * s) + torch.sin(113 * s + 1) + torch.sin(29 * s + 2)) / 3
    hairy = (label == ID.hair)[:, None]
    albedo = albedo * (1 + hairy * (0.22 * strand + 0.3 * (fine - 0.5))[:, None])
    gloss = 0.25 * skinlike + 0.35 * hairy[:, 0] * (0.6 + 0.4 * strand) + 0.6 * ball
    return label, albedo, gloss


def relief(p, point, label, fine, cloud):
    """Small height differences on the face, (B, S, S), which show in the shading alone."""
    x, y, z = point
    face = ((label == ID.skin) | (label == ID.nose)) & (z > 0)
    eye = ((x.abs() - p.eye_x) / 0.16) ** 2 + ((y - p.eye_y) / 0.12) ** 2
    socket = -0.035 * torch.exp(-eye) + 0.02 * (1 - 1.5 * eye).clamp(min=0)
    groove = (x / 0.03) ** 2 + ((y - p.mouth_y + 0.12) / 0.05) ** 2
    fold = ((x.abs() - 0.17 - 0.35 * (y - 0.3)) / 0.03) ** 2 + ((y - 0.4) / 0.12) ** 2
    bumps = socket - 0.008 * torch.exp(-groove) - 0.006 * torch.exp(-fold)
    return bumps * face + 0.004 * cloud[:, 3] + 0.0012 * fine


def slopes(depth, axis, step):
    """Derivative along an axis, the gentler of both one-sided ones: edges stay sharp."""
    after = depth.diff(dim=axis, append=depth.select(axis, -1).unsqueeze(axis)) / step
    before = after.roll(1, axis)
    return torch.where(after.abs() < before.abs(), after, before).clamp(-6, 6)


def light(draw, depth, albedo, gloss, pixel_u, pixel_v):
    """Shaded colours (B, 3, S, S): ambient and directional light, gloss, rim, occlusion."""
    nx, ny = -slopes(depth, 2, pixel_u), -slopes(depth, 1, pixel_v)
    length = (nx**2 + ny**2 + 1).rsqrt()
    nx, ny, nz = nx * length, ny * length, length
    lx, ly, lz = draw(-1, 1), draw(-1, 0.2), draw(0.6, 1.4)
    norm = (lx**2 + ly**2 + lz**2).rsqrt()
    lx, ly, lz = lx * norm, ly * norm, lz * norm
    lambert = (0.15 + 0.85 * (nx * lx + ny * ly + nz * lz)).clamp(min=0)
    hz = ((lx**2 + ly**2) + (lz + 1) ** 2).rsqrt()
    shine = (nx * lx + ny * ly + nz * (lz + 1)).mul(hz).clamp(min=0) ** 16
    ambient = draw(0.35, 0.65)
    wide = F.avg_pool2d(depth.clamp(min=-1)[:, None], 5, 2, 2)
    wide = F.avg_pool2d(wide, 5, 2, 2)
    wide = F.interpolate(wide, size=depth.shape[1:], mode="bilinear")[:, 0]
    hidden = (wide - depth).clamp(0, 0.25) * 1.6
    shade = (ambient + (1.15 - ambient) * lambert) * (1 - hidden)
    rim = draw(0, 0.3) * (1 - nz) ** 3
    return albedo * shade[:, None] + (gloss * shine * draw(0.1, 0.7) + rim * 0.5)[:, None]


def backdrop(draw, cloud, u, v):
    """(B, 3, S, S): plain studio grey or a colour, a gradient, sometimes blobs."""
    grey = draw(0.35, 0.95)[:, None] * (1 + draw.rgb(-0.04, 0.04))
    color = torch.where(draw.chance(0.5)[:, None], grey, draw.rgb(0.05, 0.95))
    slope = draw(-0.15, 0.15) * u + draw(-0.15, 0.15) * v
    blobs = torch.where(draw.chance(0.35), draw(0.1, 0.5), 0.02)
    return color + slope[:, None] + blobs[:, None] * cloud[:, :3]


def camera(draw, image, fine):
    """What a photo adds: gamma, contrast, cast, saturation, a light blur, sensor noise."""
    image = image.clamp(1e-3, 1) * draw(0.8, 1.15)[:, None] * (1 + draw.rgb(-0.06, 0.06))
    image = torch.exp(image.log() * draw(0.75, 1.3)[:, None])
    grey = image.mean(1, keepdim=True)
    saturation = torch.where(draw.chance(0.35), draw(0.0, 0.6), draw(0.8, 1.2))
    image = grey + saturation[:, None] * (image - grey)
    soft = torch.where(draw.chance(0.75), draw(0.4, 1.0), 0.0)[:, None]
    wide = F.pad(image, (1, 1, 1, 1), mode="replicate")
    wide = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    wide = (wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]) / 16
    image = image + soft * (wide - image)
    return image + draw(0.0, 0.05)[:, None] * (fine - 0.5)[:, None]


def wear_glasses(p, draw, label, image, depth, frame, u, v, pixel):
    """Rims and lenses on a shell around the face; eyes and brows keep their label."""
    shell = Part(ID.glasses, (0, 0, -0.02), (0.64 * p.width, 0.8, 0.82), show=p.glasses)
    front = hit(shell, frame, u, v, None)
    x, y, z = turn_back(frame, u, v, front)
    across = x.abs()
    wide, high, square = draw(0.17, 0.215), draw(0.13, 0.18), draw(2, 5)
    a, b = (across - p.eye_x - 0.01) / wide, (y - p.eye_y - 0.02) / high
    power = torch.exp(square * a.abs().clamp(min=1e-3).log())
    power = power + torch.exp(square * b.abs().clamp(min=1e-3).log())
    ring = (torch.exp(power.log() / square) - 1) * high
    bridge = torch.maximum((y - p.eye_y + 0.01).abs() - 0.02, across - p.eye_x)
    arm = torch.maximum((y - p.eye_y + 0.02).abs() - 0.02, p.eye_x - across)
    arm = torch.maximum(arm, -0.05 - z)
    outline = torch.minimum(bridge, arm)
    rim = torch.minimum(ring.abs(), torch.where(ring < 0, 1.0, outline + p.rim)) - p.rim
    there = (front > depth) & (z > -0.05)
    alpha = (0.5 - rim / pixel).clamp(0, 1) * there
    lens = (ring < 0) & there
    tint = draw(-0.3, 0.45).clamp(min=0.06) * lens
    image = image + tint[:, None] * (draw.rgb(0.2, 0.6) - image)
    image = image + alpha[:, None] * (draw.rgb(0.02, 0.4) * draw(0.2, 1)[:, None] - image)
    eyes = (label >= ID.l_brow) & (label <= ID.r_eye)
    worn = there & ((rim < 0) | (lens & ~eyes))
    return torch.where(worn, ID.glasses, label).to(torch.uint8), image


def faces(seed, positions, size, scheme="full"):
    """Render faces.

    positions: (B,) int64, which faces of the endless row of this seed. Returns on their device
    {"image": uint8 (B, 3, size, size), "semantic": uint8 (B, size, size), "yaw": float32 (B,) degrees,
    positive where the face looks to image left}. A face depends on (seed, position) alone, on the CPU
    bit for bit.
    """
    draw = Draw(seed, positions)
    p = person(draw)
    zoom, stretch = draw(1.0, 1.3), draw(0.9, 1.45)
    turned = p.yaw.sin().abs()
    reach = (0.66 + p.hair + 0.24 * turned) * draw(0.92, 1.2)
    half_u = torch.maximum(zoom / stretch, reach)
    grid = (torch.arange(size, device=positions.device) + 0.5) * (2 / size) - 1
    u = grid.view(1, 1, -1) * half_u + draw(-0.08, 0.08) - 0.06 * p.yaw.sin()
    v = grid.view(1, -1, 1) * zoom + draw(-0.10, 0.10)
    pixel = (half_u + zoom) / size
    fine = uniform(seed, positions, size * size, stream=1).view(-1, size, size)
    cloud = clouds(seed, positions, size, stream=2)
    frames = {
        "head": rotation(p.yaw, p.pitch, p.roll),
        "body": rotation(p.body_yaw, 0 * p.yaw, 0.3 * p.roll),
        "camera": torch.eye(3, device=positions.device).expand(len(positions), 3, 3),
    }
    depth, label = march(parts(p, draw), frames, u, v, cloud[:, 0])
    point = turn_back(frames["head"], u, v, depth)
    height = depth + relief(p, point, label, fine, cloud)
    behind, albedo, gloss = paint(p, draw, label, point, pixel, fine, cloud)
    image = light(draw, height, albedo, gloss, 2 * half_u / size, 2 * zoom / size)
    empty = (depth <= FAR + 0.01)[:, None]
    image = torch.where(empty, backdrop(draw, cloud, u, v), image)
    label, image = wear_glasses(p, draw, behind, image, depth, frames["head"], u, v, pixel)
    image = camera(draw, image, fine)
    mapping = SCHEMES[scheme]
    lookup = torch.tensor(mapping.lookup, dtype=torch.uint8, device=positions.device)
    return {
        "image": (image.clamp(0, 1) * 255).round().to(torch.uint8),
        "semantic": lookup[(behind if mapping.see_through else label).long()],
        "yaw": torch.rad2deg(p.yaw).flatten(),
    }


class SyntheticFaces:
    """n faces of one seed as a data set; `__getitem__` takes a list of indices in 0..n-1."""

    def __init__(self, n, seed, size, scheme="full", device="cpu"):
        self.n, self.seed, self.size, self.scheme, self.device = n, seed, size, scheme, device

    def __len__(self):
        return self.n

    def __getitem__(self, indices):
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        return faces(self.seed, index, self.size, self.scheme) | {"index": index}
