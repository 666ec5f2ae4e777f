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
NO_RESULTS = ("lineage.json", "args.json", "data.json")  # JSON of run folders that evaluate.py did not write


def find(folders):
    """The runs in and below folders, each once. Below a run of augment.py, which trains on parts of the data
    and deletes what it trained, only where that folder is named itself. Raises UserError: no such folder, no
    run."""
    found = {}
    for folder in folders:
        if not os.path.isdir(folder):
            raise UserError(f"{folder}: no such folder")
        for path, below, names in os.walk(folder):
            below.sort()
            if "lineage.json" in names or {"args.json", "metrics.jsonl"} <= {*names}:
                run = opened(pathlib.Path(path))
                found.setdefault(os.path.realpath(path), run)
                if run["script"] == "augment.py" and path != folder:
                    below.clear()
    if folders and not found:
        raise UserError(f"{' '.join(folders)}: no run folder there; the scripts write them (--out)")
    return [*found.values()]


def opened(folder):
    """A run: what its lineage.json says (of an older one, what args.json says), and

    folder: its path. rows: {step: {name: value}} of metrics.jsonl. shown: {name: value} at the best step, of
    what is no figure of validation and was not logged then the last, and {FILE.json: value} of what
    evaluate.py wrote there. tests: {FILE.json: [split, digest of what was scored, None of older ones]}.
    faults: lines about such files that are damaged. Raises UserError where another is.
    """
    rows = {}
    for row in jsonl.read(folder / "metrics.jsonl", {"step": int}, mend=False):
        figures = {name: value for name, value in row.items() if isinstance(value, int | float)}
        rows.setdefault(row["step"], {}).update(figures)
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
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(f"{folder / name}: not what these scripts write") from None
    scored, tests, faults = _scored(run)
    return run | {"shown": last | at_best | best | scored, "tests": tests, "faults": faults}


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
    """`shown`, of what evaluate.py wrote there of checkpoints of this run: {FILE.json: mean F1 or accuracy};
    `tests` and `faults`, see `opened`."""
    found, tests, faults = {}, {}, []
    for path in sorted(run["folder"].glob("*.json")):
        if path.name in NO_RESULTS:
            continue
        try:
            result = files.read_json(path)
            if not isinstance(result, dict) or not {"init", "split"} <= result.keys():
                continue
            own = result.get("lineage", {})
            value = result.get("mean_f1", result.get("accuracy"))
            digest = own.get("data", {}).get(result["split"], {}).get("sha256")
            is_own = {*own.get("parents", [])} <= {*run["outputs"].values()} or not run["outputs"]
            if value is not None and is_own:
                found[path.name] = float(value)
                tests[path.name] = [result["split"], digest]
        except UserError as error:
            faults.append(str(error))
        except (KeyError, TypeError, AttributeError, ValueError):
            faults.append(f"{path}: not what evaluate.py writes")
    return found, tests, faults


def seen_from(run, path):
    """A path that a flag of a run named, from the folder where its command ran; as it is where that is not
    known, or nothing is there."""
    there = os.path.join(run.get("cwd") or "", path)
    return there if os.path.exists(there) else path


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
