"""LaPa as downloaded: 18,176 / 2,000 / 2,000 faces; HELEN and iBugMask share its classes.

    {train,val,test}/images/{name}.jpg    labels/{name}.png (8-bit ids)    landmarks/{name}.txt

Left and right are the image's, the opposite of CelebAMask-HQ. Skin includes ears; neck, hats,
sunglasses and hands are background. Some photos come from 300W-LP, which turns one photograph to
several head poses ({photo}_0, {photo}_1, ...): these are one group, so that no split parts them.
Source: Liu, Shi, Shen, Si, Wang, Mei, AAAI 2020; non-commercial.
"""

import os
import re

from datasets.faces import Faces, Sample, pair
from datasets.images import pictures
from datasets.masks import read_mask

LOOKS_FOR = "LaPa: {train,val,test}/ each with images/, labels/ and landmarks/"
CLASSES = (
    "background skin left_eyebrow right_eyebrow left_eye right_eye nose upper_lip inner_mouth lower_lip hair"
).split()
COLORS = [
    *((0, 0, 0), (0, 153, 255), (102, 255, 153), (0, 204, 153), (255, 255, 102), (255, 255, 204)),
    *((255, 153, 0), (255, 102, 255), (102, 0, 51), (255, 204, 255), (255, 0, 102)),
]
FLIP_PAIRS = [(2, 3), (4, 5)]


def recognise(root):
    """`Faces` if `root` is LaPa, else None. The landmarks, or else the folder's name, tell it
    from somebody's own images/ and labels/; a classes.json always means the latter."""
    folders = {split: os.path.join(root, split) for split in ("train", "val", "test")}
    splits = [s for s, path in folders.items() if os.path.isdir(os.path.join(path, "labels"))]
    marked = any(os.path.isdir(os.path.join(folders[s], "landmarks")) for s in splits)
    named = os.path.basename(os.path.abspath(root)).lower() == "lapa"
    own = os.path.exists(os.path.join(root, "classes.json"))
    if own or not splits or not (marked or named):
        return None
    samples = {split: _samples(folders[split], split) for split in splits}
    return Faces("lapa", CLASSES, COLORS, FLIP_PAIRS, samples, read_label)


def read_label(sample):
    return read_mask(sample.label)


def _samples(folder, split):
    photos = pictures(os.path.join(folder, "images"))
    labels = pictures(os.path.join(folder, "labels"))
    samples = []
    for stem, image, label in pair(photos, labels, folder):
        turned = re.fullmatch(r"((?:AFW|HELEN|IBUG|LFPW)_.+)_\d+", stem)
        sample_id = f"{split}/{stem}"
        samples.append(Sample(sample_id, image, label, turned[1] if turned else sample_id))
    return samples
