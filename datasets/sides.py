"""Photos for a two-sample test: people rather than photos, none twice, none that a parser learned from."""

import hashlib
import os
import typing

import torch

from datasets import synthetic
from datasets.cache import CachedFaces
from datasets.faces import limit, some
from datasets.splits import open_any, open_photos, take_ids, unlabelled_of
from utils import checkpoint
from utils.errors import UserError
from utils.ks.features import thumbnails
from utils.ks.test import by_person, copies
from utils.metrics import IGNORE_INDEX

PHOTOS = 4  # of one person, at most: a split takes one


class Side(typing.NamedTuple):
    """Photos of one side at twice the size that is tested, so that an operation and the resampling after
    it cost sharpness on either side alike."""

    images: torch.Tensor  # (N, 3, 2 S, 2 S) uint8
    labels: torch.Tensor  # (N, 2 S, 2 S) uint8, 255 where there are none
    people: list  # names; an equal name on the other side is the same person
    ids: list
    classes: list  # what the labels mean
    groups: list  # the people as their data set names them
    digests: list  # of what each photo and its mask hold; None of synthetic ones
    contents: list  # of what the photo's file holds; None of synthetic ones

    def keep(self, rows):
        lists = (self.people, self.ids, self.groups, self.digests, self.contents)
        people, ids, groups, digests, contents = (x and [x[i] for i in rows] for x in lists)
        images, labels = self.images[rows], self.labels[rows]
        return Side(images, labels, people, ids, self.classes, groups, digests, contents)

    def join(self, other):
        """One side after the other. Masks that mean something else are left out; what files hold is None
        where either side is synthetic."""
        labels = (
            other.labels if other.classes == self.classes else torch.full_like(other.labels, IGNORE_INDEX)
        )
        images, labels = torch.cat([self.images, other.images]), torch.cat([self.labels, labels])
        people, ids = self.people + other.people, self.ids + other.ids
        groups = self.groups + other.groups
        files = (self.digests, other.digests), (self.contents, other.contents)
        digests, contents = (one and two and one + two for one, two in files)
        return Side(images, labels, people, ids, self.classes, groups, digests, contents)

    def digest(self):
        """sha256 of the names and pixels, in order."""
        return hashlib.sha256("\n".join(self.ids).encode() + self.images.numpy().tobytes()).hexdigest()


def open_side(path, splits, yaw, n, size, seed, classes=None, seen=()):
    """(Side, notes): at most 4 n people with at most `PHOTOS` photos of each.

    splits: names, None for all but `test`. yaw: (from, to) of |yaw| in degrees, or None. classes: what
    synthetic faces are labelled with. seen: {(folder, person)} that are left out.
    """
    low, high = yaw or (0, 180)
    if path == "synthetic":
        return _synthetic_side(low, high, 4 * n, size, seed, classes), []
    faces = open_any(path)
    names = splits or [name for name in faces.splits if name != "test"]
    if missing := [name for name in names if name not in faces.splits]:
        raise UserError(f"{path}: no split {missing[0]}; there is {', '.join(faces.splits)}")
    samples = [s for name in names for s in faces.splits[name]]
    folder = os.path.realpath(path)
    if yaw:
        samples = [s for s in samples if s.yaw is not None and low <= abs(s.yaw) <= high]
    free = [s for s in samples if (folder, s.group) not in seen]
    notes = []
    if gone := {s.group for s in samples} - {s.group for s in free}:
        notes.append(f"{path}: {len(gone)} people left out, since the parser was trained on them")
    if not free:
        why = f"in {', '.join(names)}" + (f" with |yaw| {low:g} to {high:g}" if yaw else "")
        raise UserError(
            f"{path}: no photo is left" + ("; the parser was trained on them" if gone else f" {why}")
        )
    rows = by_person([s.group for s in free])
    rank = lambda g: hashlib.sha256(f"{seed}/{g}".encode(errors="surrogateescape")).digest()
    people = sorted(rows, key=rank)
    chosen = []
    for person in people[: 4 * n]:
        own = [free[i] for i in rows[person]]
        chosen += limit(own, min(PHOTOS, len(own)), seed)
    data = CachedFaces(faces, chosen, 2 * size)
    batch = data[list(range(len(chosen)))]
    # without named people every photo is somebody else, and equal file names of two folders mean nothing
    names = [s.group if s.group != s.id else f"{folder}/{s.id}" for s in chosen]
    images, labels = batch["image"], batch[faces.target]
    known = data.groups, data.digests, data.contents
    return Side(images, labels, names, data.ids, faces.classes, *known), notes


