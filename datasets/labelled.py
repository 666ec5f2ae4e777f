"""Images with a class, and perhaps a domain, each: `open_images` says what there is, `load` reads a split."""

import collections
import dataclasses
import hashlib
import os

import numpy as np
import torch
import torch.nn.functional as F

from datasets import cifar, class_folder, mnist, recognise, shapes
from datasets.batches import APART
from datasets.cache import CachedFaces, contents
from datasets.faces import Faces, Sample, check_classes, counted, not_read, rank, some
from datasets.images import pictures, unread_pictures
from datasets.splits import same_folder
from utils.errors import UserError

ARRAYS = (mnist, cifar)
LOOKED_FOR = ", or ".join(module.LOOKS_FOR for module in (*ARRAYS, class_folder))
MANY = 20  # classes; a table shows no line for each of more


@dataclasses.dataclass
class Images:
    """A data set recognised, but not read yet.

    splits: lists of `Sample` (faces.py) by name: `train`, `val`, `test`; absent ones are absent. A label is
    (id of the class, id of the domain or None), or None where nobody labelled the image; `image` is a path, a
    row of `pixels`, or a shape's index.
    holds_out: whether `val` was held out, since the data set has none of its own. notes: for the user, a line
    each.
    """

    name: str
    classes: list[str]
    domains: list[str]  # empty where there are none
    splits: dict[str, list[Sample]]
    notes: list[str] = dataclasses.field(default_factory=list)
    holds_out: bool = False
    pixels: np.ndarray | None = None  # (M, 1 or 3, H, W) uint8, of data sets that are arrays


def label_info(images):
    """What labels mean, as plain data for a checkpoint."""
    return {
        "name": images.name,
        "target": "class",
        "classes": list(images.classes),
        "domains": list(images.domains),
    }


# ---- which images there are, and who is in which split


def open_images(path, val_fraction=0.15, leave_out=None):
    """`Images` of a folder or of `shapes`, or a `UserError` that says what was looked for.

    val_fraction: where there is no split for validation, this share of each class (and domain) of `train` is
    held out, always the same images, whatever the seed; where there are no splits at all, as much is held out
    for `test` before. leave_out: a domain that is the test set, and neither trains nor validates.
    """
    if path == "shapes":
        splits = {split: shapes.samples(split) for split in shapes.SPLITS}
        images = Images("shapes", shapes.CLASSES, shapes.DOMAINS, splits)
    else:
        images = _recognise(os.fspath(path))
    if leave_out is not None:
        _leave_out(images, leave_out, path)
    splits = images.splits
    if "all" in splits:
        splits["train"], splits["test"] = hold_out(splits.pop("all"), val_fraction, seed=1)
        if splits["test"]:
            images.notes.append(f"no test split: {_held(splits['test'], splits['train'])}")
    if "val" not in splits:
        images.holds_out = True
        splits["train"], splits["val"] = hold_out(splits["train"], val_fraction)
        if splits["val"]:
            images.notes.append(f"no validation split: {_held(splits['val'], splits['train'])}")
    images.splits = {split: splits[split] for split in ("train", "val", "test") if splits.get(split)}
    if images.name != "shapes":
        images.notes += _copies(images)
    return images


def open_unlabelled(path, classes, val_fraction, labelled, labelled_path):
    """`Images` with one split, `unlabelled`, of images without labels: those that train in a data set of any
    classes, or a folder of pictures, or other shapes; without copies of images that validate in `labelled`,
    the `Images` of `labelled_path`. classes: the names that the teacher tells apart.

    Raises UserError where one is an image of a test split, by content, whatever it is called.
    """
    if path == "shapes":
        found = Images("shapes", classes, [], {"train": shapes.samples("unlabelled")})
    elif same_folder(path, labelled_path):
        found = labelled
    else:
        found = _open_any(path, val_fraction)
    samples = found.splits.get("train", [])
    if found.name != "shapes":
        held, tested = _ids_by_content("val", labelled), _ids_by_content("test", found, labelled)
        known = _contents(found, samples)
        samples = [s for s in samples if known[s.image] not in held]
        if seen := [f"{s.id} = {tested[known[s.image]]}" for s in samples if known[s.image] in tested]:
            raise UserError(
                f"{path}: {counted(len(seen), 'image')} of a test split, byte for byte; they train nothing, "
                f"not without their labels either, so take them out: {some(seen)}"
            )
    if not samples:
        raise UserError(f"{path}: no images to train on")
    samples = [s._replace(label=None) for s in samples]
    notes = [] if found is labelled else found.notes
    return dataclasses.replace(
        found, classes=classes, domains=[], splits={"unlabelled": samples}, notes=notes
    )


