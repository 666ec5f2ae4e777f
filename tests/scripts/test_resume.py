"""Killed, stopped, or in several processes: always the run that it would have been."""

import itertools
import json
import os
import signal
import socket
import time

import pytest
import torch.distributed.run
from conftest import ROOT, TINY, assert_same_run, lineage_of, logged, weights

import train_finetune
from utils import checkpoint

STEPS = 12  # of which five are saved and two more done when a run is killed
DIES = ["tests/reliability/under.py", "dies=7"]


@pytest.mark.parametrize(
    ("script", "workers"),
    [
        *itertools.product(["train_finetune.py", "train_reward.py"], [0, 2]),
        ("train_student.py", 0),
        ("train_classify.py", 0),
        ("train_finetune.py --scenes 3", 0),
    ],
)
def test_a_killed_and_resumed_run_is_the_run_never_killed(
    script, workers, call, start, folder, pictures, finetuned, tmp_path
):
    script, *scenes = script.split()
    data = pictures if script == "train_classify.py" else folder
    flags = ["--data", data, "--workers", workers, "--device", "cpu"]
    flags += ["--steps", STEPS, "--eval-every", 5, "--batch-size", 4]
    if scenes:
        flags += [*scenes, "--model", "panoptic_unet", "--augment", "cutmix", "--size", 32]
        flags += ["--val-fraction", 0]  # to score 128 scenes each time takes longer than all else
        flags += ["--optimizer", "muon"]  # its momentum must come back, too
    elif script == "train_finetune.py":  # BatchNorm here: its statistics must come back too
        flags += ["--augment", "cutmix", "--size", 32, "--ema", 0.9, "--synthetic", 0.25]
    elif script == "train_classify.py":
        flags += ["--model", "cnn", "--size", 38, "--progressive", 3, "--augment", "cutmix", "--bootstrap"]
        flags += ["--dropout", 0.5, "--mixstyle", 1, "--freeze", 1]
    elif script == "train_student.py":
        flags += [
            "--teacher",
            finetuned / "best.pt",
            "--unlabelled",
            folder,
            "--rounds",
            2,
            "--synthetic",
            0.25,
        ]
    else:
        flags += ["--augment", "trivial", "--init", finetuned / "best.pt", "--lr", "1e-6"]
        flags += ["--kl", 0.1, "--ce-weight", 0.1]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    other = start(script, *flags, "--out", whole)
    assert start(*DIES, script, *flags, "--out", broken).wait() == -signal.SIGKILL
    state = weights(broken / "last.pt")
    assert state["step"] == 5 and lineage_of(broken)["exit"] is None
    if workers:  # as if it had begun before there was a lineage
        del state["lineage"]
        (broken / "lineage.json").unlink()
    else:
        state["lineage"]["commit"] = "kept"
    checkpoint.save(broken / "last.pt", **state)
    call(script, "--out", broken, "--resume", "--workers", 2 - workers)
    said = lineage_of(broken)
    assert said["exit"] == 0 and [run["exit"] for run in said["earlier"]] == ([] if workers else [None])
    assert (weights(broken / "last.pt")["lineage"]["commit"] == "kept") == (not workers)
    assert other.wait() == 0
    assert_same_run(whole / "last.pt", broken / "last.pt")
    assert [row["step"] for row in logged(whole)] == [row["step"] for row in logged(broken)]


@pytest.mark.parametrize("estimator", ["field", "rloo"])
def test_no_score_is_asked_for_twice(estimator, call, start, folder, finetuned, judge, tmp_path):
    """Killed in the middle and resumed, it is the run never killed, and no answer was paid twice."""
    flags = ["--init", finetuned / "best.pt", "--unlabelled", folder, "--reward", judge, "--device", "cpu"]
    flags += ["--batch-size", 4, "--samples", 4, "--steps", STEPS, "--eval-every", 5, "--lr", "1e-6"]
    flags += ["--estimator", estimator]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    other = start("train_scores.py", *flags, "--out", whole)
    assert start(*DIES, "train_scores.py", *flags, "--out", broken).wait() == -signal.SIGKILL
    assert weights(broken / "last.pt")["step"] == 5
    call("train_scores.py", "--out", broken, "--resume")
    assert other.wait() == 0
    assert_same_run(whole / "last.pt", broken / "last.pt")
    lines = [(out / "scores.jsonl").read_text().splitlines() for out in (whole, broken)]
    keys = [{json.loads(line)["key"] for line in rows if line.endswith("}")} for rows in lines]
    assert keys[0] == keys[1] and len(keys[0]) > 40


