"""Killed and signalled again and again, at every step, with any workers: always the run never stopped."""

import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import time

import pytest
import torch
from conftest import assert_same_run, logged, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets import batches, splits
from datasets.augmentation import augment
from datasets.policies import POLICIES

HERE = pathlib.Path(__file__).parent
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
ENDS = {  # exit statuses that a signal may have: while packages load, and once the script stops by itself
    signal.SIGKILL: {-9},
    signal.SIGTERM: {-15, 143},
    signal.SIGINT: {-2, 130},
    signal.SIGUSR1: {-10},  # nothing is made of it
}


def sha256(path):
    """Of all weights of a checkpoint."""
    model = weights(path)["model"]
    return hashlib.sha256(b"".join(model[key].numpy().tobytes() for key in sorted(model))).hexdigest()


def harass(start, script, flags, out, signals, n):
    """Start a run and send it one of `signals` at a random moment, n times, each time going on with what
    there is; then let it end. -> [(signal, exit status, seconds to its end)]"""
    draw = random.Random(0)
    ended, begun = [], None
    while len(ended) <= n:
        there = (out / "last.pt").is_file()
        process = start(script, *(["--out", out, "--resume"] if there else [*flags, "--out", out]))
        since = time.time()
        if begun is None:  # how long a start takes, up to the first checkpoint
            while not (out / "last.pt").is_file():
                assert process.poll() is None
                time.sleep(0.01)
            begun = time.time() - since
        elif len(ended) < n:
            time.sleep(draw.uniform(0, 1.5 * begun))
        number = draw.choice(signals)
        if len(ended) == n:
            assert process.wait() == 0
            break
        if process.poll() is not None:
            assert process.wait() == 0
            break  # done before all signals were sent
        since = time.time()
        send = draw.choice([os.kill, os.killpg])
        send(process.pid, number)
        ended.append((number, process.wait(), time.time() - since))
    return ended


def flags_of(script, folder, finetuned, judge, n):
    """So many steps that n signals find it at work. Rows are logged every ten steps, too: a killed run has
    some of steps that it had not saved."""
    flags = ["--steps", 14 + 8 * n, "--eval-every", 7, "--batch-size", 4, "--device", "cpu"]
    if script == "train_finetune.py":
        return [*flags, "--data", folder, "--augment", "cutmix", "--size", 32, "--ema", 0.9, "--workers", 2]
    flags += ["--init", finetuned / "best.pt", "--lr", "1e-6"]
    if script == "train_reward.py":
        return [*flags, "--data", folder, "--augment", "trivial", "--kl", 0.1]
    return [*flags, "--unlabelled", folder, "--reward", judge, "--samples", 4]


def signalled(start, folder, finetuned, judge, script, signals, n, record_property, tmp_path):
    """The run that got n signals is the run that got none; its folder, and the other."""
    flags = flags_of(script, folder, finetuned, judge, n)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    other = start(script, *flags, "--out", whole)
    ended = harass(start, script, flags, broken, signals, n)
    assert other.wait() == 0
    same = sha256(whole / "last.pt") == sha256(broken / "last.pt")
    as_expected = sum(status in ENDS[number] for number, status, _ in ended)
    saved = sum(status in (130, 143) for _, status, _ in ended)
    slowest = sorted(seconds for *_, seconds in ended)[int(0.95 * (len(ended) - 1))]
    record_property("n", len(ended))
    record_property("passed", as_expected if same else 0)
    if saved:
        record_property("figure", f"{script}: {saved} saved, {slowest:.1f} s from signal to end (95 %)")
    assert same and as_expected == len(ended), ended
    assert_same_run(whole / "last.pt", broken / "last.pt")
    return whole, broken


# ---- R2, R29

SCRIPTS = ["train_finetune.py", "train_reward.py", "train_scores.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_many_times(script, start, folder, finetuned, judge, times, record_property, tmp_path):
    n = times(2 if script == "train_finetune.py" else 0, 20)
    whole, broken = signalled(
        start, folder, finetuned, judge, script, [signal.SIGKILL], n, record_property, tmp_path
    )
    rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in logged(broken)]
    same = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in logged(whole)]
    assert rows == same
    board = EventAccumulator(str(broken)).Reload()
    for tag in board.Tags()["scalars"]:
        seen = [(event.step, event.value) for event in board.Scalars(tag)]
        assert [step for step, _ in seen] == [row["step"] for row in logged(broken) if tag in row], tag
        values = [row[tag] for row in logged(broken) if tag in row]
        assert torch.allclose(torch.tensor([value for _, value in seen]), torch.tensor(values)), tag


