"""COCO's segmentation JSON, one file a split, as COCO, CVAT, Roboflow, Label Studio and others write it.

    annotations/instances_{train2017,val2017}.json    {train2017,val2017}/ or images/       COCO
    annotations/instances_{default,Train}.json        images/ or images/{default,Train}/    CVAT
    {train,valid,test}/_annotations.coco.json         photos beside it                      Roboflow
    result.json                                       images/                               Label Studio

Segmentations are polygons or run lengths (RLE), plain or compressed. Larger areas are painted first, so that
small parts lie on top. Crowds are painted as their class, since only how many they are is unknown; regions
marked `ignore` are 255. Class 0 is background, then come the categories by their ids, which may have gaps.
What are only boxes is not painted. A photo is looked for by its path in the JSON, then by its name
alone, since Label Studio writes paths on its server.
Source: cocodataset.org/#format-data; github.com/cocodataset/cocoapi, common/maskApi.c.
"""

import collections
import functools
import json
import math
import os
import re

import numpy as np
from PIL import Image, ImageDraw

from datasets.faces import (
    SPLIT_OF,
    Faces,
    Sample,
    after_background,
    check_drawn_on,
    check_points,
    class_id,
    counted,
    not_read,
    palette,
    side_pairs,
    some,
    split_folders,
)
from datasets.roboflow import source_of
from utils.errors import UserError
from utils.files import read_json
from utils.metrics import IGNORE_INDEX

LOOKS_FOR = "COCO: annotations/instances_*.json, or _annotations.coco.json in train/, valid/, test/"
NAMES = re.compile(r"(instances.*|.*coco.*|result|labels|annotations|default|train.*|val.*|test.*)\.json")


def recognise(root):
    """`Faces` if `root` holds such files, else None."""
    held = _files(root)
    if not held:
        return None
    splits, shapes, names, missing, boxes, thin = {}, {}, None, [], 0, 0
    classes, used = [], set()
    for path, content in held.values():
        _check_fields(path, content)
        used |= {a["category_id"] for a in content["annotations"]}
    for split, (path, content) in held.items():
        try:
            own = _names(content["categories"], used)
            if names is None:
                names = own
                classes = ["background", *after_background(names.values())]
            if own != names:
                raise UserError(f"{path}: other categories than those of the other files")
            painted, without, lines = _painted(content, names, classes)
            find = _finder(root, path)
            for image in content["images"]:
                name = image["file_name"].replace("\\", "/")
                photo = find(name)
                if photo is None and (photo := find(os.path.basename(name))):
                    name = os.path.basename(name)
                stem = os.path.splitext(name)[0]
                sample_id = f"{split}/{stem}"
                if sample_id in shapes:
                    raise UserError(f"{path}: two photos are called {stem}; rename one")
                missing += [] if photo else [name]
                shapes[sample_id] = (image["width"], image["height"]), painted.get(image["id"], [])
                sample = Sample(sample_id, photo, (path,), source_of(stem, sample_id))
                splits.setdefault(split, []).append(sample)
            boxes, thin = boxes + without, thin + lines
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
    if missing:
        gone = f"not there: {counted(len(missing), 'photo')} of the annotations, {some(missing, 4)}"
        raise UserError(f"{root}: {gone}; export with 'Save images' on, or put the photos into images/")
    if boxes and not any(painted for _, painted in shapes.values()):
        raise UserError(f"{root}: {boxes} boxes and no segmentation; export polygons or masks")
    ignored = sum(fill == IGNORE_INDEX for _, painted in shapes.values() for _, fill, _ in painted)
    bare = [sample_id for sample_id, (_, painted) in shapes.items() if not painted]
    notes = [
        *([f"{ignored} regions are marked to be ignored: 255"] if ignored else []),
        *([f"{boxes} annotations are boxes without a segmentation, and are not painted"] if boxes else []),
        *([f"{thin} polygons of fewer than three points have no area, and are not painted"] if thin else []),
        *([f"{len(bare)} photos without an annotation are background: {some(bare, 4)}"] if bare else []),
        *not_read(root, [s for samples in splits.values() for s in samples], {"README.roboflow.txt"}),
    ]
    read = functools.partial(read_label, shapes=shapes)
    return Faces("coco", classes, palette(len(classes)), side_pairs(classes), splits, read, notes)


def read_label(sample, shapes):
    """One photo's regions, painted in their order. shapes: {sample id: ((width, height), [(area, class id,
    segmentation)])}. Polygons are drawn at twice the size, since Pillow includes their edges: a square of
    4 pixels would become one of 9."""
    size, painted = shapes[sample.id]
    check_drawn_on(size, sample.image, f"{sample.label[0]}: {sample.id}")
    canvas = Image.new("L", (2 * size[0], 2 * size[1]))
    draw = ImageDraw.Draw(canvas)
    try:
        for _, fill, segmentation in painted:
            if isinstance(segmentation, dict):
                inside = Image.fromarray(decode_rle(segmentation, size))
                canvas.paste(fill, mask=inside.resize(canvas.size, Image.NEAREST))
                continue
            for ring in segmentation:
                draw.polygon([2 * value for value in ring], fill, fill)
    except (KeyError, TypeError, ValueError) as error:
        said = f"{sample.label[0]}: segmentation of {sample.id} cannot be painted ({error})"
        raise UserError(said) from None
    return np.asarray(canvas)[1::2, 1::2].copy()


