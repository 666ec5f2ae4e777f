"""`open_faces(folder)`: which data set a folder holds, and its samples; see `Faces` in faces.py."""

import difflib
import os

from datasets import (
    camvid,
    celebamask,
    cityscapes,
    class_folder,
    coco,
    facesynthetics,
    fasseg,
    folder,
    helen,
    ibugmask,
    labelme,
    lapa,
    roboflow,
    unread,
    voc,
)
from datasets.faces import BACKGROUND, COMPANIONS, check_classes, some
from datasets.images import SUFFIXES, unread_pictures
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX

FORMATS = (  # the first that recognises it, wins
    *(cityscapes, camvid),
    *(celebamask, fasseg, lapa, helen, ibugmask, facesynthetics),
    *(voc, roboflow, coco, labelme, folder),
)
PARTS = {  # folders by which the nearest layout is found
    folder: ("images", "labels"),  # the first of equals
    voc: ("JPEGImages", "SegmentationClass"),
    coco: ("annotations", "images"),
    fasseg: ("Train_RGB", "Train_Labels"),
    celebamask: ("CelebA-HQ-img", "CelebAMask-HQ-mask-anno"),
    cityscapes: ("leftImg8bit", "gtFine"),
}
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


class UnknownFolder(UserError):
    """No format recognises the folder. One that is recognised and has a fault is a plain `UserError`."""


def open_faces(root, part_order="canonical"):
    """`Faces` of the data set in the folder `root`, or a `UserError` that says what was looked for.

    part_order: how CelebAMask-HQ's overlapping part masks are painted, `canonical` or `farl`; other
    data sets have no such choice and refuse any but the default.
    """
    root = os.fspath(root)
    if not os.path.exists(root):
        raise UserError(f"{root}: no such folder")
    if not os.path.isdir(root):
        raise UserError(f"{root}: a file; unpack it and give the folder")
    faces = recognise(root, part_order)
    if faces is None:
        raise UnknownFolder(_unknown(root))
    if part_order != "canonical" and "part_order" not in faces.options:
        raise UserError(f"{root}: {faces.name} has no part order; only CelebAMask-HQ has")
    if len(faces.classes) > IGNORE_INDEX:
        raise UserError(f"{root}: {len(faces.classes)} classes; masks have room for {IGNORE_INDEX}")
    check_classes(faces.classes, f"{root} ({faces.name})")
    if not any(faces.splits.values()):
        raise UserError(f"{root}: laid out like {faces.name}, but without a single photo")
    if later := [name for name in faces.classes[1:] if name.lower() in BACKGROUND]:
        first = faces.classes[0]
        faces.notes.append(f"class 0 is {first}, not {later[0]}: mean F1 leaves {first} out, as background")
    groups = {split: {s.group for s in samples} for split, samples in faces.splits.items()}
    for held in ("val", "test"):
        if shared := groups.get("train", set()) & groups.get(held, set()):
            faces.notes.append(f"in train and in {held} alike: {some(sorted(shared))}")
    beside = sorted({os.path.dirname(s.image) for samples in faces.splits.values() for s in samples})
    if left_out := [line for folder in beside for line in unread_pictures(folder)]:
        faces.notes.append(f"left out: {some(left_out, 5)}")
    return faces


def recognise(root, part_order="canonical"):
    """`Faces` by the first format that knows the folder `root`, unchecked; None where none does."""
    own = os.path.exists(os.path.join(root, "classes.json"))
    for module in (folder, *FORMATS) if own else FORMATS:
        options = {"part_order": part_order} if module is celebamask else {}
        if (faces := module.recognise(root, **options)) is not None:
            return faces
    return None


def _unknown(root):
    """What is there, the nearest layout and what it lacks, where to read on: a line each. One line about an
    export that is not read."""
    if told := unread.advice(root):
        return told
    names = sorted(n for n in os.listdir(root) if not n.startswith("."))
    folders = [name for name in names if os.path.isdir(os.path.join(root, name))]
    photos = [name for name in names if name.lower().endswith(SUFFIXES)]
    rest = sorted({*names} - {*folders, *photos})
    others = [name for name in rest if not COMPANIONS.fullmatch(name.lower())]
    if photos and not folders and not others:
        here = f"a folder of {len(photos)} photos and no masks"
    else:
        what = {"folders": [f"{name}/" for name in folders], "photos": photos, "other files": others}
        counted = [f"{len(found)} {kind} ({some(found, 5)})" for kind, found in what.items() if found]
        here = "no data set that is known here; there is: " + (", ".join(counted) or "nothing")
    nearest = _nearest(root, names, folders, photos)
    if _has_classes(root):
        nearest += "; folders that are called like classes of images are for train_classify.py"
    return f"{root}: {here}\n  {nearest}\n  all layouts: docs/data.md"


def _has_classes(root):
    try:
        return class_folder.recognise(root) is not None
    except UserError:
        return False


def _nearest(root, names, folders, photos):
    if hint := [path for name in folders[:20] if _looks_right(path := os.path.join(root, name))]:
        return f"did you mean {' or '.join(hint)}?"
    if packed := [name for name in names if name.lower().endswith(ARCHIVES)]:
        return f"unpack {some(packed, 3)} and give the folder"
    if photos and not folders:
        return (
            "predict.py parses photos, train_scores.py --unlabelled learns from them; to train on masks, "
            "call them {photo}_mask.png, or put photos into images/ and masks into labels/"
        )
    close = {part: difflib.get_close_matches(part, folders, 1) for parts in PARTS.values() for part in parts}
    module = max(PARTS, key=lambda m: sum(bool(close[part]) for part in PARTS[m]))
    lacks = []
    for part in PARTS[module]:
        if part not in folders:
            like = [name for name in close[part] if name not in PARTS[module]]
            lacks.append(f"{part}/" + (f" (here is {like[0]})" if like else ""))
    return f"nearest is {module.LOOKS_FOR}" + (f"; it lacks {some(lacks)}" if lacks else "")


def _looks_right(root):
    try:
        return recognise(root) is not None
    except UserError:
        return True  # recognised, with a fault that the user will be told there
