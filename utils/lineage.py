"""Who came from what: lineage.json in a run folder, and what a checkpoint keeps of its ancestors."""

import datetime
import hashlib
import json
import os
import pathlib
import re
import resource
import sys

import torch

from utils import dist, jsonl
from utils.errors import UserError
from utils.files import read_json, sha256, write_whole
from utils.log import git_commit

NAME = "lineage.json"
FREE = ("out", "resume", "device", "workers")  # flags that do not change what a run computes
OWN = ("script", "out", "commit", "data", "parents")  # of a checkpoint, that its descendants keep
# no outputs: this record, events, what is temporary, and what `data` says in short
NO_OUTPUTS = (NAME, "data.json", ".lock", "*.tmp", "events.out.tfevents.*")
begun = []  # (lineage.json, its record, files of the run or None) of the run of this process


def origin(script, out, found, paths, files, starts, last=None):
    """What the checkpoints of a run keep, plain data and a tensor: `script`, `out`, `commit`; `data` {split:
    {"path", "sha256", "photos", "people"}}; `parents`, the sha256 of each file that the run begins from, is
    taught by or augments by; `ancestors` {sha256: the same of it, and its "step"} of all that are known, of
    any age; `seen` (N, 8) uint8, the first bytes of the sha256 of each photo's file that any of them used.

    found: {split: what `summary.identify` of datasets/ says}. paths: {split: path}. files: {path:
    {"sha256"}}, see `cli.files_of`. starts: {path: checkpoint, or policy that says what chose it}; a
    path that is None is left out, and a checkpoint is None where it was not read. last: the one that the run
    goes on from: what it keeps, stays.
    """
    if last and "lineage" in last:
        return last["lineage"]
    known = {path: state for path, state in starts.items() if path in files}
    ancestors = {}
    photos = {digest for facts in found.values() for digest in facts["contents"]}
    for path, state in known.items():
        if state:
            own = state.get("lineage", {"script": state.get("script"), "parents": []})
            ancestors |= own.get("ancestors", {})
            ancestors[files[path]["sha256"]] = {k: own.get(k) for k in OWN} | {"step": state.get("step")}
            photos |= digits(own)
    rows = [list(bytes.fromhex(digest)) for digest in sorted(photos)]
    facts = {split: {k: of[k] for k in ("sha256", "photos", "people")} for split, of in found.items()}
    return {
        "script": script,
        "out": str(out),
        "commit": git_commit(),
        "data": {split: {"path": paths[split], **facts[split]} for split in found},
        "parents": [files[path]["sha256"] for path in known],
        "ancestors": ancestors,
        "seen": torch.tensor(rows, dtype=torch.uint8).reshape(len(rows), 8),
    }


def seen(state):
    """The photos that a checkpoint or any ancestor of it has used, a set of 16 hex digits each, the first of
    the sha256 of the photo's file. None where that is not known, since one of them is older than this."""
    own = state.get("lineage")
    family = [own, *own["ancestors"].values()] if own else [{"data": None}]
    if any(each["data"] is None or not own["ancestors"].keys() >= {*each["parents"]} for each in family):
        return None
    return digits(own)


def digits(own):
    """The same of what a lineage lists, whatever else there may be."""
    rows = own.get("seen", [])
    return {row.tobytes().hex() for row in rows.numpy()} if torch.is_tensor(rows) else {*rows}


def as_json(origin):
    """A lineage as a JSON file holds it, with `seen` as a list of 16 hex digits each."""
    return origin | {"seen": sorted(digits(origin))}


def record(origin, flags, files):
    """What lineage.json says as a run begins. flags: {name: value}. files: as for `origin`."""
    counted = {name: value for name, value in flags.items() if name not in FREE}
    canonical = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return {
        "script": origin["script"],
        "out": flags.get("out", origin["out"]),
        "commit": git_commit(),
        "cwd": os.getcwd(),
        "processes": dist.world(),
        "args": flags,
        "args_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        "data": origin["data"],
        "files": files,
        "parents": origin["parents"],
        "outputs": {},
        "figures": {},
        "started": _now(),
        "ended": None,
        "cpu_seconds": None,
        "exit": None,
        "earlier": [],
    }