def _synthetic_side(low, high, count, size, seed, classes):
    known = [name for name, scheme in synthetic.SCHEMES.items() if scheme.classes == classes]
    data = synthetic.SyntheticFaces(10**9, seed, size, known[0] if known else "full")
    found, first = [], 0
    while sum(len(b["yaw"]) for b in found) < count:
        if first > 200 * count:
            raise UserError(f"no synthetic face in a hundred has |yaw| {low:g} to {high:g}")
        batch = data[list(range(first, first + 64))]
        rows = ((batch["yaw"].abs() >= low) & (batch["yaw"].abs() <= high)).nonzero()[:, 0]
        found.append({k: v[rows] for k, v in batch.items()})
        first += 64
    image, label, index = (torch.cat([b[k] for b in found])[:count] for k in ("image", "semantic", "index"))
    ids = [f"synthetic/{seed}/{i}" for i in index.tolist()]
    # as they are used, and twice as large: halving them again gives every pixel back
    image, label = (x.repeat_interleave(2, -1).repeat_interleave(2, -2) for x in (image, label))
    return Side(image, label, ids, ids, synthetic.SCHEMES[data.scheme].classes, ids, None, None)


def trained_on(path):
    """({(folder, person)} of the training photos of a checkpoint and of those that it was started from or
    taught by, notes about those that cannot be known). path: of the checkpoint; None gives nobody."""
    seen, notes, chain = set(), [], []
    waiting = [(path, None)] if path else []
    while waiting:
        path, later = waiting.pop(0)
        if path in chain:
            continue
        if later and not os.path.isfile(path):
            notes.append(f"people who trained the start of {later} are not known: {path} is not there")
            continue
        chain.append(path)
        args = checkpoint.load(path, holds="args")["args"]
        for folder, flags in sources(args):
            if folder != "synthetic" and not os.path.isdir(folder):
                notes.append(f"people who trained {path} are not known: {folder} is not there")
            elif folder != "synthetic":
                train = training_photos(folder, flags)
                train = limit(train, flags["limit"], flags["seed"]) if flags.get("limit") else train
                seen |= {(os.path.realpath(folder), s.group) for s in train}
        starts = args.get("teacher") or [args.get("init")]
        waiting += [(start, path) for start in starts if start]
    return seen, notes


def sources(flags):
    """[(folder, flags)] that a run with these flags {name: value} trained on."""
    labelled = flags["data"], flags | {"unlabelled": None}
    if not flags.get("unlabelled"):
        return [labelled]
    if flags.get("teacher"):  # a student learns from both; its limit is of the labelled ones
        return [labelled, (flags["unlabelled"], flags | {"limit": None})]
    return [(flags["unlabelled"], flags)]  # of scores; its data is that of its start


def training_photos(folder, flags):
    """The samples that a run with these flags {name: value} trained on, before a limit."""
    held_out = flags.get("val_fraction", 0.0)
    if flags.get("unlabelled") and flags.get("teacher"):
        return unlabelled_of(open_any(folder, (), held_out), folder)
    if flags.get("unlabelled"):
        return open_photos(folder, (), held_out).splits["unlabelled"]
    ids = flags.get("ids")
    faces = open_any(folder, (), 0.0 if ids else held_out)
    return (take_ids(faces, ids) if ids else faces).splits.get("train", [])


def refuse_copies(one, two, drop):
    """The sides without photos that look like another one, which are taken for copies; or a UserError that
    names them."""
    thumbs = [thumbnails(side.images).numpy() for side in (one, two) if side]
    both = copies(thumbs[0], one.people, thumbs[1], two.people) if two else []
    like = {}  # {(side, row): "its name and that of one that it looks like"}
    for i, j in both:
        like.setdefault((1, j), f"{two.ids[j]} and {one.ids[i]}")
    across = f" ({len(like)} of the other side)" if like else ""
    for k, side in enumerate((one, two)[: len(thumbs)]):
        for i, j in copies(thumbs[k], side.people):
            like.setdefault((k, j), f"{side.ids[j]} and {side.ids[i]}")
    names = some(like.values(), 4)
    if like and not drop:
        raise UserError(
            f"{len(like)} photos look like another one{across}: {names}; a copy is no evidence: "
            "remove them, or have them dropped"
        )
    kept = [
        side and side.keep([i for i in range(len(side.ids)) if (k, i) not in like])
        for k, side in enumerate((one, two))
    ]
    if two and not kept[1].ids:
        raise UserError("every photo of one side looks like one of the other")
    return *kept, [f"{len(like)} photos left out that look like another one: {names}"] if like else []
