"""The layout of Pascal VOC, in which labelling tools export masks, too.

    JPEGImages/{name}.jpg    SegmentationClass/{name}.png    ImageSets/Segmentation/{train,val,test}.txt

- Pascal VOC: palette masks of 20 classes, 255 along their borders. `VOCdevkit` or what is above it will do.
  It is known by the folder's name, VOC2012, or by its Annotations/ and ImageSets/. Where there is a
  SegmentationObject/{name}.png, the index of its palette is an instance's id, 255 along borders.
- labelme2voc: class_names.txt, and no lists; older versions write masks into SegmentationClassPNG/. What was
  `__ignore__` is 255.
- CVAT, "Segmentation mask 1.1" with images saved: labelmap.txt, lines `name:r,g,b:parts:actions`; masks in
  these colours; ImageSets/Segmentation/default.txt.

Photos without a mask are the split `unlabelled`. Sources: host.robots.ox.ac.uk/pascal/VOC/voc2012;
github.com/wkentaro/labelme, examples/semantic_segmentation; docs.cvat.ai, formats, Segmentation Mask.
"""

import functools
import os
import re

from datasets import folder
from datasets.faces import (
    BACKGROUND,
    IGNORED,
    SPLIT_OF,
    Faces,
    Sample,
    not_read,
    palette,
    read_lines,
    side_pairs,
    some,
)
from datasets.images import pictures
from datasets.masks import read_mask
from utils.errors import UserError

LOOKS_FOR = "Pascal VOC, labelme2voc, CVAT masks: JPEGImages/ and SegmentationClass/"
MASKS = ("SegmentationClassPNG", "SegmentationClass")
CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
COMPANIONS = set(
    "Annotations ImageSets SegmentationClass SegmentationObject SegmentationClassNpy SegmentationObjectNpy "
    "SegmentationClassVisualization SegmentationObjectVisualization SegmentationObjectPNG class_names.txt "
    "labelmap.txt".split()
)


def recognise(root):
    """`Faces` if `root` or its VOCdevkit has this layout, else None; a classes.json means somebody's own."""
    inner = _inner(root)
    if inner is None or os.path.exists(os.path.join(inner, "classes.json")):
        return None
    masks = _pictures_below(_masks(inner))
    photos = _pictures_below(os.path.join(inner, "JPEGImages"))
    if lone := [name for name in masks if name not in photos]:
        hint = "" if photos else "; export again with 'Save images' on, or put the photos into JPEGImages/"
        raise UserError(f"{inner}: {len(lone)} masks without a photo in JPEGImages/: {some(lone)}{hint}")
    split_of = _split_of(os.path.join(inner, "ImageSets/Segmentation")) or dict.fromkeys(masks, "train")
    if lone := [name for name in split_of if name not in photos]:
        raise UserError(f"{inner}/ImageSets/Segmentation: {len(lone)} have no photo: {some(lone)}")
    name, classes, colors = _classes(inner)
    objects = pictures(os.path.join(inner, "SegmentationObject")) if name == "voc" else {}
    splits, notes = {"train": [], "val": [], "test": [], "unlabelled": []}, []
    for stem, photo in photos.items():
        split = split_of.get(stem) if stem in masks else "unlabelled"
        if split:
            name_of = f"{split}/{stem}"
            sample = Sample(name_of, photo, masks.get(stem), name_of, instance=objects.get(stem))
            splits[split].append(sample)
    splits = {split: found for split, found in splits.items() if found}
    if bare := splits.get("unlabelled"):
        notes.append(f"{len(bare)} photos have no mask: split `unlabelled`")
    if unlisted := [stem for stem in masks if stem not in split_of]:
        notes.append(f"{len(unlisted)} masks are in no list of ImageSets/Segmentation/: {some(unlisted)}")
    samples = [s for found in splits.values() for s in found]
    told = [Sample(stem, photos[stem], masks[stem], stem) for stem in unlisted]
    notes += not_read(inner, [*samples, *told], COMPANIONS)
    read = functools.partial(folder.read_label, colors=colors)
    faces = Faces(name, classes, colors, side_pairs(classes), splits, read, notes)
    if objects:
        faces.things = {name: [i] for i, name in enumerate(classes) if i}
        faces.read_instance = read_instance
    return faces


