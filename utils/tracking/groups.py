"""Which runs are alike: their flags, and where the seed chose the files that they began from."""

import collections
import itertools
import json
import os
import re

from utils import files
from utils.tracking.folders import makers

FREE = ("seed", "out", "resume", "device", "workers")  # flags in which runs that are alike may differ


def settings(run, made, folders, given, below=()):
    """{flag: plain value} of what tells a run from others: no `FREE` flag, none that is off. A file that a
    known run wrote is that run's settings; photos are their digests, see `photos`. Any other file is its
    path, with SEED where runs of other seeds were given files so named, and each seed one of them; else it is
    its digest.

    made: `makers`. folders: {path: run}. given: {pattern: {seed: digests of what is so named}} of all runs.
    below: folders of the runs that began from this one.
    """
    below = (*below, run["folder"])
    data = photos(run)

    def meaning(word):
        path = path_of(word)
        if path in data:
            return data[path] or os.path.realpath(os.path.join(run.get("cwd") or "", path))
        digest = run["files"].get(path, {}).get("sha256")
        if not (digest or path.endswith((".pt", ".json"))):
            return word
        maker = maker_of(run, path, made, folders)
        if maker and maker["folder"] not in below:
            return [maker["script"], settings(maker, made, folders, given, below), os.path.basename(path)]
        seeds = {pattern: given[pattern] for pattern in patterns(path, run["args"].get("seed"))}
        alike = [p for p in seeds if p != path and all(len(held) == 1 for held in seeds[p].values())]
        pattern = max(alike, key=lambda p: len(seeds[p]), default=path)
        return pattern if len(given[pattern]) > len(given[path]) else digest or word

    kept = {k: v for k, v in run["args"].items() if k not in FREE and v not in (None, False, [])}
    found = {k: [*map(meaning, v)] if isinstance(v, list) else meaning(v) for k, v in kept.items()}
    unnamed = [digests for path, digests in data.items() if digests not in found.values()]
    return found | ({"photos": unnamed} if any(unnamed) else {})


def photos(run):
    """{path: {split: digest}} of the photos and masks that a run was given, without the splits whose photos
    the seed drew, and those that are rendered."""
    found = collections.defaultdict(dict)
    for split, facts in run["data"].items():
        if facts["sha256"]:
            found[facts["path"]] |= {} if drawn(run, split) else {split: facts["sha256"]}
    return found


def drawn(run, split):
    """Whether the seed drew which photos of a split a run was given."""
    if run["script"] in ("ks_test.py", "mine_styles.py"):
        return split != "photo"
    return split == "train" and bool(run["args"].get("limit"))


def maker_of(run, path, made, folders):
    """The run that wrote a file that `run` was given: by its digest, else by its folder; None if unknown."""
    digest = run["files"].get(path, {}).get("sha256")
    if digest in made:
        return made[digest][0]
    maker = folders.get(os.path.realpath(os.path.join(run.get("cwd") or "", os.path.dirname(path))))
    return None if maker and digest and maker["outputs"] else maker  # what it wrote is another file


def path_of(word):
    """The path that a value of a flag may be; "" of numbers."""
    return (files.file_of(word) or word) if isinstance(word, str) else ""


def patterns(path, seed):
    """The path, and what it is with SEED in one or more of the places where the seed stands in it."""
    parts = re.split(rf"(?<!\d){seed}(?!\d)", path, maxsplit=6)
    for between in itertools.product([str(seed), "SEED"], repeat=len(parts) - 1):
        yield "".join(itertools.chain(*zip(parts, [*between, ""], strict=True)))


def add_settings(runs):
    """Give each run its `settings`."""
    given = collections.defaultdict(lambda: collections.defaultdict(set))
    for run in runs:
        seed = run["args"].get("seed")
        for value in run["args"].values():
            for word in value if isinstance(value, list) else [value]:
                path = path_of(word)
                for pattern in patterns(path, seed):
                    given[pattern][seed].add(run["files"].get(path, {}).get("sha256"))
    made, folders = makers(runs), {os.path.realpath(run["folder"]): run for run in runs}
    for run in runs:
        run["settings"] = settings(run, made, folders, given)


def differing(runs):
    """The flags of which these runs have several values."""
    flags = dict.fromkeys(flag for run in runs for flag in run["args"] if flag not in FREE)
    values = lambda flag: {as_key(run["settings"].get(flag)) for run in runs if flag in run["args"]}
    return [flag for flag in flags if len(values(flag)) > 1]


def as_key(plain):
    return json.dumps(plain, sort_keys=True)
