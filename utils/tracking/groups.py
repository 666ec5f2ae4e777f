"""Which runs are alike: their flags, and where the seed chose the files that they began from."""

import collections
import itertools
import json
import os
import re

from utils import files
from utils.tracking.folders import makers

FREE = ("seed", "out", "resume", "device", "workers")  # flags in which runs that are alike may differ


def settings(run, made, folders, seeds, below=()):
    """{flag: plain value} of what tells a run from others: no `FREE` flag, none that is off. A file that a
    known run wrote is that run's settings. Any other is its path, with SEED where runs of other seeds were
    given files so named; where none was, with its digest.

    made: `makers`. folders: {path: run}. seeds: {pattern: seeds of the runs that were given such a path}.
    below: folders of the runs that began from this one.
    """
    below = (*below, run["folder"])

    def meaning(word):
        path = path_of(word)
        digest = run["files"].get(path, {}).get("sha256")
        if not (digest or path.endswith((".pt", ".json"))):
            return word
        maker = made[digest][0] if digest in made else folders.get(os.path.realpath(os.path.dirname(path)))
        if maker and maker["folder"] not in below:
            return [maker["script"], settings(maker, made, folders, seeds, below), os.path.basename(path)]
        pattern = max(patterns(path, run["args"].get("seed")), key=lambda pattern: len(seeds[pattern]))
        return [word, digest] if pattern == path else pattern

    kept = {k: v for k, v in run["args"].items() if k not in FREE and v not in (None, False, [])}
    return {k: [*map(meaning, v)] if isinstance(v, list) else meaning(v) for k, v in kept.items()}


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
    seeds = collections.defaultdict(set)
    for run in runs:
        seed = run["args"].get("seed")
        for value in run["args"].values():
            for word in value if isinstance(value, list) else [value]:
                for pattern in patterns(path_of(word), seed):
                    seeds[pattern].add(seed)
    made, folders = makers(runs), {os.path.realpath(run["folder"]): run for run in runs}
    for run in runs:
        run["settings"] = settings(run, made, folders, seeds)


def differing(runs):
    """The flags of which these runs have several values."""
    flags = dict.fromkeys(flag for run in runs for flag in run["args"] if flag not in FREE)
    values = lambda flag: {as_key(run["settings"].get(flag)) for run in runs if flag in run["args"]}
    return [flag for flag in flags if len(values(flag)) > 1]


def as_key(plain):
    return json.dumps(plain, sort_keys=True)
