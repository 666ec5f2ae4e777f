"""Files that are broken, foreign or hostile are read as they were meant or refused by name; never a crash."""

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, write
from PIL import Image

import augment
import evaluate
import ks_test
import predict
import train_classify
import train_finetune
import train_reward
import train_scores
from datasets.masks import read_mask
from utils import checkpoint
from utils.errors import UserError

# ---- R8


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")  # that a trap is one is known
@pytest.mark.parametrize("wrapped", ["by torch", "by torch before 1.6", "by pickle"])
def test_no_script_runs_what_a_file_holds(
    wrapped, complaint, folder, pictures, times, record_property, tmp_path
):
    times(1, 1)
    file, trap = tmp_path / "evil.pt", tmp_path / "trap"
    state = {"format": checkpoint.FORMAT, "script": "train_finetune.py", "model": Trap(trap)}
    if wrapped == "by pickle":
        file.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, file, _use_new_zipfile_serialization=wrapped == "by torch")
    out = tmp_path / "run"
    out.mkdir()
    commands = [
        (train_finetune, "--data", folder, "--init", file, "--out", tmp_path / "a"),
        (train_finetune, "--data", folder, "--weights", file, *TINY, "--out", tmp_path / "b"),
        (train_finetune, "--resume", "--out", out),
        (train_classify, "--init", file, "--out", tmp_path / "h"),
        (
            train_classify,
            "--data",
            pictures,
            "--weights",
            file,
            "--model",
            "cnn",
            "--size",
            16,
            "--out",
            tmp_path / "i",
        ),
        (train_classify, "--resume", "--out", out),
        (train_reward, "--init", file, "--out", tmp_path / "c"),
        (train_reward, "--resume", "--out", out),
        (
            train_scores,
            "--init",
            file,
            "--unlabelled",
            folder,
            "--reward",
            "anatomy",
            "--out",
            tmp_path / "d",
        ),
        (train_scores, "--resume", "--out", out),
        (evaluate, "--init", file),
        (predict, "--init", file, folder / "images", "--out", tmp_path / "e"),
        (ks_test, "--real", folder, "--other", folder, "--init", file, "--out", tmp_path / "f"),
        (ks_test, "--real", folder, "--other", folder, "--weights", file, "--out", tmp_path / "g"),
    ]
    for script, *flags in commands:
        shutil.copy(file, out / "last.pt")
        assert complaint(script, *flags).count("\n") == 1, flags
        assert not trap.exists(), flags
    record_property("n", len(commands))
    record_property("passed", len(commands))
    torch.load(file, weights_only=False) if wrapped == "by torch" else state["model"].path.touch()
    assert trap.exists() and augment, "the trap does not work: no test"


# ---- R10


def encoded(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_a_flipped_bit_of_a_png_is_no_other_picture(times, record_property, tmp_path):
    """Refused, or without effect. Those of a JPEG change its pixels: nothing but a digest could tell."""
    n = times(60, 600)
    draw = random.Random(0)
    path = tmp_path / "mask.png"
    content = encoded(Image.fromarray(np.arange(48 * 48, dtype=np.uint8).reshape(48, 48) % 11))
    path.write_bytes(content)
    right = read_mask(str(path))
    silent = 0
    for _ in range(n):
        at = draw.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        try:
            silent += not np.array_equal(read_mask(str(path)), right)
        except UserError:
            pass
    record_property("passed", n - silent)
    record_property("figure", f"{silent} read as another mask")
    assert not silent


# ---- R11

GIANT = """
import resource, sys, time
sys.path.insert(0, {root!r})
from datasets.images import read_image
from utils.errors import UserError
read_image({small!r})
before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    read_image({path!r})
except UserError as error:
    assert {path!r} in str(error)
    after, now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    print((now - since) * 1000, (after - before) / 1024)
"""


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(side, start, times, record_property, tmp_path):
    times(1, 1)
    path, small, script, said = (tmp_path / name for name in ("bomb.png", "small.png", "try.py", "said"))
    Image.new("1", (side, side)).save(path)
    Image.new("RGB", (48, 48)).save(small)
    script.write_text(GIANT.format(root=str(ROOT), small=str(small), path=str(path)))
    assert start(script, stdout=said).wait() == 0
    milliseconds, megabytes = map(float, said.read_text().split())
    record_property("figure", f"{side**2 // 10**6} MP: {milliseconds:.0f} ms, {megabytes:.1f} MB")
    assert megabytes < 20


# ---- R19


def test_a_class_list_in_another_order_is_refused(complaint, folder, finetuned, times, tmp_path):
    times(1, 1)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    info = json.loads((other / "classes.json").read_text())
    names = info["classes"]
    names[1], names[6] = names[6], names[1]
    write(other / "classes.json", info)
    said = complaint(evaluate, "--init", finetuned / "best.pt", "--data", other)
    assert " ".join(names) in said and said.count("\n") == 1


# ---- R23

STRANGE = "{i:02d} Ünï 名 \U0001f600 [#]'\"$(x);&\n%"


def test_strange_names_change_nothing(calls, environment, folder, times, tmp_path):
    """Spaces, line breaks, brackets, emoji, 240 bytes; with a relative path and the locale C."""
    times(1, 1)
    groups = json.loads((folder / "classes.json").read_text())["groups"]
    for kind in ("plain", "strange"):
        copy, named = tmp_path / kind, {}
        shutil.copytree(folder, copy)
        for i in range(24):
            stem = STRANGE.format(i=i) if kind == "strange" else f"{i:02d}"
            if kind == "strange" and i == 7:
                stem += "x" * (240 - len(os.fsencode(stem)))
            named[stem] = groups[str(i)]
            for part in ("images", "labels"):
                (copy / part / f"{i}.png").rename(copy / part / f"{stem}.png")
        info = json.loads((copy / "classes.json").read_text())
        write(copy / "classes.json", info | {"groups": named})
    relative = os.path.relpath(tmp_path / "strange")
    flags = ["--steps", 3, "--eval-every", 3, *TINY]
    calls(
        ["train_finetune.py", "--data", tmp_path / "plain", *flags, "--out", tmp_path / "run a"],
        ["train_finetune.py", "--data", relative, *flags, "--out", tmp_path / "run 名"],
    )
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("run a", "run 名"))
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"]) and a["best"] == b["best"]
    photos, out = tmp_path / "strange" / "images", tmp_path / "masks"
    masks = ["predict.py", "--init", tmp_path / "run 名" / "best.pt", photos, "--out", out, "--device", "cpu"]
    subprocess.run(
        [sys.executable, *map(str, masks)],
        cwd=ROOT,
        env=environment | {"LC_ALL": "C"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    stems = {path.stem for path in photos.iterdir()}
    assert {stem for stem in stems if any(path.name.startswith(stem) for path in out.iterdir())} == stems
