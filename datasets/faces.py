"""What a data set of faces is: samples with a person and a yaw, and what labels mean, once."""

import collections
import dataclasses
import hashlib
import os
import re
import typing
import unicodedata

import numpy as np

from datasets.images import looks_like_photo, size_of, unread_pictures
from utils.errors import UserError, printable
from utils.files import read_text
from utils.metrics import BACKGROUND, IGNORE_INDEX

SPLIT_OF = {  # names of folders and lists, in lower case
    **{"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"},
    **{"test": "test", "testing": "test"},
}
IGNORED = ("__ignore__", "ignore", "void")  # what they call pixels that nobody knows
# behind the stem of its photo
MASK_SUFFIXES = ("", "_mask", "_label", "_labels", "_seg", "_segmentation", "-mask", ".mask")
COMPANIONS = re.compile(  # of photos and masks, in lower case: not worth a word
    r"\..*|classes\.json|readme.*|licen[cs]e.*|landmarks|.*_ldmks\.txt|thumbs\.db|desktop\.ini|__macosx"
)


class Sample(typing.NamedTuple):
    """One photo. `label` is whatever `Faces.read_label` understands: a path, a tuple of paths, or
    None where nobody labelled it."""

    id: str  # unique in the data set and the same on every machine: path below the root, no suffix
    image: str
    label: object
    group: str  # the person, by which everything is split; the id where nobody knows
    yaw: float | None = None  # degrees; 0 is frontal
    instance: object = None  # the path of its mask of instance ids, where there is one


@dataclasses.dataclass
class Faces:
    """A data set on disk, recognised but not read yet.

    splits: lists of `Sample` by name: `train`, `val`, `test`, `unlabelled`; absent ones are absent.
    read_label(sample): (H, W) uint8 array of class ids in 0..len(classes)-1 or 255.
    things: what can be counted, by name, and the class ids of its pixels: {"face": [1, 2, 3]}; empty where
    nobody tells one from another.
    read_instance(sample): (H, W) uint8 array of ids, as large as its label: 0 is nothing that is counted, 1
    to 254 name one thing in this photo, 255 is unknown. None where the data set has no such masks.
    scenes: how many faces, at most, are put together into one scene (scenes.py); 0: photos stay as they are.
    notes: lines the user should see (a choice made, files left out and why).
    """

    name: str
    classes: list[str]
    colors: list[tuple[int, int, int]]
    flip_pairs: list[tuple[int, int]]  # class ids that a horizontal flip swaps
    splits: dict[str, list[Sample]]
    read_label: typing.Callable[[Sample], np.ndarray]
    notes: list[str] = dataclasses.field(default_factory=list)
    options: dict[str, str] = dataclasses.field(default_factory=dict)  # goes into every result
    target: str = "semantic"  # the key of a batch under which labels are found
    holds_out: bool = False  # whether `val` was held out of `train`, since the data set has none of its own
    things: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    read_instance: typing.Callable[[Sample], np.ndarray] | None = None
    scenes: int = 0


def label_info(faces):
    """What labels mean, as plain data for a checkpoint: name, classes, colors, flip_pairs, ...; `things` and
    `scenes` where there are some."""
    counted = {"things": {name: list(ids) for name, ids in faces.things.items()}, "scenes": faces.scenes}
    return {
        "name": faces.name,
        "classes": list(faces.classes),
        "colors": [list(color) for color in faces.colors],
        "flip_pairs": [list(pair) for pair in faces.flip_pairs],
        "ignore_index": IGNORE_INDEX,
        "options": dict(faces.options),
        **{key: value for key, value in counted.items() if value},
    }


SIDES = {"left": "right", "right": "left", "l": "r", "r": "l"}


def side_pairs(classes):
    """[(id, id)] of the classes whose names differ in the side alone: left/right, as a word or not, or l/r as
    a word (l_eye, eyeL) or before one (leye). A name without its partner is in no pair."""
    names = [
        re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[\W_]+", " ", name).lower() for name in classes
    ]
    found = {}
    for side in ("left|right", r"\b[lr]\b", r"^[lr](?=\w\w)"):
        for i, name in enumerate(names):
            other = re.sub(side, lambda match: SIDES[match[0]], name)
            if other != name and names.count(name) == names.count(other) == 1 and i not in found:
                j = names.index(other)
                found[i], found[j] = j, i
    return sorted((i, j) for i, j in found.items() if i < j)