def decode_rle(segmentation, size):
    """(H, W) bool of run lengths: of 0 and 1 in turn, down one column after the other. size: (width, height).
    Compressed, a length is characters from "0" on with five bits each, the lowest first, and a sixth where
    more follow; its highest bit is its sign. From the fourth on, what is written is the difference to the
    length two before. Raises ValueError."""
    runs = segmentation["counts"]
    if isinstance(runs, str):
        text, runs, value, shift = runs, [], 0, 0
        for code in text.encode():
            value |= (code - 48 & 31) << shift
            shift += 5
            if not code - 48 & 32:
                value -= (code - 48 >> 4 & 1) << shift
                runs.append(value + (runs[-2] if len(runs) > 2 else 0))
                value = shift = 0
    width, height = size
    if sum(runs) != width * height or min(runs) < 0 or list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run lengths of {sum(runs)} pixels for {width}x{height}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _files(root):
    """{split: (path, content)}; of what is called like such a file, only what has its keys."""
    found = {}
    folders = [(None, root), (None, os.path.join(root, "annotations")), *split_folders(root).items()]
    for split, folder in folders:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        names = [name for name in names if NAMES.fullmatch(name.lower())]
        for name in [name for name in names if name.startswith("instances")] or names:
            path = os.path.join(folder, name)
            content = read_json(path)
            if not (isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()):
                continue
            words = re.split("[^a-z]+", name.lower())
            key = split or next((SPLIT_OF[word] for word in words if word in SPLIT_OF), "train")
            if key in found:
                raise UserError(f"{root}: {found[key][0]} and {path} are both {key}; keep one")
            found[key] = path, content
    return found


def _check_fields(path, content):
    """A UserError that names the record and the field, unless the fields that are read are of their kinds."""
    numbers, texts, either = (int,), (str,), (int, str)
    for group, kinds in {
        "images": {"id": either, "file_name": texts, "width": numbers, "height": numbers},
        "categories": {"id": numbers, "name": texts},
        "annotations": {"image_id": either, "category_id": numbers},
    }.items():
        if not isinstance(content[group], list):
            raise UserError(f"{path}: {group}: need a list, not {json.dumps(content[group])[:60]}")
        for record in content[group]:
            for field, kind in kinds.items():
                if not isinstance(record, dict) or type(record.get(field)) not in kind:
                    need = "a text" if kind == texts else "a whole number"
                    raise UserError(f"{path}: {group}: {json.dumps(record)[:100]}: {field}: need {need}")
    for group in ("images", "categories"):
        times = collections.Counter(record["id"] for record in content[group])
        if twice := [key for key in times if times[key] > 1]:
            raise UserError(f"{path}: {group}: the id {json.dumps(twice[0])} is there twice")


def _names(categories, used):
    """{category id: name}, by id. Roboflow's group of all classes, which no annotation has, is none."""
    groups = [c.get("supercategory") for c in categories if c.get("supercategory") != c["name"]]
    found = {c["id"]: c["name"] for c in categories if c["id"] in used or c["name"] not in groups}
    if len(set(found.values())) < len(found):
        raise ValueError("two categories of one name")
    return dict(sorted(found.items()))


def _painted(content, names, classes):
    """{image id: [(area, class id, segmentation)]}, largest first; how many annotations have no segmentation;
    how many of the others' polygons have no area. Raises ValueError."""
    ids = {key: class_id(name, classes) for key, name in names.items()}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    painted, without, thin = {}, 0, 0
    for n, a in enumerate(content["annotations"], 1):
        segmentation = a.get("segmentation")
        if not segmentation:
            without += 1
            continue
        said = f"annotation {json.dumps(a['id'])}" if "id" in a else f"annotation number {n}"
        for field, known in (("image_id", sizes), ("category_id", ids)):
            if a[field] not in known:
                raise ValueError(f"{said}: no {field[:-3]} of this file has the id {json.dumps(a[field])}")
        if isinstance(segmentation, list):
            try:
                for ring in segmentation:
                    check_points(ring, sizes[a["image_id"]])
            except ValueError as error:
                raise ValueError(f"{said}: a polygon cannot be painted: {error}") from None
            rings = [ring for ring in segmentation if len(ring) >= 6]
            thin += len(segmentation) - len(rings)
            segmentation = rings
        elif not isinstance(segmentation, dict):
            raise ValueError(f"{said}: segmentation: need polygons or run lengths")
        box = a.get("bbox")
        boxed = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
        area = a.get("area", box[2] * box[3] if boxed else None)
        if type(area) not in (int, float) or not math.isfinite(area):
            raise ValueError(f"{said}: need a number as area, or a bbox: larger regions are painted first")
        fill = IGNORE_INDEX if a.get("ignore") else ids[a["category_id"]]
        painted.setdefault(a["image_id"], []).append((area, fill, segmentation))
    return {key: sorted(regions, key=lambda r: -r[0]) for key, regions in painted.items()}, without, thin


def _finder(root, path):
    """find(file_name): the path of a photo, or None. Each folder is listed once."""
    subset = os.path.splitext(os.path.basename(path))[0].removeprefix("instances_")
    images = os.path.join(root, "images")
    bases = [os.path.dirname(path), os.path.join(images, subset), images, os.path.join(root, subset), root]
    listing = functools.cache(lambda folder: frozenset(os.listdir(folder)) if os.path.isdir(folder) else ())

    def find(name):
        tries = [os.path.join(base, name) for base in bases]
        return next((p for p in tries if os.path.basename(p) in listing(os.path.dirname(p))), None)

    return find
