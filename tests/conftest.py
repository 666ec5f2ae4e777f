"""One thread: the sums in a test then have one order, and busy machines stay usable. Scripts as processes."""

import atexit
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import server
import torch
from PIL import Image

CACHE = tempfile.mkdtemp()
os.environ["XDG_CACHE_HOME"] = CACHE  # before datasets.cache reads it
atexit.register(shutil.rmtree, CACHE)

from utils.cli import run  # noqa: E402
from utils.errors import UserError  # noqa: E402

torch.set_num_threads(1)
ROOT = pathlib.Path(__file__).parents[1]
FASSEG = pathlib.Path(os.environ.get("FACES_DATA", ROOT.parent / "shared/data")) / "fasseg"
needs_fasseg = pytest.mark.skipif(
    not FASSEG.is_dir(), reason=f"no real faces in {FASSEG}; FACES_DATA=FOLDER, with fasseg/V2 and V3 in it"
)
TINY = ["--size", "32", "--batch-size", "4", "--model", "unet_gn", "--device", "cpu"]


# ---- scripts as processes, each a fork of one that has imported torch (server.py)


def torchrun(processes, script, *flags):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *launch, str(ROOT / script), *map(str, flags)]


@pytest.fixture(scope="session")
def environment():
    """One thread, so that sums have one order."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """start(script, *flags, stdout=PATH, stderr=PATH, **environment): a process, see `server.Started`. What
    the script itself starts as `sys.executable` is a fork of the server, too."""
    home = tmp_path_factory.mktemp("server")
    path, python = str(home / "socket"), home / "python"
    serve = [sys.executable, str(ROOT / "tests/server.py"), path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(serve, env=environment, text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    client = f"exec {sys.executable} -SE {ROOT}/tests/server.py {path}"
    python.write_text(f'#!/bin/sh\n[ "$1" != -u ] || shift  # of torchrun\n{client} "$@"\n')
    python.chmod(0o755)

    def start(script, *flags, stdout=os.devnull, stderr=os.devnull, **more):
        streams = [os.open(name, os.O_RDWR | os.O_CREAT) for name in (os.devnull, stdout, stderr)]
        served = {**environment, "SERVED_PYTHON": str(python), **more}
        started = server.Started(path, [ROOT / script, *flags], served, streams)
        for stream in streams:
            os.close(stream)
        return started

    yield start
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def calls(start, tmp_path_factory):
    """calls([script, *flags], ...): run them to their ends, two at a time; what each said. Each exit status
    is 0, or `status`."""

    def begin(script, *flags):
        folder = tmp_path_factory.mktemp("said")
        said = {name: folder / name for name in ("stdout", "stderr")}
        return start(script, *flags, **said), said

    def calls(*jobs, status=0):
        running, ended = [], []
        for job in [*jobs, None, None]:
            if len(running) == 2 or job is None and running:
                process, said = running.pop(0)
                returncode = process.wait()
                done = SimpleNamespace(**{name: path.read_text() for name, path in said.items()})
                assert returncode == status, done.stdout + done.stderr
                ended.append(done)
            if job:
                running.append(begin(*job))
        return ended

    return calls


@pytest.fixture(scope="session")
def call(calls):
    """call(script, *flags, status=0): run it to its end, and check its exit status; what it said."""
    return lambda script, *flags, status=0: calls([script, *flags], status=status)[0]


@pytest.fixture
def complaint(capsys, monkeypatch):
    """complaint(script, *flags): what it says of a mistake, on stderr, in this process, since starting one
    takes seconds. script: the module."""

    def complaint(script, *flags):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        parser = script.get_parser()
        monkeypatch.setattr(sys, "argv", [script.__file__, *map(str, flags)])  # --resume reads them again
        with pytest.raises(SystemExit) as stopped:
            run(script.main, parser.parse_args([str(flag) for flag in flags]))
        assert stopped.value.code == 2
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return capsys.readouterr().err

    return complaint


@pytest.fixture
def times(record_property):
    """times(few, many): how often an experiment is done: few times here, many by tests/reliability/run.py."""

    def times(few, many):
        n = int(os.environ.get("RELIABILITY_N", many)) if "RELIABILITY" in os.environ else few
        if not n:
            pytest.skip("python tests/reliability/run.py does it")
        record_property("n", n)
        return n

    return times


# ---- runs and their checkpoints


def weights(path):
    return torch.load(path, weights_only=True)


def assert_same_run(a, b):
    """Weights, optimizer state, step and best of two last.pt are equal, tensor for tensor."""
    a, b = weights(a), weights(b)
    assert a["step"] == b["step"] and a["best"] == b["best"]
    for key in a["model"]:
        assert torch.equal(a["model"][key], b["model"][key]), key
    for i, state in a["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, b["optimizer"]["state"][i][key]), (i, key)


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def lineage_of(out):
    return json.loads((out / "lineage.json").read_text())


def tags(out):
    """The latest value of each."""
    return {name: value for row in logged(out) for name, value in row.items()}


@pytest.fixture
def student(teacher, tmp_path, monkeypatch):
    """student(*flags, out="run", status=None): a run of train_student.py in this process; its folder.
    teacher: a fixture of the module that asks."""
    import train_student

    def student(*flags, out="run", status=None):
        flags = [*flags, "--out", tmp_path / out]
        if "--resume" not in flags:
            flags = ["--batch-size", 4, "--device", "cpu", *flags]
            flags += [] if "--teacher" in flags else ["--teacher", teacher]
        flags = [str(flag) for flag in flags]
        monkeypatch.setattr("sys.argv", [train_student.__file__, *flags])  # --resume reads them again
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            assert train_student.main(train_student.get_parser().parse_args(flags)) == status
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return tmp_path / out

    return student


# ---- faces


def ids_of(faces, split="train"):
    return [sample.id for sample in faces.splits[split]]


def refusal(call, *args):
    """What a `UserError` says, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value), "one line, please"
    return str(caught.value)


