"""Killed while it saves, and no room to save in: what was there stays, whole."""

import collections
import os
import pathlib
import random
import signal
import subprocess
import time
import zipfile

import pytest
import torch
from conftest import TINY, weights

from utils.log import open_run

HERE = pathlib.Path(__file__).parent


# ---- R1


def read(path):
    """The number of the save that a file holds, or "missing" or "unreadable"; every byte is checked."""
    if not path.is_file():
        return "missing"
    try:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
        state = torch.load(path, weights_only=True)
    except Exception:  # whatever torch makes of half a file
        return "unreadable"
    assert all((piece == state["step"]).all() for piece in state["model"].values())
    return state["step"]


def kill_saves(start, folder, how, n, megabytes):
    """{"unreadable", "missing", "lost", "strays": so many of n kills at random moments of a loop of saves}.
    lost: the file is older than the last save that was done."""
    folder.mkdir()
    path, said = folder / "last.pt", folder / "said"
    moments = random.Random(0)
    found = collections.Counter()
    done = 0
    for _ in range(n):
        said.unlink(missing_ok=True)
        process = start(HERE / "saves.py", how, path, megabytes, done + 1, stdout=said)
        while not said.read_text().endswith("\n"):
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.2))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        done = int(said.read_text().split()[-1])
        holds = read(path)
        found[holds if isinstance(holds, str) else "lost" if holds < done else "kept"] += 1
        if how == "ours":
            (folder / "last.pt").touch()
            open_run(folder, resume=True)  # as the next run begins: it sweeps
        found["strays"] += len(list(folder.glob("*tmp*")))
    return found


def test_a_kill_while_saving_loses_nothing(start, times, record_property, tmp_path):
    n = times(3, 200)
    found = kill_saves(start, tmp_path / "ours", "ours", n, 32)
    record_property("passed", found["kept"])
    record_property("figure", tell(found))
    assert found["kept"] == n and not found["strays"]


@pytest.mark.parametrize("peer", ["torchvision", "ultralytics", "timm"])
def test_how_others_save(peer, start, times, record_property, tmp_path):
    """To see that the kills are such that they could do harm; run.py only."""
    n = times(0, 200)
    found = kill_saves(start, tmp_path / peer, peer, n, 32)
    record_property("passed", found["kept"])
    record_property("figure", tell(found))
    assert found["kept"] < n


def tell(found):
    return ", ".join(f"{found[what]} {what}" for what in ("unreadable", "missing", "lost", "strays"))


# ---- R6


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(megabytes): a folder on a disk of that size."""
    mounted = []

    def small_disk(megabytes):
        disk = tmp_path / f"disk of {megabytes}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 2**20)}", "none", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip(
                "no disk can be mounted here; test_checkpoint.py has a limit on the file in its place"
            )
        mounted.append(disk)
        return disk

    yield small_disk
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_one_line_and_keeps_what_there_is(
    start, times, record_property, small_disk, folder, tmp_path
):
    """Disks that are full after the first kilobytes, in the first save, in a later one. A checkpoint of this
    model has 6 MB, and 18 with the optimizer's state."""
    n = times(2, 20)
    passed, kept = 0, 0
    for i in range(n):
        megabytes = [0.02, 30, 2, 8, 20, 40][i] if i < 6 else 0.01 * 1.5**i
        out, said = small_disk(megabytes) / "run", tmp_path / f"said {i}"
        flags = ["--data", folder, "--steps", 6, "--eval-every", 1, *TINY, "--out", out]
        status = start("train_finetune.py", *flags, stderr=said).wait()
        lines = said.read_text().splitlines()
        one_line = status == 2 and len(lines) == 1 and ("space" in lines[0] or "are free" in lines[0])
        whole = all(weights(path)["step"] for path in out.glob("*.pt"))
        kept += (out / "last.pt").is_file()
        passed += one_line and whole and not list(out.glob("*.tmp"))
        if not one_line:
            print(megabytes, status, *lines[-3:], sep="\n")
    record_property("passed", passed)
    record_property("figure", f"{kept} with an earlier last.pt, all of them whole")
    assert passed == n


# ---- R12


def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_saved(call, folder, times, tmp_path):
    times(1, 1)
    flags = ["--data", folder, "--steps", 12, "--eval-every", 1, "--lr", "1e18", "--grad-clip", "1e30"]
    done = call("train_finetune.py", *flags, *TINY, "--out", tmp_path / "run", status=2)
    assert "finite" in done.stderr
    for path in (tmp_path / "run").glob("*.pt"):
        assert all(value.isfinite().all() for value in weights(path)["model"].values()), path


# ---- R25


def test_out_of_memory_is_one_line(start, folder, times, tmp_path):
    """There is no second try with a smaller batch."""
    times(1, 1)
    said = tmp_path / "said"
    flags = [
        "--data",
        folder,
        "--batch-size",
        512,
        "--size",
        64,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    ]
    status = start(HERE / "under.py", "memory=200", "train_finetune.py", *flags, stderr=said).wait()
    line = said.read_text()
    assert status == 2 and line.count("\n") == 1 and "--batch-size" in line, line
