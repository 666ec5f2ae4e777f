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
    """Random numbers of each sample, one call after the other, all of shape (B, 1, 1)."""

    def __init__(self, seed, positions):
        self.left = iter(uniform(seed, positions, 256)[:, :, None, None].unbind(1))

    def __call__(self, low=0.0, high=1.0):
        return low + (high - low) * next(self.left)

    def chance(self, share):
        return next(self.left) < share

    def rgb(self, low=0.0, high=1.0):
        """(B, 3, 1, 1)."""
        return torch.stack([self(low, high) for _ in range(3)], 1)

    def tone(self, tones, share=1.0):
        """(B, 3, 1, 1): a mixture of two neighbours among the first `share` of `tones` (RGB rows)."""
        place = (self() * share).flatten() * (len(tones) - 1)
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
    frame: str = "head"  # or "body" or "camera"


def person(draw):
    """Shape, style and pose of B people, as (B, 1, 1) numbers."""
    p = types.SimpleNamespace()
    p.yaw, p.pitch, p.roll = torch.deg2rad(draw(-95, 95)), draw(-0.2, 0.22), draw(-0.12, 0.12)
    p.width, p.jaw, p.chin = draw(0.93, 1.07), draw(0.44, 0.55), draw(-0.05, 0.06)
    p.eye_x, p.eye_y, p.eye_tilt = draw(0.22, 0.27), draw(-0.03, 0.03), draw(-0.02, 0.05)
    p.eye_w, p.eye_h = draw(0.115, 0.14), draw(0.045, 0.066)
    p.gaze, p.look = draw(-0.04, 0.04), draw(-0.012, 0.012)
    p.brow_y, p.brow_arch = p.eye_y - draw(0.15, 0.21), draw(0.01, 0.06)
    p.brow_h, p.brow_tilt = draw(0.028, 0.048), draw(-0.03, 0.03)
    p.nose_w, p.nose_y, p.nose_z = draw(0.8, 1.25), draw(0.25, 0.31), draw(-0.03, 0.06)
    p.mouth_y, p.mouth_w, p.smile = draw(0.50, 0.56), draw(0.17, 0.23), draw(-0.02, 0.06)
    p.upper, p.lower = draw(0.040, 0.065), draw(0.052, 0.082)
    p.gap = torch.where(draw.chance(0.6), draw(0.07, 0.16), 0.0)
    p.hat, p.brim = draw.chance(0.1), draw()
    style = draw()  # bald, short, long, big, bun, long again
    p.bald, p.long = style < 0.05, ((style > 0.40) & (style < 0.74)) | (style > 0.94)
    p.big, p.bun = (style > 0.74) & (style < 0.86) & ~p.hat, (style > 0.86) & (style < 0.94) & ~p.hat
    p.hair = torch.where(p.big, draw(0.14, 0.26), torch.where(p.hat, 0.03, draw(0.03, 0.12)))
    p.curl = torch.where(p.big, draw(0.10, 0.3), draw(0.0, 0.06))
    p.length, p.front = draw(0.4, 1.1), draw(0.18, 0.4)
    p.tucked = draw.chance(0.35)  # long hair behind the ears, which it hides otherwise
    p.line, p.slope, p.temple = draw(0.02, 0.20), draw(0.75, 0.98), draw(-0.2, 0.25)
    p.fringe = torch.where(draw.chance(0.3) & ~p.hat, draw(-0.42, -0.2), -9.0)
    p.part = draw(-0.3, 0.3)
    p.glasses = draw.chance(0.15)
    p.beard = torch.where(draw.chance(0.25), draw(0.15, 0.95), 0.0)
    p.collar, p.hide = draw(0.40, 0.70), draw.chance(0.07)
    return p


def hairline(p, x, y, z):
    """Negative where hair grows on the head: above a plane that runs from brow to nape, or fringe."""
    line = y + p.slope * z + p.temple * x.abs() - p.line
    fringe = torch.where(z > 0, y - p.fringe - 0.25 * (x - p.part).abs(), 1.0)
    return torch.minimum(line, fringe)