def _open_any(path, val_fraction):
    """`Images` of a data set, or of a folder of pictures, which are all in `train`."""
    try:
        return open_images(path, val_fraction)
    except UserError:
        if not (plain := pictures(path)):
            raise
    samples = [Sample(stem, file, None, stem) for stem, file in plain.items()]
    left_out = unread_pictures(path)
    notes = [f"left out: {some(left_out, 5)}"] if left_out else []
    return Images("pictures", [], [], {"train": samples}, notes + not_read(os.fspath(path), samples))


def _ids_by_content(split, *sources):
    """{hash of what an image holds: its id} of a split of several `Images`."""
    found = {}
    for images in sources:
        samples = images.splits.get(split, []) if images.name != "shapes" else []
        known = _contents(images, samples)
        found |= {known[s.image]: s.id for s in samples if known[s.image]}
    return found


def known_domain(path, domain):
    """The domain where the data set at `path` has one of that name, else None: what a checkpoint left out is
    left out of a copy of its data, too, and of no other data."""
    if domain is None:
        return None
    domains = shapes.DOMAINS if path == "shapes" else _recognise(os.fspath(path)).domains
    return domain if domain in domains else None


def _recognise(root):
    if not os.path.exists(root):
        raise UserError(f"{root}: no such folder")
    if not os.path.isdir(root):
        raise UserError(f"{root}: a file; unpack it and give the folder")
    _refuse_masks(root)
    arrays = [found for module in ARRAYS if (found := module.recognise(root))]
    if len(arrays) > 1:  # as a folder that torchvision filled
        both = " and ".join(found["name"] for found in arrays)
        raise UserError(f"{root}: both {both}; give the folder of one: MNIST/, or that of CIFAR itself")
    found = arrays[0] if arrays else class_folder.recognise(root)
    if found is None:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
        inside = os.path.join(root, names[0]) if len(names) == 1 else ""
        there = f"there is: {some(names, 5) or 'nothing'}"
        hint = f"did you mean {inside}?" if os.path.isdir(inside) else there
        raise UserError(f"{root}: no images with classes; looked for {LOOKED_FOR}; {hint}")
    if "labels" in found:
        found["splits"] = _rows(found.pop("labels"))
    images = Images(**{"domains": [], **found})
    check_classes(images.classes, root)
    check_classes(images.domains, f"{root}: domains")
    if len(images.classes) < 2:
        raise UserError(f"{root}: one class alone, {images.classes[0]}; need two or more folders of pictures")
    return images


def _refuse_masks(root):
    """images/ beside labels/ are no two classes."""
    try:
        faces = recognise(root)
    except UserError as error:
        raise UserError(
            f"{root}: laid out like photos with masks, not like images with classes ({error})"
        ) from None
    if faces and any(s.label is not None for samples in faces.splits.values() for s in samples):
        raise UserError(
            f"{root}: photos with masks ({faces.name}): train_finetune.py trains on them; of images with "
            f"classes looked for {LOOKED_FOR}"
        )


def _rows(labels):
    """{split: samples} of {split: ids of classes}; the images are rows, of one split after the other."""
    splits, first = {}, 0
    for split, ids in labels.items():
        names = [f"{split}/{i}" for i in range(len(ids))]
        splits[split] = [
            Sample(name, first + i, (label, None), name)
            for i, (name, label) in enumerate(zip(names, ids, strict=True))
        ]
        first += len(ids)
    return splits


def _leave_out(images, domain, path):
    if domain not in images.domains:
        has = f"no such domain; it has {', '.join(images.domains)}" if images.domains else "it has no domains"
        raise UserError(f"{path}: domain {domain} cannot be left out: {has}")
    out = images.domains.index(domain)
    splits = images.splits
    if "all" in splits:
        splits = dict.fromkeys(("train", "test"), splits["all"])
    images.splits = {
        split: [s for s in samples if (s.label[1] == out) == (split == "test")]
        for split, samples in splits.items()
    }
    images.notes.append(f"{domain} is left out: {counted(len(images.splits['test']), 'image')} of it test")


def hold_out(samples, fraction, seed=0):
    """(rest, held out): the images whose hash of (seed, id) is below `fraction`, whichever others there are;
    but at least one of each class and domain, and never all of it. A fraction of 0 holds out none."""
    place = {s.id: int(rank(seed, s.id)[:13], 16) / 16**13 for s in samples}  # from 0 to below 1
    cells = collections.defaultdict(list)
    for sample in samples:
        cells[sample.label].append(sample.id)
    held = set()
    for ids in cells.values() if fraction > 0 else []:
        ids.sort(key=place.get)
        below = sum(place[i] < fraction for i in ids)
        held.update(ids[: min(max(below, 1), len(ids) - 1)])
    return [s for s in samples if s.id not in held], [s for s in samples if s.id in held]


