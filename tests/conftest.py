"""One thread: the sums in a test then have one order, and busy machines stay usable. Scripts as processes."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch

from utils.errors import run

torch.set_num_threads(1)
ROOT = pathlib.Path(__file__).parents[1]


def command(script, *flags):
    return [sys.executable, str(ROOT / script), *map(str, flags)]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One thread, so that sums have one order, and a cache folder of our own."""
    cache = tmp_path_factory.mktemp("cache")
    return {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}


@pytest.fixture(scope="session")
def call(environment):
    def call(script, *flags, status=0):
        done = subprocess.run(
            command(script, *flags), env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return call


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
