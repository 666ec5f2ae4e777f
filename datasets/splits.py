"""Which data there is, and who is in which split: from a `--data` flag to samples, before a photo is read."""

import collections
import os

from datasets import UnknownFolder, open_faces, synthetic
from datasets.cache import contents
from datasets.faces import BACKGROUND, Faces, Sample, counted, some, split_by_group
from datasets.images import pictures, unread_pictures
from utils.errors import UserError
from utils.files import read_json


def open_data(path, scheme="full", part_order="canonical", val_fraction=0.15, ids=None, scenes=0):
    """`Faces` of a folder or of `synthetic`, with a validation split: that of the file `ids`, or else the
    data set's own, or else `val_fraction` of the people of `train` (always the same ones, whatever the
    seed). scenes: of at most so many of these faces; 0: they stay single."""
    faces = _open(path, scheme, part_order, val_fraction, ids)
    if scenes:
        if faces.things:
            raise UserError(
                f"--scenes {scenes}: {faces.name} has instances of its own; --scenes 0 takes them as they are"
            )
        if (first := faces.classes[0]).lower() not in BACKGROUND:
            raise UserError(
                f"--scenes {scenes}: class 0 of {faces.name} is {first}, not background, which faces are cut "
                "out of; --scenes 0 takes the photos as they are"
            )
        faces.scenes, faces.things = scenes, {"face": list(range(1, len(faces.classes)))}
    return faces


def _open(path, scheme, part_order, val_fraction, ids):
    """As `open_data`, single faces."""
    if path == "synthetic":
        if ids:
            raise UserError(f"ids {ids}: synthetic faces have no ids; only photos in a folder have")
        found = synthetic.SCHEMES[scheme]
        return Faces("synthetic", found.classes, found.colors, found.flip_pairs, {}, None)
    faces = open_faces(path, part_order)
    if ids:
        return take_ids(faces, ids)
    train = faces.splits.get("train", [])
    if "val" not in faces.splits and val_fraction > 0 and len({s.group for s in train}) > 1:
        train, val = split_by_group(train, val_fraction)
        people = sorted({s.group for s in val})
        faces.notes.append(
            f"no validation split: {len(val)} images of {len(people)} people are held out "
            f"({', '.join(people[:5])}{', ...' if len(people) > 5 else ''})"
        )
        faces.splits.update(train=train, val=val)
        faces.holds_out = True
    return faces


def take_ids(faces, path):
    """`faces` with the training and validation photos that a JSON file names, in its order:
    {"train": [ids], "val": [ids]}, each the `id` of a labelled sample of any split but `test`. Without
    the key "val" nobody validates. Raises UserError: unknown ids, an id or a person on both sides."""
    sides = read_json(path)
    if not isinstance(sides, dict) or "train" not in sides or not sides.keys() <= {"train", "val"}:
        raise UserError(f'ids {path}: need {{"train": [ids], "val": [ids]}} and no other keys')
    for side, ids in sides.items():
        if not (isinstance(ids, list) and ids and all(isinstance(i, str) for i in ids)):
            raise UserError(f"ids {path}: {side} needs a list of sample ids, at least one")
    open_to = [s for split, samples in faces.splits.items() if split != "test" for s in samples]
    labelled = [s for s in open_to if s.label is not None]
    named = {s.id: s for s in labelled}
    both = [i for ids in sides.values() for i in ids]
    if unknown := [i for i in both if i not in named]:
        like = f"; ids here are like {some(named, 2)}" if named else ""
        raise UserError(f"ids {path}: of no labelled photo outside of test: {some(unknown, 5)}{like}")
    if twice := [i for i, times in collections.Counter(both).items() if times > 1]:
        raise UserError(f"ids {path}: named twice, on one side or on both: {some(twice, 5)}")
    train, val = ([named[i] for i in sides.get(side, [])] for side in ("train", "val"))
    if shared := {s.group for s in train} & {s.group for s in val}:
        raise UserError(f"ids {path}: people in train and in val alike: {some(sorted(shared), 5)}")
    faces.notes.append(
        f"ids {path}: {len(both)} of {len(labelled)} labelled photos; {len(val)} images of "
        f"{len({s.group for s in val})} people validate"
    )
    rest = {split: found for split, found in faces.splits.items() if split not in ("train", "val")}
    faces.splits = {"train": train} | ({"val": val} if val else {}) | rest
    return faces