def _held(samples, others):
    names = some((s.id for s in samples), 2)
    share = len(samples) / (len(samples) + len(others))
    fewest = min(collections.Counter(s.label[0] for s in samples).values())
    return f"{counted(len(samples), 'image')} held out ({share:.0%}; of each class {fewest} or more): {names}"


def _contents(images, samples):
    """{image: hash of what it holds} of samples, "" where it cannot be read."""
    if images.pixels is None:
        return contents([s.image for s in samples])
    return {s.image: hashlib.sha256(images.pixels[s.image].tobytes()).hexdigest() for s in samples}


def _copies(images):
    """Notes about images of the same content: those of train in another split, or under two classes."""
    known = _contents(images, [s for samples in images.splits.values() for s in samples])
    notes, first, both = [], {}, []
    for sample in images.splits["train"]:
        other = first.setdefault(known[sample.image], sample)
        if known[sample.image] and other.label[0] != sample.label[0]:
            both.append(f"{sample.id} = {other.id}")
    if both:
        said = f"{counted(len(both), 'image')} of train under two classes, byte for byte"
        notes.append(f"{said} ({some(both, 3)})")
    for split in ("val", "test"):
        samples = [s for s in images.splits.get(split, []) if known[s.image]]
        same = [(s.id, first[known[s.image]].id) for s in samples if known[s.image] in first]
        if same:
            shown = some((f"{one} = {other}" for one, other in same), 3)
            said = (
                f"{counted(len(same), 'image')} of {split} in train, too, byte for byte: its figures flatter"
            )
            notes.append(f"{said} ({shown})")
    return notes


# ---- reading them


def load(images, split, size, seed=0, count=None, device="cpu"):
    """One split as data, see `Labelled`. Raises UserError if there is no such split, or a file is no picture.

    count: so many images, spread over classes and domains, see `limit`. Shapes to train on are others for
    each seed. device: as in `batches.load`; whatever it is, shapes are rendered on the CPU.
    """
    samples = images.splits.get(split, [])
    if not samples:
        have = ", ".join(f"{name} ({len(found)})" for name, found in images.splits.items())
        raise UserError(f"{images.name} has no split {split}; it has {have}")
    if count:
        samples = limit(samples, count, seed)
    rows = [s.image for s in samples]
    if images.name == "shapes":
        seed = (seed if split == "train" else 0) + APART[split]
        memory = shapes.render(seed, rows, size).numpy()
        held = [f"{seed}:{i}" for i in rows]
        return Labelled(images, samples, size, memory, range(len(rows)), held, [(size, size)] * len(rows))
    if images.pixels is not None:
        known = _contents(images, samples)
        held = [known[i] for i in rows]
        sizes = [images.pixels.shape[:1:-1]] * len(rows)
        return Labelled(
            images, samples, size, images.pixels, rows, held, sizes, [digest[:16] for digest in held]
        )
    plain = Faces("images", [], [], [], {}, None, target=None)
    cached = CachedFaces(plain, [s._replace(label=None) for s in samples], size)
    memory, held, sizes, known = cached.memory, cached.digests, cached.sizes, cached.contents
    return Labelled(images, samples, size, memory, range(len(rows)), held, sizes, known, rows, cached.notes)


def limit(samples, n, seed):
    """n samples, nested: the first n of `limit(samples, n + 1, seed)`. The same number of each class, of each
    domain, and of each domain in a class, as nearly as there are such. Which ones, a hash of (seed, id) says.
    """
    if n > len(samples):
        raise UserError(f"limit {n}: there are only {counted(len(samples), 'image')} to train on")
    samples = sorted(samples, key=lambda s: rank(seed, s.id))
    labels = np.array([(s.label[0], s.label[1] or 0) for s in samples])
    classes, domains = (_shuffled(column, seed) for column in labels.T)
    d = domains.max() + 1
    turn = _place_in(classes * d + domains)  # in its class and domain
    by = np.lexsort(((domains + classes) % d, turn))  # each class begins with another domain
    place = np.empty(len(samples), np.int64)
    place[by] = _place_in(classes[by])
    return [samples[i] for i in np.lexsort((classes, place))[:n]]


def _shuffled(ids, seed):
    """The ids numbered anew from 0 on, in an order that is the seed's."""
    order = sorted(set(ids.tolist()), key=lambda i: rank(seed, f"id {i}"))
    numbers = np.zeros(max(order) + 1, np.int64)
    numbers[order] = range(len(order))
    return numbers[ids]