def write(path, content):
    """A JSON file, and its path."""
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """24 labelled photos of 12 people in the layout of "your own", with sided classes."""
    from datasets import synthetic

    root = tmp_path_factory.mktemp("faces")
    made = synthetic.faces(0, torch.arange(24), 48, "lapa")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    groups = {}
    for i in range(24):
        Image.fromarray(made["image"][i].permute(1, 2, 0).numpy()).save(root / "images" / f"{i}.png")
        Image.fromarray(made["semantic"][i].numpy()).save(root / "labels" / f"{i}.png")
        groups[str(i)] = f"person {i // 2}"
    lapa = synthetic.SCHEMES["lapa"]
    flips = [[lapa.classes[a], lapa.classes[b]] for a, b in lapa.flip_pairs]
    write(root / "classes.json", {"classes": lapa.classes, "groups": groups, "flip_pairs": flips})
    return root


@pytest.fixture(scope="session")
def split_of(folder):
    """What the scripts make of `folder` by themselves, as a file for --ids would say it."""
    from datasets import splits

    faces = splits.open_data(folder)
    return {side: [s.id for s in faces.splits[side]] for side in ("train", "val")}


@pytest.fixture(scope="session")
def finetuned(call, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    flags = ["--steps", 12, "--eval-every", 6, "--augment", "trivial", "--out", out, *TINY]
    call("train_finetune.py", "--data", folder, *flags)
    return out


@pytest.fixture(scope="session")
def judge(folder, tmp_path_factory):
    """A scorer of our own, which knows the masks: the share of right pixels."""
    path = tmp_path_factory.mktemp("judge") / "judge.py"
    path.write_text(
        "import numpy as np, pathlib\n"
        "from PIL import Image\n"
        "def right(masks, photos):\n"
        "    paths = [pathlib.Path(p) for p in photos]\n"
        "    labels = [Image.open(p.parents[1] / 'labels' / p.name) for p in paths]\n"
        "    size = masks.shape[2], masks.shape[1]\n"
        "    labels = np.stack([np.asarray(m.resize(size, Image.NEAREST)) for m in labels])\n"
        "    return (masks == labels).mean((1, 2))\n"
    )
    return f"{path}:right"


# ---- images with classes


def draw_pictures(root, domains, classes, count, size=20):
    """{domain}/{class}/{i}.png of noise, brighter for later classes and redder for later domains."""
    rng = np.random.default_rng(0)
    for d, domain in enumerate(domains):
        for c, name in enumerate(classes):
            (root / domain / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (size, size, 3))
                pixels[..., 0] += 60 * d
                pixels += 45 * c
                Image.fromarray(pixels.astype(np.uint8)).save(root / domain / name / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """36 images of three classes in two domains: 23 train, 7 validate, 6 test."""
    root = tmp_path_factory.mktemp("pictures")
    return draw_pictures(root, ["paint", "photo"], ["cat", "cow", "dog"], 6)