def parts(p, draw):
    """The ellipsoids of B people. Skin comes first, since parts blend into those before them."""
    w, th = p.width, p.hair
    top = (0.60 * w + th, 0.68 + th, 0.74 + th)
    limit = torch.where(p.tucked, -0.25, p.front)

    def cap(x, y, z):
        return hairline(p, x, y, z) < 0

    def strands(x, y, z):
        return z + 0.35 * y < limit + 0.2 * x.abs()

    def crown(x, y, z):
        return y + 0.22 * z < -0.30

    def cloth(x, y, z):
        return x * x + (z - 0.1) ** 2 + 0.5 * (z - 0.1).clamp(min=0) > p.collar**2

    ear, ear_x = (draw(0.055, 0.085), draw(0.18, 0.24), draw(0.10, 0.14)), draw(0.55, 0.6) * w
    listens = (~p.long | p.tucked) & ~p.big
    chin, lip_y = draw(0.13, 0.19), p.mouth_y + 0.06 + p.gap / 2
    wing, skin = 0.075 * p.nose_w, ID.skin
    occluder = (draw(-0.9, 0.9), draw(-0.5, 1), 2), (draw(0.1, 0.2), draw(0.4, 0.9), 0.1)
    return [
        Part(skin, (0, -0.20, -0.05), (0.60 * w, 0.68, 0.74)),
        Part(skin, (0, 0.28 + p.chin / 2, 0.13), (p.jaw * w, 0.62, 0.50), blend=0.06),
        Part(skin, (0, 0.72 + p.chin, 0.38), (0.17, 0.15, chin), blend=0.05),
        Part(skin, (0, -0.14, 0.50), (0.34, 0.11, draw(0.15, 0.20)), blend=0.05),
        Part(skin, (0.27 * w, 0.20, 0.27), (0.20, 0.2, 0.27), blend=0.05),
        Part(skin, (-0.27 * w, 0.20, 0.27), (0.20, 0.2, 0.27), blend=0.05),
        Part(skin, (0, p.mouth_y - 0.05, 0.47), (0.19, 0.07, 0.17), blend=0.03),
        Part(skin, (0, lip_y, 0.46), (0.17, 0.07, 0.17), blend=0.03),
        Part(ID.nose, (0, 0.10, 0.59), (wing, 0.24, 0.115), 0.38, 0.02),
        Part(ID.nose, (wing, p.nose_y + 0.02, 0.58), (0.065, 0.06, 0.10), 0, 0.02),
        Part(ID.nose, (-wing, p.nose_y + 0.02, 0.58), (0.065, 0.06, 0.10), 0, 0.02),
        Part(ID.nose, (0, p.nose_y, 0.68 + p.nose_z), (1.2 * wing, 0.08, 0.13), 0, 0.03),
        Part(ID.l_ear, (ear_x, 0.10, -0.08), ear, -0.25, show=listens),
        Part(ID.r_ear, (-ear_x, 0.10, -0.08), ear, -0.25, show=listens),
        Part(ID.neck, (0, 0.95, -0.18), (0.36, 0.8, 0.36), 0.15, 0.01, frame="body"),
        Part(ID.neck, (0, 1.72, -0.22), (1.15, 0.55, 0.44), 0, 0.10, frame="body"),
        Part(ID.cloth, (0, 1.74, -0.22), (1.25, 0.62, 0.52), keep=cloth, frame="body"),
        Part(ID.hair, (0, -0.20 - th / 2, -0.06 - th / 3), top, show=~p.bald, keep=cap, rough=p.curl),
        Part(
            ID.hair,
            (0, p.length * 0.5 - 0.05, -0.22),
            (0.64 * w + th, 0.55 + 0.5 * p.length, 0.58 + th),
            show=p.long,
            keep=strands,
            rough=p.curl,
        ),
        Part(ID.hair, (0, -0.75, -0.6), (0.3, 0.3, 0.3), show=p.bun, rough=p.curl + 0.02),
        Part(ID.hat, (0, -0.26, -0.06), tuple(r + 0.05 for r in top), show=p.hat, keep=crown),
        Part(ID.hat, (0, -0.42, 0.3), (0.62, 0.04, 0.8), 0.1, show=p.hat & (p.brim < 0.4)),
        Part(ID.hat, (0, -0.40, 0), (1.1, 0.04, 1.15), show=p.hat & (p.brim > 0.6)),
        Part(ID.background, *occluder, show=p.hide, frame="camera"),
    ]


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
    """The image rows within `half` of v = `middle` for any sample, as a slice: the rest is spared."""
    near = ((v - middle).abs() <= half).any(0).flatten().nonzero().flatten().tolist()
    return slice(near[0], near[-1] + 1) if near else slice(0, 0)