def read_instance(sample):
    """See `Faces`: the index of the palette."""
    return read_mask(sample.instance)


def _masks(root):
    paths = [os.path.join(root, name) for name in MASKS]
    return next((path for path in paths if os.path.isdir(path)), None)


def _inner(root):
    """The folder that holds the layout: `root`, or the one VOC2007 ... VOC2012 below it. None without one."""
    if _masks(root):
        return root
    devkit = os.path.join(root, "VOCdevkit")
    if os.path.isdir(devkit):
        return _inner(devkit)
    below = [os.path.join(root, name) for name in sorted(os.listdir(root)) if name.startswith("VOC")]
    found = [path for path in below if _masks(path)]
    if len(found) > 1:
        raise UserError(f"{root}: several data sets; give one of {', '.join(found)}")
    return found[0] if found else None


def _pictures_below(folder):
    """{path below the folder, without its suffix: path}: CVAT keeps the folders of a task."""
    found = {}
    for below, _, _ in os.walk(folder):
        inside = os.path.relpath(below, folder)
        for stem, path in pictures(below).items():
            found[stem if inside == "." else f"{inside}/{stem}".replace(os.sep, "/")] = path
    return found


def _split_of(folder):
    """{name: split} of the lists in the folder, empty without one. A list that is called otherwise (CVAT's
    default.txt) trains; trainval.txt only repeats train.txt and val.txt, where these are there."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    lists = {name[:-4].lower(): os.path.join(folder, name) for name in names if name.endswith(".txt")}
    if "train" in lists or "val" in lists:
        lists.pop("trainval", None)
    found = {}
    for name, path in lists.items():
        split = SPLIT_OF.get(name, "train")
        for line in filter(None, (line.strip().strip('"') for line in read_lines(path))):
            if found.setdefault(line, split) != split:
                raise UserError(f"{path}: {line} is in {found[line]} already; keep it in one list")
    return found


def _classes(root):
    """(name of the tool, class names, colours)."""
    path = os.path.join(root, "class_names.txt")
    if os.path.exists(path):
        lines = [line.strip() for line in read_lines(path)]
        names = [line for line in lines if line and line not in IGNORED]
        return "labelme2voc", names, palette(len(names))
    path = os.path.join(root, "labelmap.txt")
    if not os.path.exists(path):
        folders = ("Annotations", "ImageSets/Segmentation")
        named = re.fullmatch(r"VOC20\d\d", os.path.basename(os.path.abspath(root)))
        if not named and not all(os.path.isdir(os.path.join(root, folder)) for folder in folders):
            raise UserError(
                f"{root}: no labelmap.txt (CVAT) or class_names.txt (labelme2voc) says what the masks mean; "
                "put the tool's file back, or write a classes.json"
            )
        return "voc", CLASSES, palette(len(CLASSES))
    rows = [line.split(":") for line in read_lines(path) if line.strip() and not line.startswith("#")]
    names = [row[0].strip() for row in rows]
    colors = palette(len(names))
    try:
        if any(row[1].strip() for row in rows):
            colors = [tuple(int(value) for value in row[1].split(",")) for row in rows]
        if len(set(colors)) < len(names) or {len(color) for color in colors} != {3}:
            raise ValueError("two classes of one colour, or none")
    except (IndexError, ValueError) as error:
        raise UserError(f"{path}: need lines name:r,g,b:: ({error})") from None
    if names[0].lower() not in BACKGROUND and (0, 0, 0) not in colors:
        names, colors = ["background", *names], [(0, 0, 0), *colors]
    return "cvat", names, colors
