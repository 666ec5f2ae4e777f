"""Whether what runs wrote, and what they were given, is what it was."""

import os
import pathlib

from utils.files import sha256
from utils.tracking.folders import seen_from, trouble


def check_files(run, elsewhere):
    """([(whether it is wrong, line)], number of files) of the outputs of a run and the files that its flags
    named. elsewhere(): {sha256: path} of what lies in the folders that are searched."""
    listed = [(run["folder"] / name, digest, "") for name, digest in run["outputs"].items()]
    listed += [(seen_from(run, path), f["sha256"], f" (--{f['flag']})") for path, f in run["files"].items()]
    found = []
    if not run["outputs"]:
        older = not run.get("started")
        why = "is older than lineage.json" if older else trouble(run) or "wrote nothing with a digest"
        found.append((False, f"not checked: {run['folder']}: {why}"))
    for path, digest, flag in listed:
        there = os.path.isfile(path)
        if there and sha256(path) == digest:
            continue
        place = elsewhere().get(digest)
        what = "changed" if there else "moved" if place else "missing"
        if what == "missing" and not flag and path.suffix == ".pt" and is_of_a_search(run):
            what = "deleted by augment.py"
        of = f"{path}{flag} of {run['folder']}" if flag else path
        where = f"; what it was lies in {place}" if place else ""
        found.append((what in ("changed", "missing"), f"{what}: {of}{where}"))
    return found, len(listed)


def check_champions(folders):
    """As `check_files`, of the champions that operators below some folders keep, whose names are digests."""
    stores = [store for folder in folders for store in pathlib.Path(folder).rglob("store")]
    kept = [
        path for store in stores if (store.parent / "history.jsonl").is_file() for path in store.glob("*.pt")
    ]
    return [(True, f"changed: {path}") for path in sorted(kept) if sha256(path) != path.stem], len(kept)


def is_of_a_search(run):
    """Whether augment.py made a run, of which it keeps no weights that it does not need."""
    return any((folder / "arms.jsonl").is_file() for folder in run["folder"].resolve().parents)


def lying_in(folders):
    """{sha256: path} of all files in folders."""
    found = (
        os.path.join(path, name) for folder in folders for path, _, names in os.walk(folder) for name in names
    )
    return {sha256(path): path for path in found if os.path.isfile(path)}
