"""Roboflow's "Semantic Segmentation Masks": a folder a split, each with photos, masks and what they mean.

    {train,valid,test}/{name}.jpg    {name}_mask.png    _classes.csv        or the same without a split

Lines of _classes.csv are `Pixel Value, Class`. Versions of one photo that Roboflow has augmented,
{photo}_jpg.rf.{hash}.jpg, are one group, so that no split parts them.
Source: docs.roboflow.com, export formats.
"""

import csv
import functools
import io
import os
import re

import numpy as np

from datasets.faces import Faces, Sample, not_read, pair, palette, read_lines, side_pairs, some, split_folders
from datasets.images import pictures
from datasets.masks import read_mask
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

LOOKS_FOR = "Roboflow masks: train/, valid/, test/ with {x}.jpg, {x}_mask.png and _classes.csv"
CLASSES = "_classes.csv"


def recognise(root):
    """`Faces` if `root` is such an export, else None."""
    folders = split_folders(root)
    folders = {s: path for s, path in folders.items() if os.path.exists(os.path.join(path, CLASSES))}
    if not folders and os.path.exists(os.path.join(root, CLASSES)):
        folders = {"train": root}
    if not folders:
        return None
    tables = {path: _table(os.path.join(path, CLASSES)) for path in folders.values()}
    table = next(iter(tables.values()))
    if other := [path for path, found in tables.items() if found != table]:
        raise UserError(f"{other[0]}/{CLASSES}: other classes than those of {next(iter(tables))}/{CLASSES}")
    splits = {}
    for split, folder in folders.items():
        found = pictures(folder)
        masks = {stem: path for stem, path in found.items() if stem.endswith("_mask")}
        photos = {stem: path for stem, path in found.items() if stem not in masks}
        rows = pair(photos, masks, folder)
        ids = [f"{split}/{stem}" for stem, _, _ in rows]
        splits[split] = [
            Sample(i, image, label, source_of(stem, i))
            for i, (stem, image, label) in zip(ids, rows, strict=True)
        ]
    classes = list(table.values())
    notes = not_read(
        root, [s for samples in splits.values() for s in samples], {CLASSES, "README.roboflow.txt"}
    )
    read = functools.partial(read_label, values=list(table))
    options = {"pixel_values": " ".join(map(str, table))}  # so that a cache of other values is not taken
    pairs = side_pairs(classes)
    return Faces("roboflow", classes, palette(len(classes)), pairs, splits, read, notes, options)


def read_label(sample, values):
    """Pixel values to class ids: the n-th of `values` is class n."""
    mask = read_mask(sample.label)
    if unknown := np.setdiff1d(mask, [*values, IGNORE_INDEX]).tolist():
        raise UserError(f"{sample.label}: pixel values {some(map(str, unknown))} are not in {CLASSES}")
    ids = np.full(256, IGNORE_INDEX, np.uint8)
    ids[values] = range(len(values))
    return ids[mask]


def source_of(stem, sample_id):
    """A sample's group: the photo that Roboflow made the file from, or its id where the name has none."""
    source = re.sub(r"\.rf\.\w+$", "", stem)
    return source if source != stem else sample_id


def _table(path):
    """{pixel value: class name}, sorted."""
    rows = list(csv.reader(io.StringIO("\n".join(read_lines(path))), skipinitialspace=True))
    try:
        found = {int(row[0]): row[1].strip() for row in rows[1:] if row}
    except (IndexError, ValueError) as error:
        raise UserError(f"{path}: need lines of a pixel value and a class ({error})") from None
    if len(found) < 2 or len(set(found.values())) < len(found) or not set(found) <= set(range(IGNORE_INDEX)):
        raise UserError(f"{path}: need different names for two or more pixel values of 0..254")
    return dict(sorted(found.items()))