def pair(photos, labels, folder):
    """[(stem, photo, label)] of two {stem: path}. All labels may share one of `MASK_SUFFIXES`. Neither may
    have what the other lacks: a label misplaced or misspelt must not turn into less data without a word.
    Overlays and ids of faces, which predict.py writes beside its masks, are no labels."""
    labels = {s: p for s, p in labels.items() if s in photos or not s.endswith(("_overlay", "_faces"))}
    folded = {_folded(stem) for stem in labels}
    suffix = max(MASK_SUFFIXES, key=lambda end: sum(_folded(stem) + end in folded for stem in photos))
    if suffix:
        ends = {stem: len(suffix) * stem.casefold().endswith(suffix) for stem in labels}
        labels = {stem[: len(stem) - ends[stem]]: path for stem, path in labels.items()}
    if labels.keys() != photos.keys():  # cameras and Windows write F1.JPG for f1.png
        names = {_folded(stem): stem for stem in photos}
        renamed = {names.get(_folded(stem), stem): path for stem, path in labels.items()}
        labels = renamed if len(names) == len(photos) and len(renamed) == len(labels) else labels
    lone = {
        "photos without a label": [stem for stem in photos if stem not in labels],
        "labels without a photo": [stem for stem in labels if stem not in photos],
    }
    if any(lone.values()):
        said = "; ".join(f"{len(stems)} {what}: {some(stems)}" for what, stems in lone.items() if stems)
        unread = [line for below, _, _ in os.walk(folder) for line in unread_pictures(below)]
        ends = ", ".join(MASK_SUFFIXES[1:])
        do = f"add, move or rename them (a mask is called as its photo, or {ends} follows)"
        raise UserError(f"{folder}: {said}; {some(unread, 3) or do}")
    return [(stem, photos[stem], labels[stem]) for stem in photos]


def _folded(stem):
    """A name that is equal where only capitals differ, or how an accent is written: macOS writes é as two."""
    return unicodedata.normalize("NFC", stem).casefold()


def split_folders(root):
    """{split: path} of the folders in `root` that are called like a split, whatever their case."""
    found = {}
    for name in sorted(os.listdir(root)):
        split = SPLIT_OF.get(name.lower())
        if split and os.path.isdir(os.path.join(root, name)):
            if split in found:
                raise UserError(
                    f"{root}: {os.path.basename(found[split])}/ and {name}/ are both {split}; keep one"
                )
            found[split] = os.path.join(root, name)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def not_read(root, samples, companions=()):
    """One line, in a list, about what lies in `root` and beside the files of its samples and is not read;
    an empty list where that is nothing but `companions`, hidden files and the like."""
    used = {path for sample in samples for path in files_of(sample)}
    beside = {
        os.path.dirname(sample.image) for sample in samples
    }  # `open_faces` says which photos it left out
    folders = {root}
    for folder in {os.path.dirname(path) for path in used}:
        while folder.startswith(os.path.join(root, "")) and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    found = []
    for folder in sorted(folders):
        with os.scandir(folder) as entries:
            left = [e for e in entries if e.path not in used and e.path not in folders]
        left = [e for e in left if e.name not in companions and not COMPANIONS.fullmatch(e.name.lower())]
        left = [e for e in left if folder not in beside or not looks_like_photo(e.name)]
        where = "" if folder == root else f" in {os.path.relpath(folder, root)}/"
        kinds = {}  # of files, by suffix
        for entry in sorted(left, key=lambda e: e.name):
            kind = entry.name if entry.is_dir() else os.path.splitext(entry.name)[1].lower()
            kinds.setdefault(kind, []).append(entry.name + "/" if entry.is_dir() else entry.name)
        for kind, names in kinds.items():
            found += [f"{len(names)} {kind} files{where}"] if len(names) > 2 else [n + where for n in names]
    return [f"not read: {some(found)}"] if found else []


def files_of(sample):
    """The paths of a sample: its photo, the files that its label is made from, its mask of instance ids."""
    labels = sample.label if isinstance(sample.label, (tuple, list)) else [sample.label]
    return [path for path in (sample.image, *labels, sample.instance) if isinstance(path, str)]


def check_classes(names, where):
    """A UserError that begins with `where`, unless `names` are texts that can be shown and told apart."""
    for name in names:
        if not isinstance(name, str) or printable(name).splitlines() != [name] or name != name.strip():
            raise UserError(f"{where}: class {name!r}: need a name in one line, without spaces around it")
    seen = {}
    for name in names:
        if (first := seen.setdefault(name.casefold(), name)) != name:
            raise UserError(f"{where}: classes {first} and {name} differ in capitals alone: call both alike")


