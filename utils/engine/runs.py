"""Runs of scripts as commands, several at a time, each done once: its result is a line of a file."""

import concurrent.futures
import contextlib
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

from tqdm import tqdm

from utils import jsonl
from utils.cli import COLLAPSED
from utils.errors import UserError
from utils.files import lock, write_whole

HERE = pathlib.Path(__file__).resolve().parents[2]
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
running = set()  # processes that `call` waits for


def write_json(out, name, what):
    """`what` as a file in a folder, whole or not at all; its path."""
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(what, indent=1) + "\n")
    return path


def end_on_signals(goes_on):
    """From now on SIGTERM and Ctrl-C end this process at once, and what `call` runs; the exit status is 128 +
    the signal, as a shell counts it. goes_on: how to go on, for people."""

    def end(number, frame):
        kill_running()
        with contextlib.suppress(RuntimeError, OSError):  # in the midst of printing; nobody reads
            sys.stdout.flush()
        behind_a_bar = "\n" * sys.stderr.isatty()
        os.write(2, f"{behind_a_bar}stopped by signal {number}; {goes_on}\n".encode())
        os._exit(128 + number)  # not an exception, which may be raised where nothing passes it on

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def kill_running():
    for process in list(running):
        process.kill()


def begin(out, flags, inputs):
    """Make the folder of a search, or go on in it, and hold it: with the same flags {name: value} and inputs
    (anything that JSON holds), else it is refused."""
    free = ("jobs", "device", "out", "policy", "preview", "materialise")
    kept = {k: v for k, v in flags.items() if k not in free}
    try:
        lock(out)
    except UserError as error:
        raise UserError(f"--out {error}") from None
    for stray in out.glob("*.tmp"):  # that a kill left half-written
        stray.unlink(missing_ok=True)
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
    """{run: result} kept in a file, one JSON object with `run` a line; damaged ones are dropped."""

    def __init__(self, path):
        self.path = path
        self.rows = {row["run"]: row for row in jsonl.read(path, {"run"})}

    def add(self, row):
        jsonl.append(self.path, row)
        self.rows[row["run"]] = row


def call(script, flags, threads=None):
    """Run `python script flags` to its end; (exit status, stderr). It ends with this process: by
    `end_on_signals`, and on Linux by the kernel. threads: of its CPU arithmetic, where OMP_NUM_THREADS does
    not say."""
    environment = {**({"OMP_NUM_THREADS": str(threads)} if threads else {}), **os.environ}
    command = [sys.executable, str(HERE / script), *map(str, flags)]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, env=environment, preexec_fn=end_with_parent(), **streams)
    running.add(process)
    error = process.communicate()[1]
    running.discard(process)
    return process.returncode, error.strip()


def end_with_parent():
    """What a child of this thread does first, so that the kernel kills it when the thread ends. The thread
    waits for it, so that is when this process is killed. None where the kernel is not Linux."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def first():
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os._exit(128 + signal.SIGKILL)

    return first


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
        # under a name of its own until it has ended: where this process was killed, and the kernel is not
        # Linux, the run that it had started writes on
        unfinished = out.with_name(f"{out.name}.{os.getpid()}")
        status, error = call(job["script"], [*job["flags"], "--out", unfinished], threads)
        if status not in (0, COLLAPSED):
            said = error.splitlines()[-1].removeprefix("error: ") if error else "and said nothing"
            raise UserError(f"{job['script']} of {unfinished} ended with {status}: {said}")
        unfinished.rename(out)
        return job, out

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        waiting = [pool.submit(start, job) for job in left]
        try:
            for future in tqdm(concurrent.futures.as_completed(waiting), "runs", len(left), disable=None):
                job, out = future.result()
                ledger.add({"run": job["run"], **finish(job, out)})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kill_running()
            raise
    return [ledger.rows[job["run"]] for job in jobs]
