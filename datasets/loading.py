"""From a `--data` flag to batches: open a data set, take a split of it, and say who is next."""

import collections
import json
import os

import torch

from datasets import open_faces, synthetic
from datasets.cache import CachedFaces
from datasets.faces import Faces, Sample, limit, pictures, some, split_by_group
from utils import rng
from utils.errors import UserError

SYNTHETIC = {"train": 100_000, "val": 128, "test": 256}  # faces in each split
HELD_OUT = {"train": 0, "val": 7_000_001, "test": 7_000_003}  # added to the seed, so none is shared


def open_data(path, scheme="full", part_order="canonical", val_fraction=0.15, ids=None):
    """`Faces` of a folder or of `synthetic`, with a validation split: that of the file `ids`, or else the
    data set's own, or else `val_fraction` of the people of `train` (always the same ones, whatever the
    seed)."""
    if path == "synthetic":
        if ids:
            raise UserError(f"--ids {ids}: synthetic faces have no ids; --ids is for a folder of photos")
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
    return faces


def take_ids(faces, path):
    """`faces` with the training and validation photos that a JSON file names, in its order:
    {"train": [ids], "val": [ids]}, each the `id` of a labelled sample of any split but `test`. Without
    the key "val" nobody validates. Raises UserError: unknown ids, an id or a person on both sides."""
    try:
        with open(path, encoding="utf-8") as file:
            sides = json.load(file)
    except OSError as error:
        raise UserError(f"--ids {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"--ids {path}: not JSON ({error})") from None
    if not isinstance(sides, dict) or "train" not in sides or not sides.keys() <= {"train", "val"}:
        raise UserError(f'--ids {path}: need {{"train": [ids], "val": [ids]}} and no other keys')
    for side, ids in sides.items():
        if not (isinstance(ids, list) and ids and all(isinstance(i, str) for i in ids)):
            raise UserError(f"--ids {path}: {side} needs a list of sample ids, at least one")
    open_to = [s for split, samples in faces.splits.items() if split != "test" for s in samples]
    labelled = [s for s in open_to if s.label is not None]
    named, both = {s.id: s for s in labelled}, [i for ids in sides.values() for i in ids]
    if unknown := [i for i in both if i not in named]:
        like = f"; ids here are like {some(named, 2)}" if named else ""
        raise UserError(f"--ids {path}: of no labelled photo outside of test: {some(unknown, 5)}{like}")
    if twice := [i for i, times in collections.Counter(both).items() if times > 1]:
        raise UserError(f"--ids {path}: named twice, on one side or on both: {some(twice, 5)}")
    train, val = ([named[i] for i in sides.get(side, [])] for side in ("train", "val"))
    if shared := {s.group for s in train} & {s.group for s in val}:
        raise UserError(f"--ids {path}: people in train and in val alike: {some(sorted(shared), 5)}")
    faces.notes.append(f"--ids {path}: {len(both)} of {len(labelled)} labelled photos; {len(val)} images of "
                       f"{len({s.group for s in val})} people validate")  # fmt: skip
    rest = {split: found for split, found in faces.splits.items() if split not in ("train", "val")}
    faces.splits = {"train": train} | ({"val": val} if val else {}) | rest
    return faces


def which_ids(ids, data, saved, limit=None):
    """The file that --ids means: the one given, or that of a checkpoint's flags `saved` (None: there is no
    checkpoint) where `data` is None or the checkpoint's. Refused beside --limit."""
    if not ids and saved and (not data or os.path.realpath(data) == os.path.realpath(saved["data"])):
        ids = saved.get("ids")
    if ids and limit:
        raise UserError(f"--limit {limit}: --ids {ids} says already which photos train; give one of the two")
    return ids


def open_any(path, classes=(), val_fraction=0.0):
    """`Faces` of a data set, or of a folder of pictures without masks, each taken for a person of its own."""
    plain = pictures(path) if os.path.isdir(path) else {}
    try:
        return open_data(path, val_fraction=val_fraction)
    except UserError:
        if not plain:
            raise
    samples = [Sample(stem, file, None, stem) for stem, file in plain.items()]
    return Faces("photos", list(classes), [], [], {"train": samples}, None)


def open_photos(path, classes, val_fraction=0.15):
    """Photos without their masks: `Faces` with the splits `train` and `val`, where no sample has a label.

    path: a data set, of which the photos in unlabelled/ are taken where it is your own and has them, else
    those of `train`; or a folder of pictures, each taken for a person of its own. classes: names.
    """
    if path == "synthetic":
        raise UserError("--unlabelled synthetic: need photos in a folder; synthetic faces are labelled")
    faces = open_any(path, classes, val_fraction)
    own = faces.name == "folder" and "unlabelled" in faces.splits
    mine = [s._replace(label=None) for s in faces.splits["unlabelled" if own else "train"]]
    held = [s._replace(label=None) for s in faces.splits.get("val", [])]
    if not held and val_fraction > 0:
        if len({s.group for s in mine}) < 2:
            raise UserError(f"{path}: one person alone cannot be held out; --val-fraction 0 does without")
        mine, held = split_by_group(mine, val_fraction)
    faces.splits = {"train": mine, "val": held}
    return faces


def load(faces, split, size, seed=0, count=None, device="cpu", allocation=None, trainer=None):
    """One split as data: `len(data)`, `data[[3, 1]]` -> batch dict, `data.groups`, `data.yaws`.

    count: so many labelled images, spread over people and yaw. allocation: a policy's, of which `trainer`
    (`ft` or `reward`) gets its share, and a line in faces.notes. Raises UserError if there is none.
    """
    if faces.name == "synthetic":
        if allocation:
            raise UserError("--augment: its allocation names photos, and synthetic faces have no ids")
        scheme = synthetic.scheme_of(faces.classes)
        if split not in SYNTHETIC:
            raise UserError(f"synthetic faces have the splits {', '.join(SYNTHETIC)}; not {split}")
        # held-out faces are the same for every seed, and are rendered once
        seed = (seed if split == "train" else 0) + HELD_OUT[split]
        data = synthetic.SyntheticFaces(count or SYNTHETIC[split], seed, size, scheme, device)
        return data if split == "train" else InMemory(data)
    samples = faces.splits.get(split, [])
    if not samples:
        have = ", ".join(f"{k} ({len(v)})" for k, v in faces.splits.items())
        hint = "; --val-fraction 0.15 holds people out, where there are two" if split == "val" else ""
        raise UserError(f"{faces.name} has no split {split}; it has {have}{hint}")
    samples = limit(samples, count, seed) if count else samples
    if allocation:
        mine = set(allocation.get(trainer, [s.id for s in samples])) - set(allocation.get("quarantine", []))
        kept = [s for s in samples if s.id in mine]
        out = f"{len(samples) - len(kept)} of {len(samples)} training photos (allocation, {trainer})"
        if not kept:
            raise UserError(f"--augment: the policy leaves out {out}; nobody is left")
        faces.notes.append(f"the policy leaves out {out}")
        samples = kept
    return CachedFaces(faces, samples, size)


class Evenly:
    """At most `count` rows of a data set, evenly spaced: always the same ones."""

    def __init__(self, data, count):
        count = min(count, len(data))
        self.data, self.rows = data, [i * len(data) // count for i in range(count)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.data[[self.rows[i] for i in index]]


class InMemory:
    """A small data set read once, in pieces of 32."""

    def __init__(self, data):
        rows = list(range(len(data)))
        pieces = [data[rows[i : i + 32]] for i in range(0, len(rows), 32)]
        self.batch = {k: torch.cat([p[k] for p in pieces]) for k in pieces[0]}
        self.groups, self.yaws = [str(i) for i in rows], self.batch["yaw"].tolist()

    def __len__(self):
        return len(self.groups)

    def __getitem__(self, index):
        return {k: v[index] for k, v in self.batch.items()}


def mix(real, share, classes, size, seed, device):
    """What a loader reads: `real`, or with share > 0 `Mixed` with synthetic faces."""
    if not share:
        return real
    if isinstance(real, synthetic.SyntheticFaces):
        raise UserError(f"--synthetic {share}: --data synthetic is all synthetic already")
    if not 0 < share <= 1:
        raise UserError(f"--synthetic {share}: need a share from 0 to 1")
    scheme = synthetic.scheme_of(classes)
    return Mixed(real, synthetic.SyntheticFaces(10**9, seed, size, scheme, device))


class Mixed:
    """Real faces at 0..len(real)-1 and synthetic ones beyond, in one batch."""

    def __init__(self, real, faces):
        self.real, self.synthetic = real, faces

    def __getitem__(self, index):
        n, batches, rows = len(self.real), [], []
        for data, first in ((self.real, 0), (self.synthetic, n)):
            mine = [row for row, i in enumerate(index) if (i >= n) == (first == n)]
            if mine:
                batches.append(data[[index[row] - first for row in mine]])
                rows += mine
        back = torch.tensor(rows).argsort()
        keys = ("image", "semantic")
        return {k: torch.cat([batch[k].cpu() for batch in batches])[back] for k in keys}


class Order(torch.utils.data.Sampler):
    """The indices of each step from `first` to `last`, a function of (seed, step) alone.

    The whole batch of one step is `world` times `batch_size` images; every epoch goes through all n
    images in a new order, and a batch may span two epochs, so that n may be smaller than a batch.
    share: that part of the images, evenly spread, is n, n + 1, ..., each once (synthetic faces).
    """

    def __init__(self, n, batch_size, seed, first, last, rank=0, world=1, share=0.0):
        self.n, self.batch_size, self.seed, self.share = n, batch_size, seed, share
        self.steps, self.rank, self.world = range(first, last), rank, world

    def __len__(self):
        return len(self.steps)

    def __iter__(self):
        whole, orders = self.world * self.batch_size, {}
        for step in self.steps:
            first, indices = step * whole + self.rank * self.batch_size, []
            for position in range(first, first + self.batch_size):
                made = int(position * self.share + 1e-9)  # synthetic faces before this position
                if int((position + 1) * self.share + 1e-9) > made:
                    indices.append(self.n + made)
                    continue
                epoch, row = divmod(position - made, self.n)
                if epoch not in orders:
                    orders = {k: v for k, v in orders.items() if k == epoch - 1}
                    orders[epoch] = rng.order(self.seed, epoch, self.n).tolist()
                indices.append(orders[epoch][row])
            yield indices


def positions(step, batch_size, rank=0, world=1):
    """(batch_size,) int64: the numbers of this process's images among all that a run ever sees,
    from which their augmentation is drawn."""
    return torch.arange(batch_size) + (step * world + rank) * batch_size
