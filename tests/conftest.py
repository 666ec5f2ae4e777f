"""One thread: the sums in a test then have one order, and busy machines stay usable. Scripts as processes."""

import json
import os
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from utils.errors import run

torch.set_num_threads(1)
ROOT = pathlib.Path(__file__).parents[1]
# To import torch takes longer than most tests: one process does it, and each script runs in a fork of it
SERVER = """
import json, os, runpy, signal, sys
import scipy.stats, torch, torchvision, torch.utils.tensorboard
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(300)  # nobody waits for it longer
for number, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.argv = job["argv"]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(script, *flags):
    return [sys.executable, str(ROOT / script), *map(str, flags)]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One thread, so that sums have one order, and a cache folder of our own."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}


@pytest.fixture(scope="session")
def call(environment, tmp_path_factory):
    said = {name: tmp_path_factory.mktemp("said") / name for name in ("stdout", "stderr")}
    server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip

    def call(script, *flags, status=0):
        for path in said.values():
            path.write_text("")
        job = {"argv": command(script, *flags)[1:], **{name: str(path) for name, path in said.items()}}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        returncode = int(server.stdout.readline())
        done = SimpleNamespace(**{name: path.read_text() for name, path in said.items()})
        assert returncode == status, done.stdout + done.stderr
        return done

    yield call
    server.stdin.close()
    server.wait()


@pytest.fixture
def complaint(capsys):
    """What a script says of a mistake, on stderr, in this process, since starting one takes seconds."""

    def complaint(script, *flags):
        parser = script.get_parser()
        with pytest.raises(SystemExit) as stopped:
            run(script.main, parser.parse_args([str(flag) for flag in flags]))
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return complaint
