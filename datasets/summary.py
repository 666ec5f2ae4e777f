"""What the splits of a run hold: counted before the first step, shown, kept, and compared on resume."""

import collections
import hashlib
import json
import os

import numpy as np

from datasets.faces import some
from datasets.masks import why_absent
from utils.errors import UserError
from utils.files import sha256
from utils.metrics import IGNORE_INDEX

SYNTHETIC = 64  # synthetic faces that are counted, of the many that there are


def inspect(splits, classes, key="semantic"):
    """{split: facts}, plain data, of {split: data}; splits without data, None, are left out. Scenes: of the
    photos that they are made of, but for `aspects`, `digest` and `notes`.

    facts: `photos`, `people`, how many photos were `counted`; `pixels` and `photos_with` {class: count};
    `pixels_ignored`, which nobody labelled; `sizes` {"256x256": photos}; `aspects`, the smallest, median and
    largest width / height; `ids` and `digests` of the photos, and `digest` of all that training would notice;
    `domains` {name: images} of images with classes, where "pixels" are images; `sha256` and `contents`, see
    `identify`; `notes` for the user.
    """
    found = {split: _facts(data, classes, key) for split, data in splits.items() if data is not None}
    sources = {split: getattr(data, "source", data) for split, data in splits.items()}
    read = [data for split in ("train", "val") if getattr(data := sources.get(split), "contents", None)]
    read = [data for data in read if not hasattr(data, "targets")]  # `open_images` says it of images
    if len(read) == 2 and (copies := _copies(*read)):
        said = f"{len(copies)} of its photos are in train, too, byte for byte: its figures flatter"
        found["val"]["notes"].append(f"{said} ({some(copies, 3)})")
    return found


def _copies(train, val):
    """["val/b = train/a", ...] of photos with the same content in two data sets."""
    first = dict(zip(train.contents, train.ids, strict=True))
    pairs = [(name, first.get(held)) for held, name in zip(val.contents, val.ids, strict=True)]
    return [f"{one} = {other}" for one, other in pairs if other]


def _facts(made, classes, key):
    data = getattr(made, "source", made)
    if hasattr(data, "counts"):
        counts = np.asarray(data.counts)  # (N, K + 1), the last one of 255
        sizes = np.asarray(data.sizes)  # (N, 2)
    else:
        labels = data[list(range(min(SYNTHETIC, len(data))))][key].cpu().numpy()
        counts = np.stack([np.bincount(mask.ravel(), minlength=256) for mask in labels])
        counts = np.concatenate([counts[:, : len(classes)], counts[:, IGNORE_INDEX:]], 1)
        sizes = np.array([labels.shape[2:0:-1]] * len(labels))
    aspects = getattr(made, "aspects", sizes[:, 0] / sizes[:, 1])
    names = [f"{width}x{height}" for width, height in sizes.tolist()]
    return {
        **identify(data, classes),
        "counted": len(counts),
        "pixels": dict(zip(classes, counts.sum(0)[:-1].tolist(), strict=True)),
        "photos_with": dict(zip(classes, (counts > 0).sum(0)[:-1].tolist(), strict=True)),
        "pixels_ignored": int(counts[:, -1].sum()),
        "sizes": dict(collections.Counter(names).most_common()),
        "aspects": [round(float(f(aspects)), 4) for f in (np.min, np.median, np.max)],
        "ids": list(getattr(data, "ids", [])),
        "digests": list(getattr(data, "digests", [])),
        "digest": getattr(made, "digest", None),
        "domains": dict(getattr(data, "domains", {})),
        "notes": list(getattr(made, "notes", [])),
    }


def identify(data, classes, rows=None):
    """What data is, and which files it is made of, as `utils.lineage` keeps it: `photos`, `people`; `sha256`
    of the class names and, whatever their order, of ids, people, and what photos and masks hold; `contents`,
    16 hex digits of what each photo's file holds. The last two are None and [] of data that is rendered.
    Scenes: of the photos that they are made of.

    rows: which ones; None: all.
    """
    data = getattr(data, "source", data)
    if getattr(data, "contents", None) is None:
        groups = getattr(data, "groups", range(len(data)))
        groups = groups if rows is None else [groups[row] for row in rows]
        return {"photos": len(groups), "people": len(set(groups)), "sha256": None, "contents": []}
    columns = data.ids, data.groups, data.digests, data.contents
    if rows is not None:
        columns = [[column[row] for row in rows] for column in columns]
    return _identity(classes, *columns)


def identify_photos(photos):
    """As `identify`, of photos without masks, each taken for a person of its own: {id: path}."""
    digests = [_digest(path) for path in photos.values()]
    return _identity([], list(photos), list(photos), digests, digests)


def _digest(path):
    """16 hex digits of what a file holds, read anew; "" of one that cannot be, as its reader says."""
    try:
        return sha256(path)[:16] if os.path.isfile(path) else ""
    except OSError:
        return ""


def _identity(classes, ids, groups, digests, contents):
    held = sorted(zip(map(str, ids), map(str, groups), digests, strict=True))
    return {
        "photos": len(held),
        "people": len(set(groups)),
        "sha256": hashlib.sha256(json.dumps([list(classes), held]).encode()).hexdigest(),
        "contents": [digest for digest in contents if digest],  # "" of a file that cannot be read
    }


