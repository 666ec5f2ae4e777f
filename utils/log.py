"""A run folder: args.json, metrics.jsonl and TensorBoard events, in step on resume."""

import functools
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import threading
import time

import torch
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from utils import dist, draw, jsonl
from utils.errors import UserError
from utils.files import lock, write_whole


class RunLog:
    """Writes on rank 0 and does nothing elsewhere, so callers need no rank tests. Steps are counted as they
    end: what is logged at 10 is of ten steps."""

    def __init__(self, out, flags, resumed=None, active=True):
        """flags: {name: value}. resumed: the step that the run goes on from; what was logged of later ones is
        dropped. None: the run begins."""
        self.active = active
        if not active:
            return
        self.out = pathlib.Path(out)
        self.path = self.out / "metrics.jsonl"
        kept = []
        if resumed is None:
            facts = {"args": flags, "command": sys.argv, "git": git_commit(), **machine()}
            write_whole(self.out / "args.json", json.dumps(facts, indent=2) + "\n")
        else:
            rows = jsonl.read(self.path, {"step": int})
            kept = [json.dumps(row) for row in rows if row["step"] <= resumed]
        write_whole(self.path, "".join(line + "\n" for line in kept))
        threading.excepthook = _tell_once
        # what TensorBoard shows of later steps is another run's, or of this one before it was killed
        self.board = SummaryWriter(self.out, purge_step=0 if resumed is None else resumed + 1)
        self._session(metadata.SESSION_START_INFO_TAG, session_start_info=session_start(flags))

    def scalars(self, step, **values):
        """One line of metrics.jsonl and one TensorBoard scalar each. NaN (nothing to score) is left
        out; names are written `train/loss` as **{"train/loss": x}."""
        if not self.active:
            return
        values = {k: round(float(v), 6) for k, v in values.items() if not math.isnan(float(v))}
        jsonl.append(self.path, {"step": step, **values}, sync=False)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def json(self, file, what):
        """Plain data as a file of the run folder."""
        if self.active:
            write_whole(self.out / file, json.dumps(what, indent=1) + "\n")

    def image(self, step, name, array, file):
        """A picture (H, W, 3) uint8, for TensorBoard and as a PNG in the run folder."""
        if self.active:
            self.board.add_image(name, array, step, dataformats="HWC")
            draw.write(self.out / file, array)

    def histogram(self, step, name, values):
        """Numbers of any shape, for TensorBoard."""
        if self.active:
            self.board.add_histogram(name, values, step)

    def close(self, done=True, signal=0):
        """done: whether the run has done all that it was to do. signal: which stopped it; it may go on then,
        and is one session of TensorBoard's, which takes the first end for the last."""
        if not self.active:
            return
        if done or not signal:
            status = Status.STATUS_SUCCESS if done else Status.STATUS_FAILURE
            end = {"status": status, "end_time_secs": time.time()}
            self._session(metadata.SESSION_END_INFO_TAG, session_end_info=end)
        self.board.close()

    def _session(self, tag, **what):
        """A record for TensorBoard's table of runs, HParams. Without that of an "experiment", which would
        name the columns of one run, all flags and figures of all runs become columns."""
        content = HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **what).SerializeToString()
        plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content)
        value = Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))
        self.board.file_writer.add_summary(Summary(value=[value]))


def session_start(flags):
    """{name: value} as TensorBoard's SessionStartInfo takes it: numbers, yes or no, and text, of lists their
    words. None is left out: as text beside another run's number it would turn the column into text, whose
    filter hides the run with the number."""
    kinds = {bool: "bool_value", int: "number_value", float: "number_value"}
    values = {}
    for name, value in flags.items():
        if isinstance(value, list):
            value = " ".join(map(str, value)) or "none"
        if value is not None:
            values[name] = {kinds.get(type(value), "string_value"): value}
    return {"hparams": values, "start_time_secs": time.time()}


def _tell_once(error):
    """An OSError in the thread of TensorBoard is raised again by the next call of it."""
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


def open_run(out, resume):
    """The run folder as a path, held by this process. A folder that holds a run is refused without `resume`.
    To be called before the processes of a run have met: it removes what a killed one left half-written."""
    try:
        os.fspath(out).encode()
    except UnicodeEncodeError:  # which TensorBoard does not take
        raise UserError(f"--out {out}: a name that is not UTF-8; name another") from None
    out = pathlib.Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file")
    if not resume and (out / "best.pt").is_file() and not (out / "last.pt").is_file():
        raise UserError(f"--out {out}: holds a best.pt already; name another folder (--resume replaces it)")
    if not resume and (out / "last.pt").is_file():
        raise UserError(f"--out {out}: holds a last.pt already; --resume goes on, or name another folder")
    if not dist.is_first():  # one process holds the folder for all
        return out
    try:
        lock(out)
        for stray in out.glob("*.tmp"):
            stray.unlink(missing_ok=True)
    except (OSError, UserError) as error:
        raise UserError(f"--out {error}") from None
    return out


@functools.cache
def git_commit():
    """The commit of this code, `-dirty` where files differ; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        return subprocess.run(command, cwd=here, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def machine():
    """Versions and hardware, as plain data."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }
