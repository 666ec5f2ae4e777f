"""labelme's JSON files, one a photo, beside it.

    {name}.jpg    {name}.json        or the same below train/, val/ and test/

A file lists shapes (label, points, shape_type) that are painted in its order, later ones on top, with Pillow
as labelme2voc does: polygons, rectangles, circles (centre, a point of the edge) and masks (PNG in base64,
from their first point on). Points and lines have no area. `imagePath` says where the photo is, `imageData` is
not used. Classes are the labels of all files, sorted, behind `_background_`; a labels.txt in the folder, as
labelme's --labels takes it, gives another order. `__ignore__` is 255. Photos without a file are the split
`unlabelled`. Source: github.com/wkentaro/labelme, labelme/utils/shape.py.
"""

import base64
import binascii
import functools
import io
import json
import math
import os

import numpy as np
from PIL import Image, ImageDraw

from datasets.faces import (
    Faces,
    Sample,
    after_background,
    check_drawn_on,
    check_points,
    class_id,
    counted,
    not_read,
    palette,
    read_lines,
    side_pairs,
    some,
    split_folders,
)
from datasets.images import pictures
from utils import lineage
from utils.errors import UserError
from utils.files import read_json

LOOKS_FOR = "labelme: {x}.json beside {x}.jpg"
AREAS = ("polygon", "rectangle", "circle", "mask")


def recognise(root):
    """`Faces` if there are files of labelme in `root` or in its folders of splits, else None."""
    folders = {"train": root} if _files(root) else {s: p for s, p in split_folders(root).items() if _files(p)}
    if not folders:
        return None
    splits, labels, flat = {}, set(), 0
    for split, folder in folders.items():
        photos = pictures(folder)
        named = {os.path.normpath(path): path for path in photos.values()}
        seen = set()
        for path in _files(folder):
            shapes, _, photo = _read(path)
            stem = os.path.splitext(os.path.basename(path))[0]
            photo = named.get(photo, photo if os.path.isfile(photo) else photos.get(stem))
            if photo is None:
                raise UserError(
                    f"{path}: its photo is not there; put it beside the file, as {stem}.jpg or .png"
                )
            labels |= {label for label, _, kind, _ in shapes if kind in AREAS}
            flat += sum(kind not in AREAS for _, _, kind, _ in shapes)
            seen.add(photo)
            splits.setdefault(split, []).append(Sample(f"{split}/{stem}", photo, path, f"{split}/{stem}"))
        bare = {stem: path for stem, path in photos.items() if path not in seen}
        rest = [Sample(f"unlabelled/{split}/{stem}", p, None, f"{split}/{stem}") for stem, p in bare.items()]
        splits["unlabelled"] = splits.get("unlabelled", []) + rest
    classes = _classes(root, labels)
    notes = [f"{flat} points and lines have no area, and are not drawn"] if flat else []
    if bare := splits.pop("unlabelled"):
        splits["unlabelled"] = bare
        notes.append(f"{len(bare)} photos have no file of labelme: split `unlabelled`")
    notes += not_read(root, [s for samples in splits.values() for s in samples], {"labels.txt"})
    read = functools.partial(read_label, classes=classes)
    return Faces("labelme", classes, palette(len(classes)), side_pairs(classes), splits, read, notes)


def read_label(sample, classes):
    """The shapes of one file, painted in their order."""
    shapes, size, _ = _read(sample.label)
    check_drawn_on(size, sample.image, sample.label)
    canvas = Image.new("L", size)
    draw = ImageDraw.Draw(canvas)
    for label, points, kind, mask in shapes:
        if kind not in AREAS:
            continue
        fill = class_id(label, classes)
        try:
            if kind == "polygon":
                draw.polygon(points, fill, fill)
            elif kind == "rectangle":
                (left, right), (top, bottom) = map(sorted, zip(*points, strict=True))
                draw.rectangle((left, top, right, bottom), fill, fill)
            elif kind == "circle":
                (x, y), edge = points
                r = math.dist((x, y), edge)
                draw.ellipse((x - r, y - r, x + r, y + r), fill, fill)
            else:
                inside = Image.open(io.BytesIO(base64.b64decode(mask))).convert("1")
                canvas.paste(fill, tuple(round(v) for v in points[0]), inside)
        except (OSError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(f"{sample.label}: a {kind} of {label} cannot be drawn ({error})") from None
    return np.asarray(canvas)


def _files(folder):
    """Files of labelme in a folder, known by the first of its JSON files."""
    names = [n for n in sorted(os.listdir(folder)) if n.lower().endswith(".json") and not n.startswith(".")]
    names = [n for n in names if n != lineage.NAME]  # of predict.py
    paths = [os.path.join(folder, name) for name in names]
    first = read_json(paths[0]) if paths else None
    return paths if isinstance(first, dict) and "shapes" in first and "imagePath" in first else []


def _read(path):
    """([(label, points, kind, mask)], (width, height), photo) of one file. Raises UserError, which names the
    shape by its number, from 1 on."""
    held = read_json(path)
    if not isinstance(held, dict):
        raise UserError(f"{path}: not as labelme writes it: need an object")
    kinds = {"shapes": list, "imagePath": str, "imageWidth": int, "imageHeight": int}
    if wrong := [key for key, kind in kinds.items() if type(held.get(key)) is not kind]:
        said = f"{wrong[0]} is {json.dumps(held.get(wrong[0]))[:60]}"
        raise UserError(f"{path}: not as labelme writes it: {said}")
    size = held["imageWidth"], held["imageHeight"]
    shapes = []
    for n, shape in enumerate(held["shapes"], 1):
        try:
            shapes.append(_shape(shape, size))
        except ValueError as error:
            raise UserError(f"{path}: shape {n}: {error}") from None
    photo = os.path.join(os.path.dirname(path), held["imagePath"].replace("\\", "/"))
    return shapes, size, os.path.normpath(photo)


def _shape(shape, size):
    """(label, points, kind, mask). Raises ValueError."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise ValueError("need a label that is a text")
    label, kind, points = shape["label"], shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(points, list) or not all(isinstance(p, list) and len(p) == 2 for p in points):
        raise ValueError(f"{label}: need points, each [x, y]")
    check_points([value for point in points for value in point], size)
    need = {"polygon": max(3, len(points)), "rectangle": 2, "circle": 2}.get(kind, max(1, len(points)))
    if len(points) != need:
        raise ValueError(f"{label}: a {kind} of {counted(len(points), 'point')}; need {need}")
    return label, [tuple(map(float, point)) for point in points], kind, shape.get("mask")


def _classes(root, labels):
    path = os.path.join(root, "labels.txt")
    listed = [line.strip() for line in read_lines(path)] if os.path.exists(path) else sorted(labels)
    if strange := set(after_background(labels)) - set(listed):
        raise UserError(f"{path}: lacks the labels {some(sorted(strange))}")
    return ["_background_", *after_background(filter(None, listed))]