def begin(folder, origin, flags, files, outputs=None):
    """Write lineage.json, which keeps the one that was there as `earlier`; see `record`. outputs: the files
    that this run may write; None: all that the folder will hold. Raises UserError where another script has
    written there."""
    if not dist.is_first():
        return
    path = pathlib.Path(folder) / NAME
    made = record(origin, flags, files)
    if path.is_file():
        before = read_json(path)
        if not isinstance(before, dict) or not isinstance(before.get("earlier"), list):
            raise UserError(f"{path}: was not written by these scripts; move it, or name another folder")
        if before.get("script") != made["script"]:
            raise UserError(f"{folder}: holds a run of {before.get('script')}; name another --out")
        made["earlier"] = [*before.pop("earlier"), before]
    begun[:] = [(path, made, outputs)]
    _write(path, made)


def finish(status):
    """Write lineage.json of the run of this process, where one has begun, as it ends. A fault is a line on
    stderr: nothing fails by it."""
    if not begun:
        return
    path, made, outputs = begun.pop()
    try:
        folder = path.parent
        every = folder.iterdir() if outputs is None else outputs
        files = sorted(each for each in every if each.is_file() and not any(map(each.match, NO_OUTPUTS)))
        made["outputs"] = {str(each.relative_to(folder)): sha256(each) for each in files}
        for before in made["earlier"] if outputs else []:  # so that calls without end name each file once
            kept = before["outputs"].keys() - made["outputs"].keys()
            before["outputs"] = {name: before["outputs"][name] for name in sorted(kept)}
        made["figures"] = figures(folder)
        _write(path, ended(made, status))
    except Exception as error:  # of a full disk, or of a damaged file, which raises errors of any kind
        if status != 2:  # of a run that has failed, perhaps by the same fault, one line is said already
            print(f"{path} does not say how this ended: {error}", file=sys.stderr)


def ended(made, status):
    """A `record` of what has ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in spent)
    return made | {"ended": _now(), "cpu_seconds": round(seconds, 2), "exit": status}


def figures(folder):
    """{"step", "mean_f1", ...} of the last validation in metrics.jsonl, and under "best" those of the step of
    best.pt; {} where nothing was validated."""
    rows = {}
    for row in jsonl.read(folder / "metrics.jsonl", {"step": int}):
        if values := {k.removeprefix("val/"): v for k, v in row.items() if k.startswith("val/")}:
            rows[row["step"]] = {"step": row["step"], **values}
    if not rows:
        return {}
    best = folder / "best.pt"
    if best.is_file():  # mapped, so that no weight is read
        step = torch.load(best, map_location="cpu", weights_only=True, mmap=True)["step"]
        return {**rows[max(rows)], "best": rows.get(step, {"step": step})}
    return rows[max(rows)]


def fault_of(own):
    """What the lineage of a checkpoint or a policy lacks, in words; None if it lacks nothing."""
    kinds = {"script": str, "data": dict, "parents": list, "ancestors": dict}
    if not isinstance(own, dict) or not all(isinstance(own.get(k), kind) for k, kind in kinds.items()):
        return "its lineage is no list of ancestors"
    if not all(isinstance(each, dict) and {*OWN} <= each.keys() for each in own["ancestors"].values()):
        return "its lineage does not say enough of its ancestors"
    rows = own.get("seen")
    if torch.is_tensor(rows):
        known = rows.dtype == torch.uint8 and rows.shape[1:] == (8,)
    else:  # of JSON
        known = isinstance(rows, list) and all(re.fullmatch("[0-9a-f]{16}", str(row)) for row in rows)
    if not known:
        return "its lineage does not say which photos it has seen"
    return None


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(path, made):
    write_whole(path, json.dumps(made, indent=1) + "\n")
