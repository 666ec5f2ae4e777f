"""Your own faces: photos and masks paired by name, and a classes.json that says what masks mean.

    images/{name}.jpg    labels/{name}.png        or the same two below train/, val/ and test/,
                                                  or train/, val/ and test/ below the two
    {name}.jpg           {name}_mask.png          or both in one folder
    unlabelled/{name}.jpg                         optional: photos nobody labelled; with classes.json they may
                                                  be all that there is
    classes.json                                  optional, but recommended:

    {"classes": ["background", "skin", "left eye", "right eye"],
     "flip_pairs": [["left eye", "right eye"]],           classes that a mirror image swaps
     "colors": [[0, 0, 0], [255, 200, 0], ...],           for display, and for coloured masks
     "groups": {"anna_01": "anna", "anna_02": "anna"},    the person in a photo, for honest splits
     "yaw": {"anna_01": -30}}                             degrees, 0 is frontal

Folders may have any of the names in `PHOTOS`, `MASKS` and `faces.SPLIT_OF`, in any case; one of
`faces.MASK_SUFFIXES` may follow the name of every mask.

Masks hold class ids (8-bit PNG, grey or palette; 255 is never counted). Where classes.json gives
colors, an RGB mask is read by nearest colour, 255 beyond a distance of 40; so is a palette that shows them
in another order. Where it does not say flip_pairs, classes whose names differ in the side alone are paired.
Without classes.json the classes are counted from the masks and nothing is known of left and right.
"""

import difflib
import functools
import json
import os

import numpy as np

from datasets import unread
from datasets.faces import (
    MASK_SUFFIXES,
    Faces,
    Sample,
    check_classes,
    counted,
    not_read,
    pair,
    palette,
    side_pairs,
    some,
    split_folders,
)
from datasets.images import SUFFIXES, pictures
from datasets.masks import read_mask, why_absent
from utils.errors import UserError
from utils.files import read_json
from utils.metrics import IGNORE_INDEX

LOOKS_FOR = "your own: images/ and labels/, in the folder itself or in its train/, val/, test/"
PHOTOS = ("images", "image", "imgs", "img", "photos", "jpegimages")
MASKS = (
    *("labels", "label", "masks", "mask", "segmentations", "segmentation", "annotations"),
    *("segmentationclass", "segmentationclasspng"),
)
UNLABELLED = ("unlabelled", "unlabeled")
KEYS = ("classes", "colors", "flip_pairs", "groups", "yaw")


def recognise(root):
    """`Faces` if `root` holds photos and masks in one of these layouts, else None."""
    here = _pairs(root)
    nested = {split: _pairs(path).get("train") for split, path in split_folders(root).items()}
    nested = {split: rows for split, rows in nested.items() if rows is not None}
    if here and nested:
        raise UserError(
            f"{root}: photos and masks both here and in {', '.join(nested)}/; keep one of the two"
        )
    unlabelled, photos = _one_of(root, UNLABELLED)
    photos = photos or (_one_of(unlabelled, PHOTOS)[1] if unlabelled else {})
    if not (here or nested or photos and os.path.isfile(os.path.join(root, "classes.json"))):
        return None
    info = _read_info(os.path.join(root, "classes.json"))
    found = [(split, *row) for split, rows in (here or nested).items() for row in rows]
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
    if found and not classes:
        classes, notes = _count_classes(root, [row[3] for row in found if row[3]])
    colors = info["colors"] or palette(len(classes))
    notes += not_read(root, [sample for samples in splits.values() for sample in samples])
    return Faces("folder", classes, colors, info["flip_pairs"], splits, read, notes)


def read_label(sample, colors=()):
    """Ids as they are, or, where the mask shows them, those of `colors`; see `masks.read_mask`."""
    return read_mask(sample.label, colors)


def _pairs(folder):
    """{split: [(stem, photo, mask)]} of one folder, empty where it has no such layout: `train` alone, or
    the splits that both images/ and labels/ are divided into."""
    images, photos = _one_of(folder, PHOTOS)
    labels, masks = _one_of(folder, MASKS)
    if not (images or masks):
        return _side_by_side(folder)
    inner = [split_folders(below) if below else {} for below in (images, labels)]
    if inner[0] and inner[1] and not (photos or masks):
        splits = inner[0] | inner[1]
        both = {s: [pictures(side[s]) if s in side else {} for side in inner] for s in splits}
        if not any(found for _, found in both.values()):
            raise UserError(unread.advice(folder) or f"{labels}: no masks in it, nor in its folders")
        return {split: pair(*sides, folder) for split, sides in both.items()}
    photos = photos or pictures(folder)
    if photos and not masks:
        lacks = f"{images or folder}: {counted(len(photos), 'photo')}, and no masks in labels/ or masks/"
        raise UserError(unread.advice(folder) or lacks + _beside(folder, images, "labels"))
    if masks and not photos:
        lacks = f"{labels}: {counted(len(masks), 'mask')}, and no photos in images/"
        raise UserError(lacks + _beside(folder, labels, "images"))
    return {"train": pair(photos, masks, folder)}