def check_points(values, size):
    """A ValueError, unless `values` are x, y, x, y, ... of a shape on a picture of size (width, height)."""
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iuf" or len(found) % 2:
        raise ValueError("its points are no pairs of numbers")
    reach = max(size)  # outside of the picture by as much as it is large
    if not ((found >= -reach) & (found <= 2 * reach)).all():  # nor NaN
        raise ValueError(f"it has points far outside of {size[0]}x{size[1]} pixels")


def check_drawn_on(size, photo, label):
    """A UserError that begins with `label`, where shapes were drawn on a picture of another `size`, (width,
    height), than the photo has. Of a photo that is turned upright afterwards the scan speaks."""
    found = size_of(photo)
    if sorted(found) != sorted(size):
        raise UserError(
            f"{label}: drawn on {size[0]}x{size[1]} pixels, but {photo} has {found[0]}x{found[1]}; put the "
            "photo there that was annotated"
        )


def counted(n, noun):
    """ "1 photo", "8 photos"."""
    return f"{n} {noun}" + "s" * (n != 1)


def class_id(name, classes):
    """The id of a labelling tool's class, 0 or 255 where it is called as in `BACKGROUND` or `IGNORED`."""
    if name.lower() in IGNORED:
        return IGNORE_INDEX
    return 0 if name.lower() in BACKGROUND else classes.index(name)


def after_background(names):
    """Names without those that are not a class of their own: `BACKGROUND` and `IGNORED`."""
    return [name for name in names if name.lower() not in BACKGROUND + IGNORED]


def palette(n):
    """n different colours, black first, as Pascal VOC has them: the bits of the id are dealt to red, green
    and blue in turn."""
    return [
        tuple(sum((i >> (3 * bit + c) & 1) << (7 - bit) for bit in range(3)) for c in range(3))
        for i in range(n)
    ]


def some(names, n=10):
    """The first n names, for a message."""
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def read_lines(path):
    """Lines of a small text file that a data set comes with."""
    return read_text(path).splitlines()


def split_by_group(samples, fraction, seed=0):
    """(rest, held out): whole groups are held out until `fraction` of the groups is reached (at
    least one). The choice depends on the group names and the seed alone, not on the samples."""
    groups = sorted({s.group for s in samples}, key=lambda g: rank(seed, g))
    if len(groups) < 2:
        raise UserError("validation needs at least two people; the labelled photos show one")
    held = set(groups[: min(len(groups) - 1, max(1, round(fraction * len(groups))))])
    return [s for s in samples if s.group not in held], [s for s in samples if s.group in held]


def limit(samples, n, seed):
    """n samples spread over people and yaw, nested: the first n of `limit(samples, n + 1, seed)`.

    Greedy: the next sample is of the person, then of the |yaw| (to 15 degrees), then of the yaw
    chosen least so far; ties are broken by a hash of (seed, id).
    """
    if n > len(samples):
        raise UserError(f"limit {n}: there are only {counted(len(samples), 'photo')} to train on")
    left = sorted(samples, key=lambda s: rank(seed, s.id))
    people = {}  # {person: {yaw: places in `left`, the first one last}}
    for place, sample in reversed([*enumerate(left)]):
        yaw = 15 * round((sample.yaw or 0) / 15)
        people.setdefault(sample.group, {}).setdefault(yaw, []).append(place)
    sides, yaws = collections.Counter(), collections.Counter()  # of each |yaw| and yaw: how many are taken
    taken = []
    while len(taken) < n:  # a round, in which everybody who has photos left is chosen once
        people = {person: {yaw: p for yaw, p in places.items() if p} for person, places in people.items()}
        people = {person: places for person, places in people.items() if places}
        first = {}  # {yaw: [(place, person)], everybody's first photo of it, the first one last}
        for person, places in people.items():
            for yaw in places:
                first.setdefault(yaw, []).append((places[yaw][-1], person))
        for rows in first.values():
            rows.sort(reverse=True)
        chosen = set()
        while len(taken) < n:
            for rows in first.values():
                while rows and rows[-1][1] in chosen:
                    rows.pop()
            if not (open_yaws := [yaw for yaw, rows in first.items() if rows]):
                break
            yaw = min(open_yaws, key=lambda yaw: (sides[abs(yaw)], yaws[yaw], first[yaw][-1]))
            place, person = first[yaw].pop()
            people[person][yaw].pop()
            chosen.add(person)
            sides[abs(yaw)] += 1
            yaws[yaw] += 1
            taken.append(left[place])
    return taken


def rank(seed, text):
    """Where `text` stands in an order by chance, 64 hex digits: a hash, the same on every machine."""
    return hashlib.sha256(f"{seed}:{text}".encode(errors="surrogateescape")).hexdigest()
