"""Your own faces: photos and masks paired by name, and a classes.json that says what masks mean.

    images/{name}.jpg    labels/{name}.png        or the same two below train/, val/ and test/
    unlabelled/{name}.jpg                         optional: photos nobody labelled
    classes.json                                  optional, but recommended:

    {"classes": ["background", "skin", "left eye", "right eye"],
     "flip_pairs": [["left eye", "right eye"]],           classes that a mirror image swaps
     "colors": [[0, 0, 0], [255, 200, 0], ...],           for display, and for coloured masks
     "groups": {"anna_01": "anna", "anna_02": "anna"},    the person in a photo, for honest splits
     "yaw": {"anna_01": -30}}                             degrees, 0 is frontal

Masks hold class ids (8-bit PNG, grey or palette; 255 is never counted). Where classes.json gives
colors, an RGB mask is read by nearest colour, 255 beyond a distance of 40; so is a palette that shows them
in another order. Where it does not say flip_pairs, classes whose names differ in the side alone are paired.
Without classes.json the classes are counted from the masks and nothing is known of left and right.
"""

import functools
import json
import os

import numpy as np

from datasets.faces import Faces, Sample, pair, side_pairs, some
from datasets.images import pictures, read_mask, why_absent
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

LOOKS_FOR = "your own: images/ and labels/, in the folder itself or in its train/, val/, test/"
KEYS = ("classes", "colors", "flip_pairs", "groups", "yaw")


def recognise(root):
    """`Faces` if `root` holds images/ and labels/, else None."""
    below = {"train": root} if _holds(root) else {}
    nested = {s: os.path.join(root, s) for s in ("train", "val", "test")}
    nested = {split: folder for split, folder in nested.items() if _holds(folder)}
    if below and nested:
        raise UserError(f"{root}: images/ both here and in {', '.join(nested)}/; keep one of the two")
    if not (below or nested):
        return None
    info = _read_info(os.path.join(root, "classes.json"))
    found = []  # (split, stem, photo, label)
    for split, folder in (below or nested).items():
        photos, labels = (pictures(os.path.join(folder, kind)) for kind in ("images", "labels"))
        found += [(split, *row) for row in pair(photos, labels, folder)]
    unlabelled = os.path.join(root, "unlabelled")
    inner = os.path.join(unlabelled, "images")
    photos = pictures(inner if os.path.isdir(inner) else unlabelled)
    found += [("unlabelled", stem, photo, None) for stem, photo in photos.items()]

    for key in ("groups", "yaw"):
        if strange := info[key].keys() - {stem for _, stem, _, _ in found}:
            raise UserError(f"{root}/classes.json: {key} of no photo here: {some(sorted(strange))}")
    splits = {}
    for split, stem, photo, label in found:
        sample_id = f"{split}/{stem}"
        group = info["groups"].get(stem, sample_id)
        sample = Sample(sample_id, photo, label, group, info["yaw"].get(stem))
        splits.setdefault(split, []).append(sample)

    read = functools.partial(read_label, colors=info["colors"])
    classes = info["classes"]
    notes = info["notes"]
    if not classes:
        classes, notes = _count_classes(root, [row[3] for row in found if row[3]])
    colors = info["colors"] or _palette(len(classes))
    return Faces("folder", classes, colors, info["flip_pairs"], splits, read, notes)


def read_label(sample, colors=()):
    """Ids as they are, or, where the mask shows them, those of `colors`; see `images.read_mask`."""
    return read_mask(sample.label, colors)


def _holds(folder):
    return any(os.path.isdir(os.path.join(folder, kind)) for kind in ("images", "labels"))


def _count_classes(root, labels):
    counts = np.zeros(256, np.int64)
    faults = []
    for label in labels:
        try:
            counts += np.bincount(read_mask(label).ravel(), minlength=256)
        except UserError as error:
            faults.append(str(error))
    if faults:
        shown = "; ".join(faults[:5])
        raise UserError(f"{root}: {len(faults)} of {len(labels)} masks cannot be read: {shown}")
    ids = np.flatnonzero(counts[:IGNORE_INDEX])
    if not ids.any():
        raise UserError(f"{root}: no mask holds an id but 0 and {IGNORE_INDEX}; save ids 0, 1, 2, ...")
    often = ids[counts[ids] >= counts.sum() / 200]
    if reason := why_absent(counts, often):
        raise UserError(f"{root}: no classes.json, and as class ids the masks make no sense: {reason}")
    classes = [f"class {i}" for i in range(ids[-1] + 1)]
    found = f"{len(classes)} classes counted from {len(labels)} masks (ids {some(map(str, ids))})"
    return classes, [
        f"no classes.json: {found}; a flip swaps none: if they tell sides apart, name flip_pairs"
    ]


def _read_info(path):
    """classes.json, checked: {key: value} for all of `KEYS`, all empty without the file, and `notes`. Where
    it does not say flip_pairs, classes whose names differ in the side alone are paired."""
    empty = {"classes": [], "colors": [], "flip_pairs": [], "groups": {}, "yaw": {}}
    if not os.path.exists(path):
        return empty | {"notes": []}
    try:
        with open(path, encoding="utf-8") as file:
            given = json.load(file)
        info = empty | given
        names = [str(name) for name in info["classes"]]
        ids = {name: i for i, name in enumerate(names)}
        colors = [tuple(int(v) for v in color) for color in info["colors"]]
        pairs = [tuple(ids.get(c, c) for c in pair) for pair in info["flip_pairs"]]
        yaw = {stem: float(degrees) for stem, degrees in info["yaw"].items()}
        groups = {stem: str(person) for stem, person in info["groups"].items()}
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); datasets/folder.py shows one") from None
    swapped = [c for pair in pairs for c in pair]
    if strange := info.keys() - KEYS:
        raise UserError(f"{path}: {some(sorted(strange))}: not among {', '.join(KEYS)}")
    if not 2 <= len(ids) == len(names) <= IGNORE_INDEX:
        raise UserError(f"{path}: classes: need 2 to {IGNORE_INDEX} different names")
    if colors and not (
        len(set(colors)) == len(colors) == len(names)
        and all(len(c) == 3 and 0 <= min(c) <= max(c) <= 255 for c in colors)
    ):
        raise UserError(f"{path}: colors: need {len(names)} different [r, g, b] of 0..255")
    if (
        any(len(pair) != 2 for pair in pairs)
        or len(set(swapped)) < len(swapped)
        or not set(swapped) <= set(ids.values())
    ):
        raise UserError(f"{path}: flip_pairs: need pairs of classes, each class once")
    notes = []
    if "flip_pairs" not in given and (pairs := side_pairs(names)):
        swapped = some(f"{names[a]} with {names[b]}" for a, b in pairs)
        notes.append(f'a flip swaps {swapped}, by their names; "flip_pairs": [] in classes.json: none')
    return dict(classes=names, colors=colors, flip_pairs=pairs, groups=groups, yaw=yaw, notes=notes)


def _palette(n):
    """n different colours, black first: the bits of the id dealt to red, green and blue in turn."""
    return [
        tuple(sum((i >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for c in range(3))
        for i in range(n)
    ]