def ids_file(ids, data, saved, limit=None):
    """The file of ids that holds: the one given, or that of a checkpoint's flags `saved` (None: there is no
    checkpoint) where `data` is None or the checkpoint's. Refused beside a limit."""
    if not ids and saved and (not data or same_folder(data, saved["data"])):
        ids = saved.get("ids")
    if ids and limit:
        raise UserError(f"limit {limit}: {ids} says already which photos train; give one of the two")
    return ids


def same_folder(a, b):
    """Whether two paths, or `synthetic`, are one data set."""
    return os.path.realpath(a) == os.path.realpath(b)


def open_any(path, classes=(), val_fraction=0.0):
    """`Faces` of a data set, or of a folder of pictures without masks, each taken for a person of its own."""
    try:
        return open_data(path, val_fraction=val_fraction)
    except UnknownFolder:
        if not (plain := pictures(path)):
            raise
    samples = [Sample(stem, file, None, stem) for stem, file in plain.items()]
    left_out = unread_pictures(path)
    notes = [f"left out: {some(left_out, 5)}"] if left_out else []
    return Faces("photos", list(classes), [], [], {"train": samples}, None, notes)


def open_photos(path, classes, val_fraction=0.15):
    """Photos without their masks: `Faces` with the splits `unlabelled` and `val`; no sample has a label.

    path: a data set, of which the photos in unlabelled/ are taken where it is your own and has them, else
    those of `train`; or a folder of pictures, each taken for a person of its own. classes: names.
    """
    if path == "synthetic":
        raise UserError("unlabelled synthetic: need photos in a folder; synthetic faces are labelled")
    faces = open_any(path, classes, val_fraction)
    photos = [s._replace(label=None) for s in unlabelled_of(faces, path)]
    held = [s._replace(label=None) for s in faces.splits.get("val", [])]
    if not held and val_fraction > 0:
        if len({s.group for s in photos}) < 2:
            raise UserError(
                f"{path}: one person alone cannot be held out; a validation share of 0 does without"
            )
        photos, held = split_by_group(photos, val_fraction)
    faces.splits = {"unlabelled": photos, "val": held}
    return faces


def open_unlabelled(path, classes, val_fraction, labelled, labelled_path):
    """`Faces` with one split, `unlabelled`: photos as in `open_photos`, without people who validate in the
    data set itself or in `labelled`, the `Faces` of the folder `labelled_path`, and without copies of photos
    that validate there.

    A sample keeps its mask where the classes are the same, so that pseudo-labels can be measured by it. A
    UserError where a photo is one of a test split, by content, whatever it is called.
    """
    if path == "synthetic":
        return open_data("synthetic", synthetic.scheme_of(classes))
    faces = open_any(path, classes, val_fraction)
    photos = unlabelled_of(faces, path)
    if same_folder(path, labelled_path):
        validate = {s.group for s in labelled.splits.get("val", [])}
        photos = [s for s in photos if s.group not in validate]
    if list(faces.classes) != list(classes):
        photos = [s._replace(label=None) for s in photos]
    tests = [s.image for s in _test(faces) + _test(labelled)]
    held = [s.image for s in labelled.splits.get("val", [])]
    digests = contents([*tests, *held, *(s.image for s in photos)])
    validating = {digests[image] for image in held}
    photos = [s for s in photos if digests[s.image] not in validating]
    tested = {digests[image]: image for image in tests}
    if seen := [f"{s.image} = {tested[digests[s.image]]}" for s in photos if digests[s.image] in tested]:
        raise UserError(
            f"{path}: {counted(len(seen), 'photo')} of a test split, byte for byte; they train nothing, not "
            f"without their masks either, so take them out: {some(seen)}"
        )
    faces.splits = {"unlabelled": photos}
    return faces


def unlabelled_of(faces, path):
    """The samples to use without masks."""
    own = faces.name == "folder" and "unlabelled" in faces.splits
    photos = faces.splits.get("unlabelled" if own else "train", [])
    if not photos:
        raise UserError(f"{path}: no photos to train on; it has the splits {', '.join(faces.splits)}")
    return photos


def _test(faces):
    """Samples of the people who test, those that nobody labelled too."""
    people = {s.group for s in faces.splits.get("test", [])}
    return [s for split in ("test", "unlabelled") for s in faces.splits.get(split, []) if s.group in people]
