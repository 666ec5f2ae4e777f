"""Run folders, read only: what each says of itself, its figures, how it ended."""

import os
import pathlib

from utils import checkpoint, cli, files, jsonl
from utils.errors import UserError

BY_REWARD = ("train_reward.py", "train_scores.py")
BY_LABELS = ("train_finetune.py", "train_student.py", "train_classify.py")
VERDICTS = {"ks_test.py": (0, 1, 3)}  # exit statuses that are a result
KINDS = {"script": str, "args": dict, "files": dict, "data": dict, "parents": list, "outputs": dict}
KINDS |= {"earlier": list, "figures": dict, "exit": int | None}


def find(folders):
    """The runs in and below folders, each once. Raises UserError: no such folder, no run."""
    found = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder")
        for path, below, names in os.walk(folder):
            below.sort()
            if "lineage.json" in names or {"args.json", "metrics.jsonl"} <= {*names}:
                found.setdefault(os.path.realpath(path), pathlib.Path(path))
    if folders and not found:
        raise UserError(f"{' '.join(folders)}: no run folder there; the scripts write them (--out)")
    return [opened(folder) for folder in found.values()]


def opened(folder):
    """A run: what its lineage.json says (of an older one, what args.json says), and

    folder: its path. rows: {step: {name: value}} of metrics.jsonl. shown: {name: value} at the best step, of
    what is no figure of validation and was not logged then the last, and {FILE.json: value} of what
    evaluate.py wrote there. Raises UserError where a file is damaged.
    """
    rows = {}
    for row in jsonl.read(folder / "metrics.jsonl", {"step": int}, mend=False):
        rows.setdefault(row["step"], {}).update(row)
    name = "lineage.json" if (folder / "lineage.json").is_file() else "args.json"
    run = files.read_json(folder / name)
    try:
        run = run if name == "lineage.json" else _older(run, rows)
        if not all(isinstance(run[key], kind) for key, kind in KINDS.items()):
            raise TypeError
        run |= {"folder": folder, "rows": rows}
        best = _best(run)
        at_best = rows.get(best.get("step"), {})
        last = {name: value for step in sorted(rows) for name, value in rows[step].items()}
        if best:
            last = {name: value for name, value in last.items() if not name.startswith("val/")}
        return run | {"shown": last | at_best | best | _scored(run)}
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{folder / name}: not what these scripts write") from None


def _older(facts, rows):
    """A run from before there was lineage.json: it ended well if it did its steps."""
    ended = max(rows, default=0) >= (facts["args"].get("steps") or 0)
    own = {"script": os.path.basename(facts["command"][0]), "args": facts["args"], "commit": facts["git"]}
    empty = {"files": {}, "data": {}, "parents": [], "outputs": {}, "earlier": [], "figures": {}}
    return own | empty | {"exit": 0 if ended else None}


def chosen_by(run):
    """The name in metrics.jsonl of the figure that chose best.pt; None of a script that has none."""
    if run["script"] in BY_LABELS:
        return "val/accuracy" if "head" in run["args"] else "val/mean_f1"
    return "val/reward" if run["script"] in BY_REWARD else None


def _best(run):
    """{"step", figure: value} of the best step; {} where nothing was validated."""
    name = chosen_by(run)
    steps = {step: row[name] for step, row in run["rows"].items() if name in row}
    step = run["figures"].get("best", {}).get("step", max(steps, key=steps.get, default=None))
    if step == 0 and 0 not in steps and (run["folder"] / "best.pt").is_file():  # the start was best
        best = checkpoint.load(run["folder"] / "best.pt", holds="best")["best"]
        steps[0] = best.get("reward", best.get("score"))
    return {"step": step, name: steps[step]} if steps.get(step) is not None else {}


def _scored(run):
    """{FILE.json: mean F1 or accuracy} of what evaluate.py wrote there, of checkpoints of this run."""
    found = {}
    for path in sorted(run["folder"].glob("*.json")):
        result = files.read_json(path)
        if not isinstance(result, dict) or not {"init", "split"} <= result.keys():
            continue
        parents = {*result.get("lineage", {}).get("parents", [])}
        value = result.get("mean_f1", result.get("accuracy"))
        if value is not None and (parents <= {*run["outputs"].values()} or not run["outputs"]):
            found[path.name] = value
    return found


def trouble(run):
    """Why a run counts in no mean, in words; None where it ended well."""
    status = run["exit"]
    if status is None:
        return "did not end"
    if status in VERDICTS.get(run["script"], (0,)):
        return None
    if status == cli.COLLAPSED:
        return "collapsed"
    return f"was stopped by signal {status - 128}" if status > 128 else f"failed with exit status {status}"


def makers(runs):
    """{sha256: (run, file name)} of all outputs of runs."""
    return {digest: (run, name) for run in runs for name, digest in run["outputs"].items()}