def kept(found):
    """What a checkpoint keeps of `inspect`: the shapes trained on, and digests to know the data again by."""
    digests = {split: facts["digest"] for split, facts in found.items() if facts["digest"]}
    return {"aspects": found["train"]["aspects"], "digests": digests}


def table(found):
    """Facts of the splits as lines of text: people, photos and, where there are masks, how many pixels each
    class has, and on how many photos it is."""
    lines = ["  " + " " * 18 + "".join(f"{split:>10}" + " " * 8 for split in found)]
    for name in ("photos", "people"):
        lines.append(f"  {name:<18}" + "".join(f"{facts[name]:>18,}" for facts in found.values()))
    if any(sum(facts["pixels"].values()) for facts in found.values()):
        lines.append("  " + " " * 18 + "".join(f"{'pixels':>10}{'photos':>8}" for _ in found))
        for name in next(iter(found.values()))["pixels"]:
            lines.append(f"  {name:<18}" + "".join(_share(facts, name) for facts in found.values()))
        ignored = "".join(f"{_ignored(facts):>10.2%}" + " " * 8 for facts in found.values())
        lines.append(f"  {'not labelled (255)':<18}" + ignored)
    for split, facts in found.items():
        sizes = [f"{size} ({count:,})" for size, count in facts["sizes"].items()]
        part = f", of the first {facts['counted']}" if facts["counted"] < facts["photos"] else ""
        lines.append(f"  sizes of {split}{part}: {some(sizes, 4)}")
        lines += [f"  {split}: {note}" for note in facts["notes"]]
    return "\n".join(lines)


def _share(facts, name):
    labelled = sum(facts["pixels"].values())
    return f"{facts['pixels'][name] / max(1, labelled):>10.2%}{facts['photos_with'][name]:>8,}"


def _ignored(facts):
    """The share of all pixels that nobody labelled."""
    labelled = sum(facts["pixels"].values())
    return facts["pixels_ignored"] / max(1, labelled + facts["pixels_ignored"])


def refuse_empty(found, allowed=()):
    """A UserError where a split has no labelled pixel, or a class of the list is in no training mask and not
    among the names `allowed`."""
    for split, facts in found.items():
        if not sum(facts["pixels"].values()):
            raise UserError(f"{split}: no labelled pixel in {facts['photos']} masks, all are {IGNORE_INDEX}")
    facts = found["train"]
    empty = [name for name, pixels in facts["pixels"].items() if not pixels and name not in allowed]
    if empty:
        holds = [f"{name} {_share(facts, name).split()[0]}" for name, n in facts["pixels"].items() if n]
        holds += [f"255 {_ignored(facts):.0%} of all"] if facts["pixels_ignored"] else []
        counts = np.zeros(256, np.int64)
        counts[: len(facts["pixels"])] = list(facts["pixels"].values())
        counts[IGNORE_INDEX] = facts["pixels_ignored"]
        reason = why_absent(counts, list(facts["pixels"])) or "correct the masks or the list"
        raise UserError(
            f"train: {some(empty)} in no mask of {facts['photos']}, which hold {some(holds, 30)}; {reason}; "
            f"or --allow-empty {' '.join(empty)} where it is meant"
        )
    for split, facts in found.items():
        labelled = [name for name, pixels in facts["pixels"].items() if pixels]
        if labelled == list(facts["pixels"])[:1]:
            raise UserError(f"{split}: nothing but {labelled[0]} in {facts['photos']} masks")


def refuse_changed(found, last, path):
    """A UserError where a resumed run's data is not what it began with, which says what changed.

    last: its checkpoint, or None. path: the JSON file of what `inspect` found when it began.
    """
    before = last["data"].get("digests") if last else None
    if before is None:  # it begins, or began with an earlier version of these scripts
        return
    now = kept(found)["digests"]
    changed = [split for split in before | now if before.get(split) != now.get(split)]
    if not changed:
        return
    try:
        facts = json.loads(path.read_text())
        words = [f"{split}: {_changes(facts[split], found.get(split))}" for split in changed]
    except (OSError, ValueError, KeyError):
        words = changed
    raise UserError(
        f"--resume: the data is not what the run began with ({'; '.join(words)}); put it back, or begin "
        "anew in another --out"
    )


def _changes(before, now):
    """In words, how the photos of a split differ."""
    if now is None:
        return "is gone"
    old = dict(zip(before["ids"], before["digests"], strict=True))
    new = dict(zip(now["ids"], now["digests"], strict=True))
    kinds = {
        "gone": [i for i in old if i not in new],
        "new": [i for i in new if i not in old],
        "with another photo, mask or class": [i for i in old if i in new and old[i] != new[i]],
    }
    words = [f"{len(ids)} {kind} ({some(ids, 3)})" for kind, ids in kinds.items() if ids]
    if before["pixels"].keys() != now["pixels"].keys():
        words.append(f"classes were {' '.join(before['pixels'])}")
    return ", ".join(words) or "classes, colors or flip_pairs mean something else, or the order differs"
