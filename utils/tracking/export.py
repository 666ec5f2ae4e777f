"""Runs as MLflow's, after the fact. A run is there once: one that has gone on since is brought up to date."""

import datetime
import hashlib
import json
import re

from utils.errors import UserError
from utils.files import sha256
from utils.tracking.folders import trouble

EXPERIMENT = "faces"
KEY, STATE = "run_key", "exported"  # tags: which run it is, and the content that was exported last
AT_ONCE = {"params": 100, "metrics": 1000, "tags": 100}  # MLflow's limits
LONGEST = 5000  # characters of a parameter or a tag


def to_mlflow(uri, runs):
    """Write runs of `folders.find` to the store `uri`; yield a line of text for each. Flags are parameters,
    all rows of metrics.jsonl metrics; script, folder, commit, how it ended and digests of data tags;
    lineage.json (of older runs args.json) and pictures artifacts. Raises UserError: no MLflow, no such store.
    """
    try:
        from mlflow import MlflowClient  # here: nothing else needs it, and it takes seconds
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise UserError(f"--mlflow: needs a pip package: pip install mlflow ({error})") from None
    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
        for run in runs:
            began = milliseconds(run.get("started"))
            key, state = identity(run), content(run)
            there = client.search_runs([experiment], f"tags.{KEY} = '{key}'")
            if there and there[0].data.tags.get(STATE) == state:
                yield f"{run['folder']}: is there already"
                continue
            if there:
                number = there[0].info.run_id
            else:
                name = str(run["folder"])
                number = client.create_run(experiment, began, {KEY: key}, name).info.run_id
            fixed = there[0].data.params if there else {}  # those that are there cannot change
            metrics = [
                Metric(legal(name), value, began, step)
                for step, row in run["rows"].items()
                for name, value in row.items()
                if name != "step"
            ]
            params = [Param(k, str(v)[:LONGEST]) for k, v in run["args"].items() if k not in fixed]
            tags = [RunTag(k, str(v)[:LONGEST]) for k, v in facts(run).items()]
            for kind, items in {"params": params, "metrics": metrics, "tags": tags}.items():
                for first in range(0, len(items), AT_ONCE[kind]):
                    client.log_batch(number, **{kind: items[first : first + AT_ONCE[kind]]})
            for path in artifacts(run):
                client.log_artifact(number, str(path))
            client.set_terminated(number, status(run), milliseconds(run.get("ended")) or None)
            client.set_tag(number, STATE, state)  # last: an export that was killed is done again
            yield f"{run['folder']}: {'brought up to date' if there else 'written'}"
    except MlflowException as error:
        raise UserError(f"--mlflow {uri}: {str(error).partition(chr(10))[0]}") from None


def identity(run):
    """By what a run is known again, wherever its folder is today: its first start."""
    first = (run["earlier"] or [run])[0]
    facts = [first.get(key) for key in ("script", "out", "args_sha256", "started")]
    return _hash(facts if first.get("started") else [str(run["folder"].resolve())])


def content(run):
    """Digest of all that is exported of a run."""
    names = ("lineage.json", "args.json", "metrics.jsonl")
    held = [run["folder"] / name for name in names] + artifacts(run)
    return _hash([sha256(path) for path in held if path.is_file()])


def artifacts(run):
    text = [run["folder"] / name for name in ("lineage.json", "args.json")]
    return [path for path in text if path.is_file()][:1] + sorted(run["folder"].glob("*.png"))


def facts(run):
    """Tags of a run."""
    tags = {"script": run["script"], "folder": run["folder"], "commit": run.get("commit")}
    tags["ended"] = trouble(run) or "well"
    return tags | {f"data.{split}": data["sha256"] for split, data in run["data"].items()}


def status(run):
    """MLflow's word for how a run ended."""
    if run["exit"] is None:
        return "RUNNING"
    return "KILLED" if run["exit"] > 128 else "FAILED" if trouble(run) else "FINISHED"


def legal(name):
    """A name of a metric as MLflow takes it: letters, digits and _-. :/"""
    return re.sub(r"[^\w\-. :/]", "_", name)


def milliseconds(time):
    """Since 1970, of an ISO time; 0 of None."""
    return int(1000 * datetime.datetime.fromisoformat(time).timestamp()) if time else 0


def _hash(plain):
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
