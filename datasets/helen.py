"""HELEN with parsing labels, in two packagings; the classes and sides are LaPa's in both.

Relabelled (github.com/JPlin/Relabeled-HELEN; the one SegFace expects), 2,000 / 330 faces or so:

    train/ test/ test_resize/    each {n}_image.jpg, {n}_label.png (8-bit ids), {n}_viz.jpg

Hair and skin of train are labelled anew, test keeps the original annotation; test_resize is test
once more and is ignored. There is no val: hold out a part of train.

Smith et al. (SmithCVPR2013_dataset_original or _resized), 2,000 / 230 / 100 faces:

    images/{n}.jpg    labels/{n}/{n}_lbl00.png ... {n}_lbl10.png    exemplars|tuning|testing.txt

Eleven soft 8-bit maps, one a class, of which the largest wins; lines of the lists are `12 , name`.
Skin leaves out ears and neck. Source: Smith, Zhang, Brandt, Lin, Yang, CVPR 2013.
"""

import os

import numpy as np

from datasets.faces import Faces, Sample, pair, read_lines, some
from datasets.images import decode, open_image, pictures
from datasets.lapa import CLASSES, COLORS, FLIP_PAIRS
from datasets.masks import read_mask
from utils.errors import UserError

LOOKS_FOR = (
    "HELEN: train/ and test/ with {n}_image.jpg and {n}_label.png, or Smith's images/, labels/{n}/ "
    "and exemplars.txt"
)


def recognise(root):
    """`Faces` if `root` is one of the two packagings of HELEN, else None."""
    if os.path.exists(os.path.join(root, "exemplars.txt")):
        splits, notes = _smith(root)
        return Faces("helen_smith", CLASSES, COLORS, FLIP_PAIRS, splits, read_label, notes)
    splits = {split: _relabelled(root, split) for split in ("train", "test")}
    if not any(splits.values()):
        return None
    notes = ["hair and skin are labelled anew in train only; test is the original annotation"]
    if os.path.isdir(os.path.join(root, "test_resize")):
        notes.append("test_resize/ ignored: it is test once more, resized")
    splits = {split: samples for split, samples in splits.items() if samples}
    return Faces("helen", CLASSES, COLORS, FLIP_PAIRS, splits, read_label, notes)


def read_label(sample):
    """Ids of a hard mask, or the class whose soft map is largest (the first of equals)."""
    if isinstance(sample.label, str):
        return read_mask(sample.label)
    maps = [decode(open_image(path), path, "L") for path in sample.label]
    if len({m.shape for m in maps}) > 1:
        raise UserError(f"{os.path.dirname(sample.label[0])}: soft maps of different sizes")
    return np.stack(maps).argmax(0).astype(np.uint8)


def _relabelled(root, split):
    folder = os.path.join(root, split)
    photos, labels = (
        {s.removesuffix(end): p for s, p in pictures(folder, suffix).items() if s.endswith(end)}
        for end, suffix in (("_image", (".jpg",)), ("_label", (".png",)))
    )
    samples = []
    if not photos:  # somebody's own {n}.jpg and {n}_label.png
        return samples
    for stem, image, label in pair(photos, labels, folder):
        sample_id = f"{split}/{stem}"
        samples.append(Sample(sample_id, image, label, sample_id))
    return samples


def _smith(root):
    photos = pictures(os.path.join(root, "images"))
    labels = os.path.join(root, "labels")
    labelled = set(os.listdir(labels)) if os.path.isdir(labels) else set()
    splits = {}
    left = dict(photos)
    for split, listed in (("train", "exemplars"), ("val", "tuning"), ("test", "testing")):
        path = os.path.join(root, f"{listed}.txt")
        names = [line.rsplit(",", 1)[-1].strip() for line in read_lines(path) if line.strip()]
        if absent := [n for n in names if n not in photos or n not in labelled]:
            raise UserError(f"{path}: {len(absent)} have no photo or no labels: {some(absent)}")
        splits[split] = [_soft(n, photos[n], os.path.join(labels, n)) for n in names]
        left = {n: path for n, path in left.items() if n not in names}
    return splits, [f"{len(left)} photos are in no list: {some(left)}"] if left else []


def _soft(name, image, folder):
    found = pictures(folder)
    stems = [f"{name}_lbl{i:02d}" for i in range(len(CLASSES))]
    if absent := [stem for stem in stems if stem not in found]:
        raise UserError(f"{folder}: soft maps missing: {some(absent)}")
    maps = tuple(found[stem] for stem in stems)
    return Sample(f"images/{name}", image, maps, f"images/{name}")
