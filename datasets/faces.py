"""What a data set of faces is: samples with a person and a yaw, and what labels mean, once."""

import dataclasses
import hashlib
import re
import typing

import numpy as np

from utils.errors import UserError
from utils.metrics import IGNORE_INDEX


class Sample(typing.NamedTuple):
    """One photo. `label` is whatever `Faces.read_label` understands: a path, a tuple of paths, or
    None where nobody labelled it."""

    id: str  # unique in the data set and the same on every machine: path below the root, no suffix
    image: str
    label: object
    group: str  # the person, by which everything is split; the id where nobody knows
    yaw: float | None = None  # degrees; 0 is frontal


@dataclasses.dataclass
class Faces:
    """A data set on disk, recognised but not read yet.

    splits: lists of `Sample` by name: `train`, `val`, `test`, `unlabelled`; absent ones are absent.
    read_label(sample): (H, W) uint8 array of class ids in 0..len(classes)-1 or 255.
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


def label_info(faces):
    """What labels mean, as plain data for a checkpoint: name, classes, colors, flip_pairs, ..."""
    return {
        "name": faces.name,
        "classes": list(faces.classes),
        "colors": [list(color) for color in faces.colors],
        "flip_pairs": [list(pair) for pair in faces.flip_pairs],
        "ignore_index": IGNORE_INDEX,
        "options": dict(faces.options),
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
    """[(stem, photo, label)] of two {stem: path}. Neither may have what the other lacks: a label
    misplaced or misspelt must not turn into less data without a word."""
    for what, has, lacks in (
        ("photos without a label", photos, labels),
        ("labels without a photo", labels, photos),
    ):
        if lone := [stem for stem in has if stem not in lacks]:
            raise UserError(f"{folder}: {len(lone)} {what}: {some(lone)}; add, move or remove them")
    return [(stem, photos[stem], labels[stem]) for stem in photos]


def some(names, n=10):
    """The first n names, for a message."""
    names = list(names)
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def read_lines(path):
    """Lines of a small text file that a data set comes with."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def split_by_group(samples, fraction, seed=0):
    """(rest, held out): whole groups are held out until `fraction` of the groups is reached (at
    least one). The choice depends on the group names and the seed alone, not on the samples."""
    groups = sorted({s.group for s in samples}, key=lambda g: _rank(seed, g))
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
        raise UserError(f"limit {n}: there are {len(samples)} labelled training images")
    left = sorted(samples, key=lambda s: _rank(seed, s.id))
    people = [s.group for s in left]
    angle = np.array([15 * round((s.yaw or 0) / 15) for s in left])
    traits = [np.unique(t, return_inverse=True)[1] for t in (people, abs(angle), angle)]
    counts = [np.zeros(len(left), np.int64) for _ in traits]  # of each person, |yaw| and yaw chosen
    free = np.ones(len(left), bool)
    taken = []
    for _ in range(n):
        person, side, yaw = (count[trait] for count, trait in zip(counts, traits, strict=True))
        key = (person * (n + 1) + side) * (n + 1) + yaw
        best = int(np.where(free, key, np.iinfo(np.int64).max).argmin())
        free[best] = False
        taken.append(left[best])
        for count, trait in zip(counts, traits, strict=True):
            count[trait[best]] += 1
    return taken


def _rank(seed, text):
    return hashlib.sha256(f"{seed}:{text}".encode(errors="surrogateescape")).hexdigest()