def test_a_classifier_saves_at_sigterm(start, pictures, tmp_path):
    """Before it validates for the first time."""
    out, said = tmp_path / "run", tmp_path / "said"
    flags = ["--data", pictures, "--model", "cnn", "--size", 32, "--device", "cpu", "--steps", 30]
    process = start("train_classify.py", *flags, "--out", out, stdout=said)
    while not (out / "train_batch.png").is_file():  # drawn in the first step
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143 and "--resume goes on" in said.read_text()
    assert 0 < weights(out / "last.pt")["step"] < 30 and not (out / "best.pt").exists()


def test_sigterm_saves_and_resumes(call, complaint, start, folder, tmp_path):
    """... and meanwhile the folder is nobody else's. --resume begins where there is nothing to go on with."""
    flags = ["--data", folder, "--steps", 26, "--eval-every", 5, *TINY]
    whole, broken, said = tmp_path / "whole", tmp_path / "broken", tmp_path / "said"
    other = start("train_finetune.py", *flags, "--out", whole)
    process = start("train_finetune.py", *flags, "--out", broken, "--resume", stdout=said)
    while not (broken / "last.pt").is_file():
        time.sleep(0.01)
    assert f"process {process.pid} on" in complaint(train_finetune, "--out", broken, "--resume")
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143 and "--resume goes on" in said.read_text()
    assert "holds no last.pt yet, so the run begins" in said.read_text()
    assert 0 < weights(broken / "last.pt")["step"] < 26
    call("train_finetune.py", "--out", broken, "--resume")
    assert other.wait() == 0
    assert_same_run(whole / "last.pt", broken / "last.pt")


@pytest.mark.parametrize(
    "script",
    [
        "train_finetune.py",
        "train_reward.py",
        "train_reward.py batch",
        "train_student.py",
        "train_classify.py",
        "train_finetune.py --scenes",
    ],
)
def test_two_processes_are_one(script, start, folder, pictures, finetuned, tmp_path):
    # Adam turns rounding in tiny gradients into a share of the rate, so the rate is small: the loss
    # divided by each process's own count, say, would still move weights apart by 6e-5
    data = pictures if script == "train_classify.py" else folder
    flags = ["--data", data, "--steps", 3, "--eval-every", 3, "--augment", "trivial"]
    flags += ["--device", "cpu", "--grad-clip", "1e6"]
    if script.endswith("--scenes"):
        flags += ["--scenes", 2, "--size", 32, "--model", "panoptic_unet_gn", "--lr", "3e-5"]
        script = "train_finetune.py"
    elif script == "train_finetune.py":
        flags += ["--size", 32, "--model", "unet_gn", "--loss", "ce=1", "dice=1", "--synthetic", 0.25]
        flags += ["--lr", "3e-5"]
    elif script == "train_classify.py":
        flags += ["--size", 20, "--model", "cnn_plain", "--dropout", 0, "--label-smoothing", 0.1]
        flags += ["--lr", "3e-5"]
    elif script == "train_student.py":  # photos have other places in a batch, and CutMix other neighbours
        flags += ["--teacher", finetuned / "best.pt", "--unlabelled", folder, "--distill", 0.5]
        flags[flags.index("trivial")] = "none"
        flags += ["--lr", "3e-6"]
    else:
        flags += ["--init", finetuned / "best.pt", "--lr", "3e-6", "--ce-weight", "1"]
        flags += ["--reward-level", "batch" if script.endswith("batch") else "image"]
        script = "train_reward.py"
    processes = [start(script, *flags, "--batch-size", 8, "--out", tmp_path / "one")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    for rank in "01":  # as torchrun would start them; the next test has the real one
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", **meeting}
        own = ["--batch-size", 4, "--out", tmp_path / "two"]
        processes.append(start(script, *flags, *own, stderr=tmp_path / f"said {rank}", **place))
    statuses = [process.wait() for process in processes]
    assert statuses == [0, 0, 0], (tmp_path / "said 0").read_text()
    one, two = (weights(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key in one["model"]:
        difference = (one["model"][key].double() - two["model"][key].double()).abs().max()
        assert difference <= 1e-6, (key, difference)
    for a, b in zip(*(logged(tmp_path / name) for name in ("one", "two")), strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == pytest.approx(b[k], abs=1e-4) for k in a if k.startswith(("loss/", "train/loss")))


def test_three_processes_count_as_one(calls, finetuned, tmp_path):
    """By torchrun."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    flags = ["--init", finetuned / "best.pt", "--split", "train", "--batch-size", "3", "--device", "cpu"]
    run = [torch.distributed.run.__file__, "--standalone", "--nproc_per_node=3", ROOT / "evaluate.py"]
    calls(["evaluate.py", *flags, "--json", one], [*run, *flags, "--json", two])
    one, two = json.loads(one.read_text()), json.loads(two.read_text())
    assert one.pop("lineage")["data"] == two.pop("lineage")["data"]
    assert one == two and one["n_images"] == 20  # not a multiple of 3: nothing is padded
