"""Runs of scripts as commands, several at a time, each done once: its result is a line of a file."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys

from tqdm import tqdm

from utils.cli import COLLAPSED
from utils.errors import UserError

HERE = pathlib.Path(__file__).resolve().parents[2]


def write_json(out, name, what):
    """`what` as a file in a folder, whole or not at all; its path."""
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(what, indent=1) + "\n")
    os.replace(temporary, path)
    return path


def begin(out, flags, inputs):
    """Make the folder of a search, or go on in it: with the same flags {name: value} and inputs (anything
    that JSON holds), else it is refused."""
    free = ("jobs", "device", "out", "policy", "preview", "materialise")
    kept = {k: v for k, v in flags.items() if k not in free}
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    if (out / "policy.json").is_file():
        raise UserError(f"--out {out}: holds a policy.json already; name another")
    if (out / "search.json").is_file():
        before = json.loads((out / "search.json").read_text())
        for key, value in kept.items():
            if before.get(key) != value:
                raise UserError(
                    f"--{key.replace('_', '-')} {value}: the search in {out} began with "
                    f"{before.get(key)}; name another --out"
                )
        if before.get("inputs") != inputs:
            raise UserError(f"--out {out}: its search began with other photos or arms; name another")
    write_json(out, "search.json", kept | {"inputs": inputs})


class Ledger:
    """{run: result} kept in a file, one JSON object with `run` a line; a torn last line is dropped."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        text = self.path.read_text() if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            os.truncate(self.path, len(whole.encode()))
        self.rows = {row["run"]: row for row in map(json.loads, whole.splitlines())}

    def add(self, row):
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows[row["run"]] = row


def call(script, flags, threads=None):
    """Run `python script flags` to its end; (exit status, stderr). threads: of its CPU arithmetic, where
    OMP_NUM_THREADS does not say."""
    environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ}
    command = [sys.executable, str(HERE / script), *map(str, flags)]
    done = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    return done.returncode, done.stderr.strip()


def run_all(jobs, folder, ledger, finish, at_once=1):
    """Do the jobs that the ledger lacks, `at_once` of them at a time, which share the cores.

    jobs: dicts with `run` (a name), `script` and `flags`; the script writes into folder/run and ends with 0
    (or `COLLAPSED`: bad weights are a result too). finish(job, path) -> its result, a dict for the ledger,
    called here, one after the other.
    """
    left = [job for job in jobs if job["run"] not in ledger.rows]
    threads = max(1, (os.cpu_count() or 1) // at_once)

    def start(job):
        out = pathlib.Path(folder) / job["run"]
        for stale in (out, *out.parent.glob(f"{out.name}.*")):
            shutil.rmtree(stale, ignore_errors=True)
        # under a name of its own until it has ended: where this process was killed but not the run that it
        # had started, that run writes on
        unfinished = out.with_name(f"{out.name}.{os.getpid()}")
        status, error = call(job["script"], [*job["flags"], "--out", unfinished], threads)
        if status not in (0, COLLAPSED):
            raise UserError(f"{job['script']} of {unfinished} ended with {status}: {error[-300:]}")
        unfinished.rename(out)
        return job, out

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(start, job) for job in left]
        try:
            for future in tqdm(concurrent.futures.as_completed(waiting), "runs", len(left), disable=None):
                job, out = future.result()
                ledger.add({"run": job["run"], **finish(job, out)})
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [ledger.rows[job["run"]] for job in jobs]
