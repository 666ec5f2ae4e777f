"""Synthetic faces: any number of labelled faces at any yaw, from a seed, with nothing on disk.

A head is two dozen ellipsoids with flat features painted on them (`parts.py`), which a small ray
caster turns into labels and a shaded photo (`render.py`). Identity, hair, glasses, hat,
pose, framing, light and camera are random. Labels follow the class list of a real data set on
request, so that a parser trained here can be fine-tuned there. Nobody is copied.
"""

import typing

import torch

from datasets import celebamask, fasseg, lapa
from datasets.synthetic.parts import FULL, backdrop, paint, parts, person, wear_glasses
from datasets.synthetic.render import FAR, Draw, camera, clouds, light, march, rotation
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX
from utils.rng import uniform

FULL_COLORS = [(0, 0, 0), (236, 188, 160), (120, 72, 40), (176, 112, 64), (40, 96, 224)]
FULL_COLORS += [(64, 180, 240), (110, 110, 130), (255, 140, 0), (200, 90, 0), (0, 180, 120)]
FULL_COLORS += [(110, 0, 50), (235, 60, 100), (255, 130, 160), (200, 150, 110), (90, 40, 110)]
FULL_COLORS += [(90, 150, 60), (230, 220, 60)]


class Scheme(typing.NamedTuple):
    """What a class list means in terms of `FULL`. lookup[i]: the scheme's id of FULL[i], or 255."""

    classes: list[str]
    colors: list[tuple[int, int, int]]
    flip_pairs: list[tuple[int, int]]
    lookup: list[int]
    see_through: bool = False  # glasses are labelled as what is behind them


FASSEG_NAMES = {
    "l_ear": "skin",
    "r_ear": "skin",
    "neck": "skin",
    "l_brow": "hair",
    "r_brow": "hair",
}
FASSEG_NAMES |= {"l_eye": "eyes", "r_eye": "eyes", "u_lip": "mouth", "l_lip": "mouth"}
LAPA_NAMES = {"l_ear": "skin", "r_ear": "skin", "glasses": None, "mouth": "inner_mouth"}
LAPA_NAMES |= {"l_brow": "right_eyebrow", "r_brow": "left_eyebrow"}  # left is image left here
LAPA_NAMES |= {
    "l_eye": "right_eye",
    "r_eye": "left_eye",
    "u_lip": "upper_lip",
    "l_lip": "lower_lip",
}


def _scheme(module, same, see_through=False):
    """A data set's scheme. same: FULL name -> its name there, or None to ignore; equal names stay,
    and whatever the data set does not name is background."""
    classes = list(module.CLASSES)
    names = [same.get(name, name if name in classes else "background") for name in FULL]
    lookup = [IGNORE_INDEX if name is None else classes.index(name) for name in names]
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


def faces(seed, positions, size, scheme="full"):
    """Render B faces of the endless row that a seed has.

    positions: (B,) int64, their places in the row. Returns, on the device of `positions`, `image`
    (B, 3, size, size) uint8, `semantic` (B, size, size) uint8, `yaw` (B,) float32 in degrees, positive
    where the face looks to image left, and `aspect` (B,), width / height of the view, which is stretched
    to the square. A face depends on (seed, position) alone, on the
    CPU bit for bit.
    """
    draw = Draw(seed, positions)
    p = person(draw)
    frames = {
        "head": rotation(p.yaw, p.pitch, p.roll),
        "body": rotation(p.yaw * draw(0.5, 1), 0 * p.yaw, 0.3 * p.roll),
        "camera": rotation(0 * p.yaw, 0 * p.yaw, draw(-1.6, 1.6)),
    }
    # Half the height and width of the view: the box of the head, stretched to a square, or a looser one.
    loose = torch.where(draw.chance(0.1), draw(0.1, 0.45), 0.0)
    half_v = draw(0.88, 1.02) + 0.5 * p.hair + loose
    reach = 0.61 + 0.8 * p.hair + 0.24 * p.yaw.sin().abs()
    half_u = reach * draw(0.82, 1.03) + loose
    grid = (torch.arange(size, device=positions.device) + 0.5) * (2 / size) - 1
    u = grid.view(1, 1, -1) * half_u + draw(-0.05, 0.05) - 0.02 * p.yaw.sin()
    v = grid.view(1, -1, 1) * half_v + draw(-0.01, 0.09) - 0.4 * p.hair

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
        "aspect": (half_u / half_v).flatten(),
    }


def attributes(seed, positions):
    """What there is to say of the faces that `faces` renders: {name: (B,) bool}. Left and right are the
    image's; whoever looks neither there nor into the camera is in between."""
    p = person(Draw(seed, positions))
    yaw = torch.rad2deg(p.yaw)
    said = {
        "glasses": p.glasses,
        "hat": p.hat,
        "beard": p.beard > 0.3,
        "bald": p.bald & ~p.hat,
        "long hair": p.long,
        "short hair": ~(p.bald | p.long | p.big | p.bun),
        "left": yaw > 35,
        "right": yaw < -35,
        "camera": yaw.abs() < 20,
    }
    return {name: value.flatten() for name, value in said.items()}


class SyntheticFaces:
    """n faces of one seed as a data set; `__getitem__` takes a list of indices in 0..n-1."""

    def __init__(self, n, seed, size, scheme="full", device="cpu"):
        self.n, self.seed, self.size, self.scheme, self.device = n, seed, size, scheme, device

    def __len__(self):
        return self.n

    def __getitem__(self, indices):
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.device)
        return faces(self.seed, index, self.size, self.scheme) | {"index": index}
