"""CelebAMask-HQ as downloaded: photos of 1024 pixels, and a 512-pixel mask for every part present.

    CelebA-HQ-img/{0..29999}.jpg                                 not zero-padded
    CelebAMask-HQ-mask-anno/{0..14}/{00000..29999}_{part}.png    folder = id // 2000; white = part
    CelebA-HQ-to-CelebA-mapping.txt                              idx orig_idx orig_file
    CelebAMask-HQ-pose-anno.txt                                  0.jpg yaw pitch roll; optional

Part masks overlap and the later one wins, so the order of painting is part of the ground truth, and
figures of two orders do not compare. `canonical` is the official order (g_mask.py): eyes over
glasses, neck over necklace. `farl` is that of FaRL and SegFace: glasses over eyes, necklace over
neck. The ids are the canonical ones in both. l_ and r_ are the person's own left and right: l_eye
lies right of r_eye in the image. ear_r is an earring, neck_l a necklace, l_lip the lower lip.

The split is CelebA's own, by the number of the original file: 24,183 / 2,993 / 2,824 photos.
Source: Lee, Liu, Wu, Luo, CVPR 2020; non-commercial.
"""

import os
import re

import numpy as np

from datasets.faces import Faces, Sample, read_lines, some
from datasets.images import decode, open_image, pictures
from utils.errors import UserError

LOOKS_FOR = "CelebAMask-HQ: CelebA-HQ-img/ with CelebAMask-HQ-mask-anno/"
CLASSES = (
    "background skin nose eye_g l_eye r_eye l_brow r_brow l_ear r_ear mouth u_lip l_lip hair hat "
    "ear_r neck_l neck cloth"
).split()
COLORS = [
    *((0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204)),
    *((0, 255, 255), (255, 204, 204), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0)),
    *((0, 0, 153), (0, 0, 204), (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51)),
    (0, 204, 0),
]
FLIP_PAIRS = [(4, 5), (6, 7), (8, 9)]
PART_ORDERS = {  # first painted first
    "canonical": CLASSES[1:],
    "farl": (
        "neck skin cloth l_ear r_ear l_brow r_brow l_eye r_eye nose mouth l_lip u_lip hair eye_g "
        "hat ear_r neck_l"
    ).split(),
}
LAST_TRAIN, LAST_VAL = 162770, 182637  # CelebA's list_eval_partition.txt: file numbers from 1


def recognise(root, part_order="canonical"):
    """`Faces` if `root` is CelebAMask-HQ, else None. part_order: `canonical` or `farl`."""
    if not os.path.isdir(os.path.join(root, "CelebA-HQ-img")):
        return None
    if part_order not in PART_ORDERS:
        raise UserError(f"part order {part_order}: choose one of {', '.join(PART_ORDERS)}")
    for name in ("CelebAMask-HQ-mask-anno", "CelebA-HQ-to-CelebA-mapping.txt"):
        if not os.path.exists(os.path.join(root, name)):
            raise UserError(f"{root}: CelebA-HQ-img/ is there, {name} is not; unpack the whole zip")
    photos = pictures(os.path.join(root, "CelebA-HQ-img"))
    parts = _part_files(os.path.join(root, "CelebAMask-HQ-mask-anno"))
    split_of = _split_of(os.path.join(root, "CelebA-HQ-to-CelebA-mapping.txt"))
    yaws = _yaws(os.path.join(root, "CelebAMask-HQ-pose-anno.txt"))
    if bare := [stem for stem in photos if stem in split_of and stem not in parts]:
        raise UserError(f"{root}: {len(bare)} photos have no part mask at all: {some(bare)}")
    splits, notes = {}, []
    for stem in sorted(photos.keys() & split_of.keys(), key=int):
        label = tuple(parts[stem][p] for p in PART_ORDERS[part_order] if p in parts[stem])
        sample_id = f"CelebA-HQ-img/{stem}"
        sample = Sample(sample_id, photos[stem], label, sample_id, yaws.get(stem))
        splits.setdefault(split_of[stem], []).append(sample)
    for stems, what in (
        (photos.keys() - split_of.keys(), "photos are not in the mapping file, so in no split"),
        (split_of.keys() - photos.keys(), "photos of the mapping file are not there"),
        (parts.keys() - photos.keys(), "ids have part masks but no photo"),
    ):
        if stems:
            notes.append(f"{len(stems)} {what}: {some(sorted(stems))}")
    notes.append(f"overlapping part masks painted in {part_order} order")
    options = {"part_order": part_order}
    return Faces("celebamask", CLASSES, COLORS, FLIP_PAIRS, splits, read_label, notes, options)


def read_label(sample):
    """Part masks painted in the order of `sample.label`, at their own size: half the photo's."""
    masks = [decode(open_image(path), path, "L") > 127 for path in sample.label]
    if len({mask.shape for mask in masks}) > 1:
        raise UserError(f"{sample.label[0]}: the other part masks of this photo differ in size")
    ids = np.zeros(masks[0].shape, np.uint8)
    for path, mask in zip(sample.label, masks, strict=True):
        ids[mask] = CLASSES.index(os.path.basename(path)[6:-4])  # 00012_u_lip.png
    return ids


def _part_files(folder):
    """{photo's stem: {part: path}}. Each folder is listed once: there are 372,767 files."""
    found = {}
    for below in sorted(os.listdir(folder)):
        inside = os.path.join(folder, below)
        for name in os.listdir(inside) if os.path.isdir(inside) else []:
            if match := re.fullmatch(r"(\d{5})_(\w+)\.png", name):
                if match[2] not in CLASSES[1:]:
                    raise UserError(f"{os.path.join(inside, name)}: {match[2]} is no known part")
                found.setdefault(str(int(match[1])), {})[match[2]] = os.path.join(inside, name)
    return found


def _split_of(path):
    """{photo's stem: split}. orig_idx counts from 0, CelebA's file numbers from 1."""
    rows = [line.split() for line in read_lines(path)]
    numbers = {r[0]: int(r[1]) + 1 for r in rows if len(r) == 3 and r[0].isdigit()}  # no header
    return {
        stem: "train" if number <= LAST_TRAIN else "val" if number <= LAST_VAL else "test"
        for stem, number in numbers.items()
    }


def _yaws(path):
    """{photo's stem: degrees}, empty without the file. Two header lines: a count, column names."""
    rows = [line.split() for line in read_lines(path)] if os.path.exists(path) else []
    return {r[0][:-4]: float(r[1]) for r in rows if len(r) == 4 and r[0].endswith(".jpg")}
