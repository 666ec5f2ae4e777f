"""Runs a script under a condition: python tests/reliability/under.py CONDITION SCRIPT FLAGS...

memory=MEGABYTES  it can take so much more than it has with its packages
keep=FOLDER       every last.pt is also kept there, as 1.pt, 2.pt, ... by its step
dies=STEP         it is killed, with its workers, before that step, counted from 0, while it waits for nobody
"""

import os
import pathlib
import resource
import runpy
import shutil
import signal
import sys

import torch  # noqa: F401

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def limit_memory(megabytes):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + int(megabytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, room))


def keep_every_save(folder):
    from utils import checkpoint

    save_run = checkpoint.save_run

    def save_and_keep(out, state, *more):
        save_run(out, state, *more)
        shutil.copy(out / "last.pt", pathlib.Path(folder) / f"{state['step']}.pt")

    checkpoint.save_run = save_and_keep


def die_before(last):
    from datasets import batches

    positions = batches.positions

    def die_or_go_on(step, *more):
        if step == int(last):
            os.killpg(0, signal.SIGKILL)
        return positions(step, *more)

    batches.positions = die_or_go_on


if __name__ == "__main__":
    condition, script, *flags = sys.argv[1:]
    name, _, value = condition.partition("=")
    {"memory": limit_memory, "keep": keep_every_save, "dies": die_before}[name](value)
    sys.argv = [script, *flags]
    runpy.run_path(str(ROOT / script), run_name="__main__")
