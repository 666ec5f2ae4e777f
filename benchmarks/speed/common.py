"""What the parts of this benchmark share: CPU seconds, contenders in turns, tables, and photos made for it.

CPU seconds are user + system, of one thread. Contenders take turns, and each round begins with another one,
so that a change of the machine's load hits all of them.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import typing

import torch

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from datasets import synthetic  # noqa: E402
from utils import cli  # noqa: E402
from utils.errors import UserError  # noqa: E402

BLOCK = 256  # the largest side that synthetic faces are rendered at
NOISE = 4.0  # standard deviation that is added: without it JPEG files would be far too small
FEW = 3  # files that a folder of many photos consists of, at most


class Spent(typing.NamedTuple):
    """What a process, or a call, has cost."""

    cpu: float  # seconds, user + system
    wall: float  # seconds
    peak: float  # MB that were resident at most; 0 of a call


def parser(doc):
    p = cli.parser(doc)
    p.add_argument("--repeats", type=cli.positive, default=5, help="rounds, in each of which all take a turn")
    return p


def begin():
    """One thread here; processes are told by `process`."""
    torch.set_num_threads(1)


# ---- measuring


def process(*words, cache=None):
    """`Spent` by `python WORDS...`, with what it waited for. cache: folder of `datasets.cache`."""
    more = {"XDG_CACHE_HOME": str(cache)} if cache else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        command = [sys.executable, *map(str, words)]
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
        _, status, usage = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        if running.returncode not in (0, cli.COLLAPSED):  # of a network that has learnt next to nothing
            said.seek(0)
            raise UserError(f"{' '.join(command)}: {said.read().decode(errors='replace')[-2000:]}")
    return Spent(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 1024)


def call(function, *values):
    """`Spent` by a call in this process."""
    cpu, wall = time.process_time(), time.perf_counter()
    function(*values)
    return Spent(time.process_time() - cpu, time.perf_counter() - wall, 0.0)


def in_turns(contenders, repeats):
    """{name: [what it returned in each round]}. contenders: {name: a function without arguments}."""
    names = list(contenders)
    found = {name: [] for name in names}
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(contenders[name]())
            print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def per_unit(short, long, units):
    """CPU seconds of a unit of work: from the difference of two `Spent`, so that the start does not count."""
    return max(long.cpu - short.cpu, 1e-9) / units


# ---- tables


def table(heads, rows):
    """Print rows of texts as Markdown."""
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def spread(values, digits=3):
    """ "median (lowest to highest)" with so many significant digits."""
    shown = [f"{v:#.{digits}g}".rstrip(".") for v in (statistics.median(values), min(values), max(values))]
    return f"{shown[0]} ({shown[1]} to {shown[2]})"


def ratios(values, base):
    """Of each round, what it was to the base of the same round."""
    return [a / b for a, b in zip(values, base, strict=True)]


# ---- photos


def photos(folder, count, size, classes=None, suffix=".jpg", few=False):
    """Make `count` photos of synthetic faces and their masks, size x size, in the layout of your own faces.

    classes: how many; those of the scheme `lapa` where it is not given, else ids by chance in squares, as
    many of each. few: all photos are hard links to `FEW` files, for very many. Returns the folder.
    """
    folder = pathlib.Path(folder)
    scheme = synthetic.SCHEMES["lapa"]
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    made, random = min(count, FEW) if few else count, np.random.default_rng(0)
    side = min(size, BLOCK)
    names = [f"{i:06}" for i in range(count)]
    for first in range(0, made, 32):
        rows = torch.arange(first, min(first + 32, made))
        faces = synthetic.faces(0, rows, side, "lapa")
        for i, image, label in zip(rows.tolist(), faces["image"], faces["semantic"], strict=True):
            photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size))
            noisy = np.asarray(photo) + random.normal(0, NOISE, (size, size, 3))
            mask = label.numpy()
            if classes:
                squares = random.permutation(np.arange(max(256, classes)) % classes).reshape(16, -1)
                mask = squares.astype(np.uint8)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
                folder / "images" / (names[i] + suffix), quality=90
            )
            Image.fromarray(mask).resize((size, size), Image.NEAREST).save(
                folder / "labels" / f"{names[i]}.png"
            )
    for i in range(made, count):
        for below, end in (("images", suffix), ("labels", ".png")):
            os.link(folder / below / (names[i % made] + end), folder / below / (names[i] + end))
    listed = [f"class {i}" for i in range(classes)] if classes else scheme.classes
    pairs = [] if classes else [[listed[a], listed[b]] for a, b in scheme.flip_pairs]
    content = {"classes": listed, "flip_pairs": pairs}
    (folder / "classes.json").write_text(json.dumps(content))
    return folder