def _beside(folder, read, wanted):
    """What lies in `folder` beside its folder `read`, in words, and which of it may be what is `wanted`."""
    names = [name for name in sorted(os.listdir(folder)) if not name.startswith(".")]
    paths = {name: os.path.join(folder, name) for name in names if os.path.join(folder, name) != read}
    held = {name: sorted(os.listdir(path)) for name, path in paths.items() if os.path.isdir(path)}
    if not held:
        return " beside it"
    there = some((f"{name}/ ({some(inside, 2) or 'empty'})" for name, inside in held.items()), 4)
    full = [name for name in held if pictures(paths[name])]
    like = difflib.get_close_matches(wanted, full, 1, 0)
    do = f"call {like[0]}/ {wanted}/ if it is meant" if like else "masks are PNG files of class ids"
    return f" beside it; there is {there}: {do}"


def _one_of(folder, kinds):
    """(path, {stem: picture}) of the folder in `folder` whose name is one of `kinds`, whatever its case;
    where several are, the one that holds pictures. (None, {}) where none is."""
    paths = [os.path.join(folder, n) for n in sorted(os.listdir(folder)) if n.lower() in kinds]
    found = {path: pictures(path) for path in paths if os.path.isdir(path)}
    full = {path: inside for path, inside in found.items() if inside} or found
    if len(full) > 1 and any(full.values()):
        names = " and ".join(f"{os.path.basename(path)}/" for path in full)
        raise UserError(
            f"{folder}: {names} both hold pictures, and either could be meant; rename or move one"
        )
    return next(iter(full.items()), (None, {}))


def _side_by_side(folder):
    """`_pairs` of a folder where {name}.jpg lies beside {name}_mask.png."""
    stems = {os.path.splitext(name)[0] for name in os.listdir(folder) if name.lower().endswith(SUFFIXES)}
    masks = {stem + end for end in MASK_SUFFIXES[1:] for stem in stems if stem + end in stems}
    if not masks:
        return {}
    overlays = {stem + "_overlay" for stem in stems}
    overlays |= {stem + "_faces" for stem in stems if stem + "_overlay" in stems}  # as predict.py names them
    found = pictures(folder)
    photos = {stem: path for stem, path in found.items() if stem not in masks | overlays}
    return {"train": pair(photos, {stem: found[stem] for stem in found if stem in masks}, folder)}


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
    if not os.path.lexists(path):
        return empty | {"notes": []}
    given = read_json(path)
    if not isinstance(given, dict):
        raise UserError(f'{path}: need {{"classes": ["background", ...], ...}}; datasets/folder.py shows one')
    if strange := given.keys() - KEYS:
        raise UserError(f"{path}: {some(sorted(strange))}: not among {', '.join(KEYS)}")
    names, colors, pairs, groups, yaw = (empty | given).values()

    def check(right, key, value, need):
        if not right:
            raise UserError(f"{path}: {key}: {json.dumps(value)[:100]}: need {need}")

    check(isinstance(names, list), "classes", names, 'a list of names, by id: ["background", "skin", ...]')
    check_classes(names, path)
    ids = {name: i for i, name in enumerate(names)}
    need = f"2 to {IGNORE_INDEX} different names"
    check(2 <= len(ids) == len(names) <= IGNORE_INDEX, "classes", names, need)

    check(isinstance(colors, list), "colors", colors, f"{len(names)} different [r, g, b] of 0..255")
    for color in colors:
        right = isinstance(color, list) and len(color) == 3 and all(type(v) is int for v in color)
        check(right and 0 <= min(color) <= max(color) <= 255, "colors", color, "[r, g, b] of 0..255")
    colors = [tuple(color) for color in colors]
    right = not colors or len(set(colors)) == len(colors) == len(names)
    check(right, "colors", colors, f"{len(names)} different [r, g, b] of 0..255")

    need = '[["left eye", "right eye"], ...]: pairs of classes, each class once; [] for none'
    check(isinstance(pairs, list), "flip_pairs", pairs, need)
    known = {**ids, **{i: i for i in ids.values()}}
    for two in pairs:
        right = isinstance(two, list) and len(two) == 2 and all(type(c) in (str, int) for c in two)
        check(right and known.keys() >= set(two), "flip_pairs", two, need)
    pairs = [tuple(known[c] for c in two) for two in pairs]
    swapped = [c for two in pairs for c in two]
    check(len(set(swapped)) == len(swapped), "flip_pairs", given.get("flip_pairs"), need)

    check(isinstance(groups, dict), "groups", groups, '{"ann_1": "ann", ...}')
    for stem, person in groups.items():
        right = type(person) is int or isinstance(person, str) and person.strip()
        check(right, f"groups of {stem}", person, "the name of a person")
    groups = {stem: str(person) for stem, person in groups.items()}

    check(isinstance(yaw, dict), "yaw", yaw, '{"ann_1": -30, ...}')
    for stem, degrees in yaw.items():
        right = type(degrees) in (int, float) and -180 <= degrees <= 180
        check(right, f"yaw of {stem}", degrees, "degrees, a number from -180 to 180")
    yaw = {stem: float(degrees) for stem, degrees in yaw.items()}

    notes = []
    if "flip_pairs" not in given and (pairs := side_pairs(names)):
        swapped = some(f"{names[a]} with {names[b]}" for a, b in pairs)
        notes.append(f'a flip swaps {swapped}, by their names; "flip_pairs": [] in classes.json: none')
    return dict(classes=names, colors=colors, flip_pairs=pairs, groups=groups, yaw=yaw, notes=notes)
