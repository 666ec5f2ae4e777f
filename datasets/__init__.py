"""`open_faces(folder)`: which data set a folder holds, and its samples; see `Faces` in faces.py."""

import os

from datasets import celebamask, fasseg, folder, helen, ibugmask, lapa
from datasets.faces import some
from datasets.images import unread_pictures
from utils.errors import UserError

FORMATS = (celebamask, fasseg, lapa, helen, ibugmask, folder)  # the first that recognises it, wins


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
    faces = _recognise(root, part_order)
    if faces is None:
        raise UserError(_unknown(root))
    if part_order != "canonical" and "part_order" not in faces.options:
        raise UserError(f"{root}: {faces.name} has no part order; only CelebAMask-HQ has")
    if not any(faces.splits.values()):
        raise UserError(f"{root}: laid out like {faces.name}, but without a single photo")
    groups = {split: {s.group for s in samples} for split, samples in faces.splits.items()}
    for held in ("val", "test"):
        if shared := groups.get("train", set()) & groups.get(held, set()):
            faces.notes.append(f"in train and in {held} alike: {some(sorted(shared))}")
    beside = sorted({os.path.dirname(s.image) for samples in faces.splits.values() for s in samples})
    if left_out := [line for folder in beside for line in unread_pictures(folder)]:
        faces.notes.append(f"left out: {some(left_out, 5)}")
    return faces


def _recognise(root, part_order="canonical"):
    for module in FORMATS:
        options = {"part_order": part_order} if module is celebamask else {}
        if (faces := module.recognise(root, **options)) is not None:
            return faces
    return None


def _unknown(root):
    """One line: what was looked for, what is there, and which folder below would have done."""
    names = sorted(name for name in os.listdir(root) if not name.startswith("."))
    folders = [os.path.join(root, n) for n in names if os.path.isdir(os.path.join(root, n))]
    hint = [below for below in folders[:20] if _looks_right(below)]
    return (
        f"{root}: no data set of faces that is known here"
        + (f"; did you mean {' or '.join(hint)}?" if hint else ".")
        + f" There is: {some(names) or 'nothing'}."
        + f" Looked for: {'; '.join(module.LOOKS_FOR for module in FORMATS)}"
    )


def _looks_right(root):
    try:
        return _recognise(root) is not None
    except UserError:
        return True  # recognised, with a fault that the user will be told there