def _place_in(keys):
    """For each of N keys, how many equal ones are before it."""
    order = np.argsort(keys, kind="stable")
    _, first, count = np.unique(keys[order], return_index=True, return_counts=True)
    place = np.empty(len(keys), np.int64)
    place[order] = np.arange(len(keys)) - np.repeat(first, count)
    return place


def _resized(pixels, size):
    """(B, 3, size, size) uint8 of (B, 1 or 3, H, W) uint8, bilinear and antialiased."""
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
        pixels = pixels.round().clamp(0, 255).byte()
    return pixels.expand(-1, 3, -1, -1)


class Labelled:
    """Images as batches. `data[[3, 1]]` -> {"image": (2, 3, S, S) uint8, "class": (2,) int64, "domain": (2,)
    int64 where there are domains, "index": (2,)}; without labels there is neither.

    targets: {"class": (N,) int64, "domain": ...}. contents: N times 16 hex digits, of what each image, or its
    file, holds; None of shapes, which are rendered. digests: N hex strings, of that, the class and domain.
    digest: of what labels mean, ids and digests. counts: (N, K + 1) int64, 1 at the class. sizes: (N, 2),
    width and height of each image. domains: {name: how many images}. paths: where images are files. notes:
    for the user.
    """

    def __init__(self, images, samples, size, memory, rows, held, sizes, contents=None, paths=None, notes=()):
        self.size, self.memory = size, memory  # (M, 1 or 3, H, W) uint8; resized when they are asked for
        self.rows = np.asarray(rows)  # (N,) of `memory`
        self.ids, self.groups = [s.id for s in samples], [s.group for s in samples]
        self.yaws = [None] * len(samples)
        if paths is not None:
            self.paths = paths
        self.contents = contents
        self.sizes, self.notes = np.array(sizes), list(notes)
        self.targets, self.domains = {}, {}
        self.counts = np.zeros((len(samples), len(images.classes) + 1), np.int64)
        names = [""] * len(samples)
        if samples[0].label is not None:
            classes = torch.tensor([s.label[0] for s in samples])
            self.targets["class"] = classes
            self.counts = F.one_hot(classes, len(images.classes) + 1).numpy()
            names = [images.classes[s.label[0]] for s in samples]
        if images.domains:
            self.targets["domain"] = torch.tensor([s.label[1] for s in samples])
            domains = [images.domains[s.label[1]] for s in samples]
            self.domains = {name: domains.count(name) for name in images.domains}
            names = [f"{name} {domain}" for name, domain in zip(names, domains, strict=True)]
        self.digests = [_hash(f"{what} {name}")[:16] for what, name in zip(held, names, strict=True)]
        self.digest = _hash(f"{label_info(images)} {self.ids} {self.digests}")

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        targets = {key: labels[index] for key, labels in self.targets.items()}
        pixels = torch.from_numpy(self.memory[self.rows[index]])
        return {"image": _resized(pixels, self.size), **targets, "index": torch.tensor(index)}


def _hash(text):
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


# ---- what a run shows and refuses


def table(found):
    """What `summary.inspect` found, as lines of text: images of each split, of each class and domain in it;
    of many classes the smallest, the median and the largest number."""
    lines = ["  " + " " * 22 + "".join(f"{split:>12}" for split in found)]

    def line(name, values):
        lines.append(f"  {name:<22}" + "".join(f"{value:>12,}" for value in values))

    line("images", [facts["photos"] for facts in found.values()])
    classes = list(next(iter(found.values()))["pixels"])
    if len(classes) > MANY:
        lines.append(f"  of {len(classes)} classes")
        for name, f in (("smallest", np.min), ("median", np.median), ("largest", np.max)):
            line(f"  {name}", [int(f(list(facts["pixels"].values()))) for facts in found.values()])
    else:
        for name in classes:
            line(f"  {name}", [facts["pixels"][name] for facts in found.values()])
    for i, name in enumerate(next(iter(found.values()))["domains"]):
        if i == 0:
            lines.append("  of domains")
        line(f"  {name}", [facts["domains"].get(name, 0) for facts in found.values()])
    for split, facts in found.items():
        sizes = [f"{size} ({count:,})" for size, count in facts["sizes"].items()]
        lines.append(f"  sizes of {split}: {some(sizes, 4)}")
        lines += [f"  {split}: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def refuse_empty(found):
    """A UserError where a class has no image that trains, by what `summary.inspect` found."""
    facts = found["train"]
    if empty := [name for name, images in facts["pixels"].items() if not images]:
        raise UserError(
            f"train: no image of {some(empty)} among {counted(facts['photos'], 'image')}; give each class "
            "one, or take it out of the other splits; --limit must leave room for each"
        )