# ---- R13


@pytest.mark.parametrize("script", SCRIPTS)
def test_signalled_many_times(script, start, folder, finetuned, judge, times, record_property, tmp_path):
    n = times(0, 17)
    signalled(start, folder, finetuned, judge, script, SIGNALS, n, record_property, tmp_path)


def test_a_second_signal_ends_it_at_once(start, folder, times, tmp_path):
    """In a step that takes seconds, after which the first would have it saved."""
    times(1, 1)
    out = tmp_path / "run"
    flags = ["--data", folder, "--size", 256, "--batch-size", 16, "--model", "unet_gn", "--device", "cpu"]
    process = start("train_finetune.py", *flags, "--out", out)
    while not (out / "train_batch.png").exists():  # drawn as the first step begins
        assert process.poll() is None
        time.sleep(0.01)
    for _ in range(2):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.2)  # two at once would be one
    assert process.wait() == 130 and not (out / "last.pt").exists(), "it ended the step"


# ---- R3


@pytest.mark.parametrize("script", SCRIPTS[:2])
def test_resumed_at_every_step(
    script, call, start, folder, finetuned, judge, times, record_property, tmp_path
):
    """20 photos, four a step: an epoch has five steps, and there are two of them."""
    n = times(1 if script == "train_finetune.py" else 0, 9)
    flags = flags_of(script, folder, finetuned, judge, 0) + ["--steps", 10, "--eval-every", 1]
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    kept.mkdir()
    keep = start(HERE / "under.py", f"keep={kept}", script, *flags, "--out", whole)
    assert keep.wait() == 0
    for step in [5, 1, 2, 3, 4, 6, 7, 8, 9][:n]:
        out = tmp_path / f"from {step}"
        shutil.copytree(whole, out)
        shutil.copy(kept / f"{step}.pt", out / "last.pt")
        call(script, "--out", out, "--resume")
        assert_same_run(whole / "last.pt", out / "last.pt")
        assert [row["step"] for row in logged(out)] == [row["step"] for row in logged(whole)]
    record_property("passed", n)


# ---- R4


def first_samples(folder, workers, count):
    """SHA-256 of the first `count` samples, as the training loop sees them."""
    faces = splits.open_data(folder)
    data = batches.load(faces, "train", 32)
    order = batches.Order(len(data), 4, seed=0, first=0, last=count // 4)
    digest = hashlib.sha256()
    for step, batch in enumerate(batches.loader(data, order, workers, torch.device("cpu"))):
        positions = batches.positions(step, 4)
        batch = augment(batch, POLICIES["trivial"], 0, positions, {"semantic": faces.flip_pairs})
        digest.update(batch["image"].numpy().tobytes() + batch["semantic"].numpy().tobytes())
    return digest.hexdigest()


def test_workers_do_not_matter(folder, times, record_property):
    n = times(1, 9)
    count = 500 if n > 1 else 40
    ways = [(how, workers) for how in ("fork", "spawn", "forkserver") for workers in (2, 1, 4)][:n]
    alone = first_samples(folder, 0, count)
    before = multiprocessing.get_start_method()
    try:
        for how, workers in ways:
            multiprocessing.set_start_method(how, force=True)
            assert first_samples(folder, workers, count) == alone, (how, workers)
    finally:
        multiprocessing.set_start_method(before, force=True)
    record_property("n", len(ways))


# ---- R5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resumed_on_a_gpu(call, start, folder, times, record_property, tmp_path):
    times(1, 1)
    flags = ["--data", folder, "--steps", 100, "--eval-every", 10, "--size", 64, "--device", "cuda"]
    whole, kept, out = tmp_path / "whole", tmp_path / "kept", tmp_path / "out"
    kept.mkdir()
    keep = start(HERE / "under.py", f"keep={kept}", "train_finetune.py", *flags, "--out", whole)
    assert keep.wait() == 0
    shutil.copytree(whole, out)
    shutil.copy(kept / "10.pt", out / "last.pt")
    call("train_finetune.py", "--out", out, "--resume")
    a, b = weights(whole / "last.pt")["model"], weights(out / "last.pt")["model"]
    largest = max(float((a[key].double() - b[key].double()).abs().max()) for key in a)
    record_property("figure", f"largest difference of a weight {largest:.1e} after 90 steps")
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 99