def hit(part, frame, u, v, bumps):
    """Where rays meet one ellipsoid: rows (slice) and their depth (B, rows, S), `FAR` for a miss.

    A point at (du, dv, t) from the centre lies on it where its coordinates along the axes, divided by
    the radii, have norm 1. This quadratic form g has the root t = linear + sqrt(quadratic).
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
    if part.rough is not None:
        high = high + part.rough
    band = rows(v, v0, high if part.show is None else torch.where(part.show, high, -1))
    axes = axes / radii[:, None]

    def g(i, j):
        return (axes[:, i] * axes[:, j]).sum(1)[:, None, None]

    du, dv, depth2 = u - u0, v[:, band] - v0, 1 / g(2, 2)
    lean_u, lean_v = -g(0, 2) * depth2, -g(1, 2) * depth2
    constant = depth2 if part.show is None else torch.where(part.show, depth2, -9.0)
    squared = 2 * (lean_u * lean_v - g(0, 1) * depth2) * du * dv
    squared += constant - (g(0, 0) * depth2 - lean_u**2) * du**2
    squared += (lean_v**2 - g(1, 1) * depth2) * dv**2
    if part.rough is not None:
        squared += part.rough * bumps[:, band]
    met, root = squared > 0, squared.sqrt_()
    middle = lean_u * du + (t0 + lean_v * dv)
    front = torch.where(met, middle + root, FAR)
    if part.keep is None:
        return band, front
    ragged = 0.07 * bumps[:, band] if part.label == ID.hair else 0
    x, y, z = turn_back(frame, u, v[:, band], front)
    kept = met & part.keep(x, y + ragged, z)
    if part.label != ID.hair:
        return band, torch.where(kept, front, FAR)
    back = middle - root  # hair is hollow: its far side shows through the opening for the face
    x, y, z = turn_back(frame, u, v[:, band], back)
    back = torch.where(met & part.keep(x, y + ragged, z), back, FAR)
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
    """Smooth noise (B, channels, size, size), about -1..1: four octaves of a random lattice."""
    lattices = 2 * uniform(seed, positions, channels * (4**2 + 8**2 + 16**2 + 32**2), stream) - 1
    noise = 0
    for k, lattice in zip(
        (4, 8, 16, 32), lattices.split([channels * k * k for k in (4, 8, 16, 32)], 1), strict=True
    ):
        noise = noise + lattice.view(-1, channels, k, k) * (3 / k) ** 0.7
        noise = F.interpolate(noise, size=size if k == 32 else 2 * k, mode="bilinear")
    return noise


def edge(distance, soft):
    """Signed distance -> coverage in 0..1: 1 inside (negative), with a border `soft` wide."""
    return (0.5 - distance / soft).clamp_(0, 1)


def lay(albedo, alpha, color):
    """Paint in place. albedo: (B, 3, H, S); alpha: (B, H, S); color: (B, 3, 1, 1) or a number."""
    albedo += alpha[:, None] * (color - albedo)


def crop(scene, frame, v, low, high):
    """The rows of a scene that can show the box of the head with y in low..high; views, not copies."""
    y = frame[:, 1, :, None, None].unbind(1)
    middle = y[1] * ((low + high) / 2) + y[2] * 0.4
    half = y[0].abs() * 0.5 + y[1].abs() * ((high - low) / 2) + y[2].abs() * 0.45
    band = rows(v, middle, half)
    return types.SimpleNamespace(**{k: t[..., band, :] for k, t in vars(scene).items()})


def paint_skin(p, draw, s, skin, hair, pixel):
    """Blush, freckles, stubble, nostrils, and the shade of the hair at its root; in place."""
    across, face = s.x.abs(), (s.label == ID.skin) & (s.z > 0.05)
    red = skin * draw.rgb(0, 0.05).new_tensor([1.0, 0.72, 0.70]).view(1, 3, 1, 1)
    cheek = ((across - 0.28) ** 2 + (s.y - 0.24) ** 2).sqrt_() - 0.08
    lay(s.albedo, edge(cheek, 0.16) * face * draw(0, 0.6), red)
    spots = edge(0.93 - s.fine + 3 * cheek.clamp(min=0), 0.02) * face
    lay(s.albedo, spots * draw(-1, 0.6).clamp(min=0), red * 0.8)
    line = 0.41 - 1.2 * (across - 0.27).clamp(min=0) + 0.04 * s.cloud[:, 1]
    stubble = edge(line - s.y, 0.1) * (face & (s.y < 0.95))
    lay(s.albedo, stubble * p.beard * (0.55 + 0.45 * s.fine), hair * 0.9)
    roots = edge(hairline(p, s.x, s.y + 0.07 * s.cloud[:, 0], s.z), 0.12)
    lay(s.albedo, roots * (face & ~p.bald) * 0.8, hair)
    nostril = ((across - 0.05 * p.nose_w) / 0.032) ** 2 + ((s.y - p.nose_y - 0.062) / 0.02) ** 2
    lay(s.albedo, edge((nostril - 1) * 0.02, 1.5 * pixel) * (s.label == ID.nose) * 0.8, skin * 0.25)
    hollow = ((s.y - 0.08) / 0.10) ** 2 + ((s.z + 0.06) / 0.05) ** 2
    ear = (s.label == ID.l_ear) | (s.label == ID.r_ear)
    lay(s.albedo, edge((hollow - 1) * 0.04, 3 * pixel) * ear * 0.6, skin * 0.6)


def paint_eyes(p, draw, s, skin, hair, pixel):
    """Brows and eyes: colour, label, and the hollow around the eye; in place."""
    across, left = s.x.abs(), s.x > 0
    face = (s.label == ID.skin) & (s.z > 0.05)
    round_eye = ((across - p.eye_x) / 0.16) ** 2 + ((s.y - p.eye_y) / 0.12) ** 2
    s.height += face * (0.02 * (1 - 1.5 * round_eye).clamp(min=0) - 0.035 * torch.exp(-round_eye))

    a = (across - p.eye_x - 0.01) / 0.165  # -1 at the inner end, 1 at the outer end
    middle = p.brow_y - p.brow_arch * (1 - a**2) + p.brow_tilt * a
    brow = (s.y - middle).abs() - p.brow_h * (1 - 0.45 * a.clamp(min=0) ** 2)
    brow = torch.maximum(brow, (a.abs() - 1) * 0.165)
    color = torch.minimum(hair, skin * 0.62)
    lay(s.albedo, edge(brow, 1.6 * pixel) * face * (0.65 + 0.35 * s.fine), color)
    s.label.masked_fill_(face & left & (brow < 0), ID.l_brow)
    s.label.masked_fill_(face & ~left & (brow < 0), ID.r_brow)

    a = (across - p.eye_x) / p.eye_w
    bend = (1 - a**2).clamp(min=0)
    lids = p.eye_y - p.eye_tilt * a
    upper, lower = lids - p.eye_h * bend, lids + 0.7 * p.eye_h * bend
    eye = torch.maximum(torch.maximum(upper - s.y, s.y - lower), (a.abs() - 1) * p.eye_w)
    near, ball = face & (a.abs() < 1), face & (eye < 0)
    dx, dy = across - p.eye_x - torch.where(left, p.gaze, -p.gaze), s.y - p.eye_y - p.look + 0.008
    radius = (dx**2 + dy**2).sqrt_()
    glint = ((dx + torch.where(left, 0.02, -0.02)) ** 2 + (dy + 0.02) ** 2).sqrt_()
    crease = edge((upper - 0.028 - s.y).abs() - 0.008, 1.5 * pixel)
    lay(s.albedo, crease * near * 0.8, skin * 0.72)
    lay(s.albedo, edge(eye, pixel) * face, draw(0.78, 0.95)[:, None] - 0.12 * a.abs()[:, None])
    lay(s.albedo, edge(radius - 0.058, pixel) * ball, draw.tone(IRIS_TONES))
    lay(s.albedo, edge((radius - 0.056).abs() - 0.008, pixel) * ball * 0.6, 0.08)
    lay(s.albedo, edge(radius - 0.026, pixel) * ball, 0.03)
    lay(s.albedo, edge(glint - 0.012, pixel) * ball, 0.95)
    lay(s.albedo, edge((upper - s.y).abs() - 0.012, pixel) * near * 0.85, hair * 0.4)
    lay(s.albedo, edge((lower - s.y).abs() - 0.004, pixel) * near * 0.5, skin * 0.5)
    s.gloss.masked_fill_(ball, 0.8)
    s.label.masked_fill_(ball & left, ID.l_eye)
    s.label.masked_fill_(ball & ~left, ID.r_eye)


def paint_mouth(p, draw, s, skin, pixel):
    """Lips around a gap that shows teeth and dark: colour, label, and the folds above; in place."""
    face = (s.label == ID.skin) & (s.z > 0.05)
    groove = (s.x / 0.03) ** 2 + ((s.y - p.mouth_y + 0.12) / 0.05) ** 2
    fold = ((s.x.abs() - 0.17 - 0.35 * (s.y - 0.3)) / 0.03) ** 2 + ((s.y - 0.4) / 0.12) ** 2
    s.height -= face * (0.008 * torch.exp(-groove) + 0.006 * torch.exp(-fold))
    a = s.x / p.mouth_w
    bend = (1 - a**2).clamp(min=0)
    seam = p.mouth_y - p.smile * a**2
    roof, floor = seam - 0.25 * p.gap * bend, seam + 0.75 * p.gap * bend
    top = roof - p.upper * bend * (1 - 0.3 * (1 - 5 * a.abs()).clamp(min=0))
    bottom, wide = floor + p.lower * bend, (a.abs() - 1) * p.mouth_w
    inner = torch.maximum(torch.maximum(roof - s.y, s.y - floor), wide)
    outer = torch.maximum(torch.maximum(top - s.y, s.y - bottom), wide)
    teeth = torch.maximum(inner, s.y - roof - 0.055 * bend)
    near = face & (a.abs() < 1)
    lips = skin * torch.stack([draw(0.82, 1.0), draw(0.5, 0.75), draw(0.55, 0.8)], 1)
    lay(s.albedo, edge(outer, 1.5 * pixel) * face, lips)
    lay(s.albedo, edge((s.y - seam).abs() - 0.008, pixel) * (near & (p.gap == 0)), lips * 0.45)
    lay(s.albedo, edge(inner, pixel) * (near & (p.gap > 0)), lips * 0.2)
    lay(s.albedo, edge(teeth, pixel) * (near & (p.gap > 0) & draw.chance(0.75)), 0.88)
    s.label.masked_fill_(near & (s.y > top) & (s.y < roof), ID.u_lip)
    s.label.masked_fill_(near & (s.y > floor) & (s.y < bottom), ID.l_lip)
    s.label.masked_fill_(near & (s.y >= roof) & (s.y <= floor) & (p.gap > 0), ID.mouth)


def paint(p, draw, depth, label, frame, u, v, fine, cloud):
    """All colours. Returns the scene: label, albedo (B, 3, S, S), height and gloss (B, S, S), ..."""
    share = draw()
    skin = draw.tone(SKIN_TONES)
    dark = skin[:, 1] < 0.55
    hair = draw.tone(HAIR_TONES, torch.where(dark, 0.4, 0.999 + 0 * share))
    table = torch.stack([skin] * len(FULL), 2)  # (B, 3, 17, 1, 1)
    table[:, :, ID.hair], table[:, :, ID.cloth] = hair, draw.rgb(0.05, 0.9)
    table[:, :, ID.hat] = draw.rgb(0.05, 0.9)
    table[:, :, 0] = torch.where(draw.chance(0.7)[:, None], skin, draw.rgb(0.2, 0.7))  # an occluder
    index = label.long().flatten(1)[:, None].expand(-1, 3, -1)
    s = types.SimpleNamespace(label=label, fine=fine, cloud=cloud)
    s.albedo = table.flatten(2).gather(2, index).view(*cloud[:, :3].shape)
    s.x, s.y, s.z = turn_back(frame, u, v, depth)
    s.height = depth + 0.004 * cloud[:, 3] + 0.0012 * fine

    # Strands lie in planes through the head, so hair falls from the parting to the sides.
    hairy = label == ID.hair
    plane = s.z + 0.6 * (s.x - p.part).abs() + 0.2 * s.y + 0.14 * cloud[:, 2]
    strand = torch.sin(83 * plane) + torch.sin(151 * plane) + torch.sin(29 * plane)
    s.height += hairy * ((0.003 + 0.02 * p.curl) * strand)
    grain = torch.where(hairy, 0.06 * strand + 0.2 * (fine - 0.5), 0.06 * (cloud[:, 1] + fine - 0.5))
    s.albedo *= 1 + grain[:, None]
    s.gloss = torch.where(hairy, 0.15 + 0.06 * strand, torch.where(label == ID.cloth, 0.02, 0.25))

    pixel = (u[:, :, -1:] - u[:, :, :1]) / u.shape[2] / 2 + (v[:, -1:] - v[:, :1]) / v.shape[1] / 2
    paint_skin(p, draw, crop(s, frame, v, -0.9, 1.0), skin, hair, pixel)
    paint_eyes(p, draw, crop(s, frame, v, -0.33, 0.15), skin, hair, pixel)
    paint_mouth(p, draw, crop(s, frame, v, 0.25, 0.8), skin, pixel)
    return s


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
    lx, ly, lz = draw(-1, 1), draw(-1, 0.2), draw(0.6, 1.4)
    norm = (lx**2 + ly**2 + lz**2).rsqrt()
    lx, ly, lz = lx * norm, ly * norm, lz * norm
    cosine = nx * lx + ny * ly + nz * lz
    half = (2 + 2 * lz).rsqrt()  # the half vector between light and viewer has norm 1 / half
    shine = ((cosine + nz) * half).clamp_(min=0).square().square().square().square()
    wide = F.avg_pool2d(F.avg_pool2d(s.height.clamp(min=-1)[:, None], 5, 2, 2), 5, 2, 2)
    wide = F.interpolate(wide, size=s.height.shape[1:], mode="bilinear")[:, 0]
    ambient = draw(0.4, 0.75)
    shade = ambient + (1.2 - ambient) * (0.15 + 0.85 * cosine).clamp_(min=0)
    shade *= 1 - 1.6 * (wide - s.height).clamp_(0, 0.25)
    added = s.gloss * shine * draw(0.1, 0.7) + draw(0, 0.15) * (1 - nz) ** 3
    return s.albedo * shade[:, None] + added[:, None]


def backdrop(draw, cloud, u, v):
    """(B, 3, S, S): studio grey or a colour, with a gradient and sometimes blobs."""
    grey = draw(0.45, 0.95)[:, None] * (1 + draw.rgb(-0.04, 0.04))
    color = torch.where(draw.chance(0.6)[:, None], grey, draw.rgb(0.1, 0.95))
    slope = draw(-0.15, 0.15) * u + draw(-0.15, 0.15) * v
    blobs = torch.where(draw.chance(0.35), draw(0.1, 0.4), 0.02)
    return color + slope[:, None] + blobs[:, None] * cloud[:, :3]


def wear_glasses(p, draw, label, image, depth, frame, u, v):
    """Rims and lenses, lying on a shell around the face: label and image with glasses on."""
    shell = Part(ID.glasses, (0, 0, -0.02), (0.64 * p.width, 0.8, 0.82), show=p.glasses)
    band, front = hit(shell, frame, u, v, None)
    x, y, z = turn_back(frame, u, v[:, band], front)
    across, pixel, there = x.abs(), 2.2 / v.shape[1], (front > depth[:, band]) & (z > -0.05)
    wide, high, square, thick = draw(0.17, 0.215), draw(0.13, 0.18), draw(2, 5), draw(0.018, 0.045)
    a, b = (across - p.eye_x - 0.01) / wide, (y - p.eye_y - 0.02) / high
    power = torch.exp(square * a.abs().clamp_(min=1e-3).log())  # a superellipse: round to square
    power += torch.exp(square * b.abs().clamp_(min=1e-3).log())
    ring = (torch.exp(power.log() / square) - 1) * high
    bridge = torch.maximum((y - p.eye_y + 0.01).abs() - 0.02, across - p.eye_x)
    arm = torch.maximum((y - p.eye_y + 0.02).abs() - 0.02, p.eye_x - across)
    rim = torch.where(ring < 0, 1.0, torch.minimum(bridge, arm))
    rim = torch.minimum(ring.abs() - thick, rim)
    lens, alpha = (ring < 0) & there, edge(rim, pixel) * there
    label, image = label.clone(), image.clone()
    lay(image[:, :, band], draw(-0.3, 0.45).clamp(min=0.06) * lens, draw.rgb(0.2, 0.6))
    lay(image[:, :, band], alpha, draw.rgb(0.02, 0.5) * draw(0.1, 1)[:, None])
    behind = label[:, band]
    eyes = (behind >= ID.l_brow) & (behind <= ID.r_eye)
    behind.masked_fill_(there & ((rim < 0) | (lens & ~eyes)), ID.glasses)
    return label, image


def camera(draw, image, fine):
    """What a photo adds: exposure, cast, gamma, saturation, a light blur, sensor noise."""
    image = image.clamp(1e-3, 1.2) * draw(0.85, 1.1)[:, None] * (1 + draw.rgb(-0.05, 0.05))
    image = torch.exp(image.log_() * draw(0.7, 1.2)[:, None])
    grey = image.mean(1, keepdim=True)
    saturation = torch.where(draw.chance(0.3), draw(0.0, 0.6), draw(0.8, 1.2))
    image = grey + saturation[:, None] * (image - grey)
    soft = torch.where(draw.chance(0.75), draw(0.4, 1.0), 0.0)[:, None]
    wide = F.pad(image, (1, 1, 1, 1), mode="replicate")
    wide = wide[..., :-2] + 2 * wide[..., 1:-1] + wide[..., 2:]
    wide = (wide[..., :-2, :] + 2 * wide[..., 1:-1, :] + wide[..., 2:, :]) / 16
    return image + soft * (wide - image) + (draw(0.0, 0.04) * (fine - 0.5))[:, None]


def faces(seed, positions, size, scheme="full"):
    """Render B faces of the endless row that a seed has.

    positions: (B,) int64, their places in the row. Returns, on the device of `positions`,
    {"image": (B, 3, size, size) uint8, "semantic": (B, size, size) uint8, "yaw": (B,) float32 degrees,
    positive where the face looks to image left}. A face depends on (seed, position) alone, on the CPU
    bit for bit.
    """
    draw = Draw(seed, positions)
    p = person(draw)
    frames = {
        "head": rotation(p.yaw, p.pitch, p.roll),
        "body": rotation(p.yaw * draw(0.5, 1), 0 * p.yaw, 0.3 * p.roll),
        "camera": torch.eye(3, device=positions.device).expand(len(positions), 3, 3),
    }
    # Half the height and width of the view; photos are often portraits, stretched to a square.
    half_v = draw(0.95, 1.35) + 0.5 * p.hair
    reach = 0.64 + p.hair + 0.26 * p.yaw.sin().abs()
    half_u = torch.maximum(half_v / draw(0.9, 1.45), reach * draw(0.92, 1.15))
    grid = (torch.arange(size, device=positions.device) + 0.5) * (2 / size) - 1
    u = grid.view(1, 1, -1) * half_u + draw(-0.07, 0.07) - 0.06 * p.yaw.sin()
    v = grid.view(1, -1, 1) * half_v + draw(-0.06, 0.12) - 0.3 * p.hair

    fine = uniform(seed, positions, size * size, stream=1).view(-1, size, size)
    cloud = clouds(seed, positions, size, stream=2)
    depth, label = march(parts(p, draw), frames, u, v, cloud[:, 0])
    scene = paint(p, draw, depth, label, frames["head"], u, v, fine, cloud)
    image = light(draw, scene, 2 * half_u / size, 2 * half_v / size)
    image = torch.where((depth < FAR + 1)[:, None], backdrop(draw, cloud, u, v), image)
    worn, image = wear_glasses(p, draw, label, image, depth, frames["head"], u, v)
    image = camera(draw, image, fine)
    mapping = SCHEMES[scheme]
    lookup = torch.tensor(mapping.lookup, dtype=torch.uint8, device=positions.device)
    return {
        "image": (image.clamp_(0, 1) * 255).round_().to(torch.uint8),
        "semantic": lookup[(label if mapping.see_through else worn).long()],
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
