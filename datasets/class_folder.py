"""Images in folders that are called like their classes:

    train/CLASS/x.jpg     val/CLASS/y.jpg     test/CLASS/z.jpg     the splits as `faces.SPLIT_OF` has them,
                                                                   in any case; val/ and test/ are optional
    CLASS/x.jpg                                                    without splits
    DOMAIN/CLASS/x.jpg                                             of several domains (PACS, Office-Home)

Classes and domains are sorted by name. What else lies there is named, and not read.
"""

import os

from datasets.faces import Sample, not_read, some, split_folders
from datasets.images import SUFFIXES, unread_pictures
from utils.errors import UserError

LOOKS_FOR = "folders of pictures (train/CLASS/x.jpg and test/CLASS/x.jpg, CLASS/x.jpg, or DOMAIN/CLASS/x.jpg)"


def recognise(root):
    """What `labelled.Images` is made of, as a dict, or None where `root` holds no folders of pictures."""
    named = split_folders(root)
    splits = {os.path.basename(path): split for split, path in named.items()}
    here = _classes(root)
    below = {name: found for name in _folders(root) if (found := _classes(os.path.join(root, name)))}
    if inside := {name: found for name, found in below.items() if name in splits}:
        if "train" not in [splits[name] for name in inside]:
            raise UserError(f"{root}: {', '.join(inside)}/ hold folders of classes, but there is no train/")
        kind, parts = "split", inside
    elif {"train", "test"} <= named.keys() or {"train", "val"} <= named.keys():
        if here:
            raise UserError(f"{root}: {', '.join(splits)}/ hold pictures, but no folders of classes")
        return None
    elif here and below:
        raise UserError(
            f"{root}: {some(here, 3)} hold pictures, {some(below, 3)} hold folders of pictures; need folders "
            "of classes, or of domains, which hold those of classes"
        )
    elif below:
        if len(below) == 1:
            [name] = below
            raise UserError(f"{root}: one folder of classes alone; give {os.path.join(root, name)}")
        kind, parts = "domain", below
    elif here:
        kind, parts = None, {"": here}
    else:
        return None

    classes = sorted({name for found in parts.values() for name in found})
    domains = sorted(parts) if kind == "domain" else []
    found = {split: [] for split in ([splits[name] for name in parts] if kind == "split" else ["all"])}
    for part, folders in parts.items():
        domain = domains.index(part) if domains else None
        samples = found[splits[part] if kind == "split" else "all"]
        for name, files in folders.items():
            for file in files:
                place = "/".join(filter(None, (part, name, file)))
                label = (classes.index(name), domain)
                samples.append(Sample(place, os.path.join(root, *place.split("/")), label, place))
    notes = [
        f"{part} has no {some(lacks)}"
        for part, folders in parts.items()
        if (lacks := [name for name in classes if name not in folders])
    ]
    everything = [sample for samples in found.values() for sample in samples]
    beside = sorted({os.path.dirname(sample.image) for sample in everything})
    if left_out := [line for folder in beside for line in unread_pictures(folder)]:
        notes.append(f"left out: {some(left_out, 5)}")
    notes += not_read(os.fspath(root), everything)
    return {"name": "folder", "classes": classes, "domains": domains, "splits": found, "notes": notes}


def _folders(root):
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _classes(root):
    """{name of a folder: [names of the pictures in it, sorted]} for those in `root` that hold pictures."""
    found = {}
    for name in _folders(root):
        files = os.listdir(os.path.join(root, name))
        files = [file for file in files if file.lower().endswith(SUFFIXES) and not file.startswith(".")]
        if files:
            found[name] = sorted(files)
    return found
