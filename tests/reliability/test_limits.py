"""Very few photos, very many, and the ways a model can be run."""

import math
import os
import pathlib
import time

import numpy as np
import pytest
import torch
from conftest import TINY, logged, weights, write
from PIL import Image

from datasets import batches, splits
from models import restore
from utils import checkpoint


def folder_of(root, n, side=40):
    """n photos of two classes, each half of every mask."""
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    label = Image.fromarray(np.repeat(np.uint8([[0, 1]]), side // 2, 1).repeat(side, 0))
    for i in range(n):
        gradient = np.linspace(0, i % 251, side * side * 3).astype(np.uint8).reshape(side, side, 3)
        Image.fromarray(gradient).save(root / "images" / f"{i:05d}.jpg")
        label.save(root / "labels" / f"{i:05d}.png")
    write(root / "classes.json", {"classes": ["background", "face"]})
    return root


# ---- R21


@pytest.mark.parametrize(
    ("n", "flags"),
    [
        (1, ["--val-fraction", 0, "--batch-size", 1, "--model", "unet"]),
        (2, ["--batch-size", 16, "--model", "unet_gn"]),
    ],
    ids=["one photo, nobody held out", "fewer than a batch"],
)
def test_very_few_photos(n, flags, call, times, tmp_path):
    times(1, 1)
    faces, out = folder_of(tmp_path / "faces", n), tmp_path / "run"
    flags = ["--data", faces, "--steps", 3, "--eval-every", 3, "--size", 64, "--device", "cpu", *flags]
    call("train_finetune.py", *flags, "--out", out)
    assert all(math.isfinite(value) for row in logged(out) for value in row.values())
    assert weights(out / "best.pt")["step"] == 3 or n > 1


# ---- R24


def memory(pids):
    """Proportional set size of processes, MB: what is shared counts once."""
    rows = [pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(row.split()[1]) for lines in rows for row in lines if row.startswith("Pss:")) / 1024


def test_ten_thousand_photos(call, times, record_property, tmp_path):
    n = times(0, 10_000)
    faces, seconds = folder_of(tmp_path / "faces", n, 256), []
    flags = ["--data", faces, "--steps", 1, "--eval-every", 1, "--val-fraction", 0.01, "--amp", "off", *TINY]
    for name in ("first", "second"):
        since = time.time()
        call("train_finetune.py", *flags, "--out", tmp_path / name)
        seconds.append(time.time() - since)
    data = batches.load(splits.open_data(faces, val_fraction=0.01), "train", 32)
    grown = {}
    for workers in (0, 4, 8):
        epochs, steps = 20, len(data) // 64
        order = batches.Order(len(data), 64, 0, 0, epochs * steps)
        for step, _ in enumerate(batches.loader(data, order, workers, torch.device("cpu"))):
            if step in (2 * steps, epochs * steps - 20):
                own = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                used = memory(["self", *own])
                grown[workers] = used / grown[workers] - 1 if workers in grown else used
    record_property("passed", n if max(grown.values()) < 0.05 else 0)
    growth = ", ".join(f"{share:+.1%} with {workers}" for workers, share in grown.items())
    record_property(
        "figure",
        f"one step from start to end: {seconds[0]:.0f} s, again {seconds[1]:.0f} s; memory, epoch 2 to 20, "
        f"by workers: {growth}",
    )
    assert seconds[1] < seconds[0] and max(grown.values()) < 0.05


# ---- R27


def test_compiled_or_not_a_checkpoint_is_the_same(calls, folder, times, record_property, tmp_path):
    times(0, 1)
    flags = ["--data", folder, "--steps", 3, "--eval-every", 3, "--lr", "1e-4", *TINY]
    plain, compiled, again = (tmp_path / name for name in ("plain", "compiled", "again"))
    calls(
        ["train_finetune.py", *flags, "--out", plain],
        ["train_finetune.py", *flags, "--compile", "--out", compiled],
    )
    calls(["train_finetune.py", *flags, "--init", compiled / "best.pt", "--out", again])
    a, b = (checkpoint.load(out / "best.pt") for out in (plain, compiled))
    assert a["model"].keys() == b["model"].keys()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (restore(state, "cpu")(images)["semantic"] for state in (a, b))
    largest = float((one - two).abs().max())
    record_property("figure", f"largest difference of a logit {largest:.1e}")
    assert largest <= 1e-4
