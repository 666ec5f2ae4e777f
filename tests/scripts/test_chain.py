"""The scripts as their users run them, one picking up what the other wrote: real processes and files."""

import json

import numpy as np
import pytest
import torch
from conftest import TINY, assert_same_run, lineage_of, logged, weights, write
from PIL import Image

from datasets.policies import POLICIES
from utils.files import sha256


def test_the_chain_from_photos_to_overlays(call, folder, finetuned, tmp_path):
    for name in ("best.pt", "last.pt", "args.json", "metrics.jsonl", "train_batch.png", "val.png"):
        assert (finetuned / name).is_file(), name
    reward, init = tmp_path / "reward", finetuned / "best.pt"
    flags = ["--steps", 10, "--eval-every", 5, "--batch-size", 4, "--estimator", "rloo", "--samples", 3]
    done = call("train_reward.py", "--init", init, *flags, "--out", reward, "--device", "cpu")
    assert "before" in done.stdout and f"--init {reward / 'best.pt'}" in done.stdout
    rows = logged(reward)
    names = "reward/mean reward/std reward/greedy reward/baseline rewards/f1/mean reward/per_class/nose"
    names += " advantage/mean advantage/std frac_reward_zero_std kl entropy ce_loss policy_loss grad_snr"
    names += " train/loss train/lr train/grad_norm val/reward val/sampled_f1 val/boundary_f1 val/ece"
    assert set(names.split()) <= set().union(*rows)
    assert [row["step"] for row in rows] == sorted(row["step"] for row in rows)

    figures = tmp_path / "val.json"
    call("evaluate.py", "--init", reward / "best.pt", "--split", "val", "--json", figures)
    result = json.loads(figures.read_text())
    assert result["n_images"] == 4 and result["data"] == str(folder)
    assert {"mean_f1", "miou", "pixel_accuracy", "boundary_f1", "ece", "slices"} <= result.keys()
    assert result["ci95"]["mean_f1"][0] <= result["mean_f1"] <= result["ci95"]["mean_f1"][1]
    assert set(result["per_class"]) == set(result["classes"])

    photos, out = tmp_path / "photos", tmp_path / "predict"
    photos.mkdir()
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 41, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    upright.save(photos / "turned.jpg", exif=exif)
    upright.save(photos / "plain.png")
    call("predict.py", "--init", reward / "best.pt", photos, "--out", out)
    mask = Image.open(out / "plain_mask.png")
    assert mask.mode == "P" and mask.size == (41, 70)
    assert Image.open(out / "turned_mask.png").size == (70, 41)
    assert set(np.unique(mask)) <= set(range(len(result["classes"])))
    assert Image.open(out / "turned_overlay.png").width >= 70
    again = call("predict.py", "--init", reward / "best.pt", photos, "--out", out, status=2)
    assert "--overwrite" in again.stderr

    said = lineage_of(out)
    assert said["exit"] == 0 and said["earlier"] == [] and len(said["outputs"]) == 4
    assert said["parents"] == result["lineage"]["parents"] == [sha256(reward / "best.pt")]
    val = lineage_of(finetuned)["data"]["val"]
    assert result["lineage"]["data"] == {"val": val} == {"val": lineage_of(reward)["data"]["val"]}
    assert result["lineage"]["exit"] == 0 and result["lineage"]["cpu_seconds"] > 0
    assert weights(reward / "best.pt")["lineage"]["ancestors"].keys() == {sha256(init)}


def test_finetuning_logs_what_its_pictures_and_curves_are_made_of(finetuned):
    names = "train/loss train/lr train/grad_norm time/images_per_sec time/data_wait"
    names += " val/mean_f1 val/miou val/pixel_accuracy val/boundary_f1 val/ece val/f1/nose"
    assert set(names.split()) <= set().union(*logged(finetuned))
    assert Image.open(finetuned / "val.png").width == 2 * 4 * 256 + 6  # two photos a row, four panels each
    batch = np.asarray(Image.open(finetuned / "train_batch.png"))
    assert batch.shape[1] == 4 * (2 * 32 + 6) - 6 and batch[-32:, :32].std() > 5  # a photo, not black


ESTIMATORS = "field", "rloo", "reinforce", "block"


@pytest.fixture(scope="module")
def scored(calls, folder, finetuned, judge, tmp_path_factory):
    """{estimator: (run folder, what was said)} of train_scores.py."""
    root, jobs = tmp_path_factory.mktemp("scored"), []
    flags = ["--init", finetuned / "best.pt", "--unlabelled", folder, "--reward", judge, "--device", "cpu"]
    flags += ["--score-budget", 150, "--batch-size", 4, "--lr", "1e-5"]
    for estimator in ESTIMATORS:
        own = ["--limit", 8, "--steps", 6] if estimator == "field" else ["--samples", 4, "--cell", 8]
        jobs.append(["train_scores.py", *flags, *own, "--estimator", estimator, "--out", root / estimator])
    return {name: (root / name, done.stdout) for name, done in zip(ESTIMATORS, calls(*jobs), strict=True)}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_tuning_on_scores_alone(estimator, scored):
    out, said = scored[estimator]
    answers = (out / "scores.jsonl").read_text().splitlines()
    assert 60 < len(answers) <= 150 and f"{len(answers)} scores asked for" in said
    files = {file["flag"]: path for path, file in lineage_of(out)["files"].items()}
    assert files.keys() == {"init", "reward"} and files["reward"].endswith("judge.py")
    names = {"scores/asked", "val/reward", "kl", "entropy", "policy_loss", "train/loss", "train/grad_norm"}
    names |= set() if estimator == "field" else {"reward/mean", "reward/std", "frac_reward_zero_std"}
    assert names <= set().union(*logged(out))
    assert Image.open(out / "val.png").width == 2 * 4 * 256 + 6  # two photos a row, four panels each


def test_what_scores_gave_is_evaluated_like_any_other(call, scored, folder):
    init = ["--init", scored["field"][0] / "best.pt", "--data", folder, "--split", "val"]
    assert "mean_f1" in call("evaluate.py", *init).stdout


def test_a_collapse_ends_the_run_with_a_message(call, finetuned, tmp_path):
    flags = ["--init", finetuned / "best.pt", "--lr", "0.3", "--steps", "40", "--eval-every", "4"]
    done = call("train_reward.py", *flags, "--out", tmp_path / "run", "--device", "cpu", status=3)
    assert "collapsed" in done.stdout
    best, start = weights(tmp_path / "run" / "best.pt"), weights(finetuned / "best.pt")
    assert best["best"]["reward"] >= best["before"]["reward"]
    if best["step"] == 0:
        assert all(torch.equal(best["model"][k], start["model"][k]) for k in start["model"])


def test_classes_are_matched_by_name(call, finetuned, tmp_path):
    flags = ["--init", finetuned / "best.pt", "--data", "synthetic", "--classes", "celebamask"]
    flags += ["--steps", 1, "--eval-every", 1, "--batch-size", 2, "--device", "cpu"]
    done = call("train_finetune.py", *flags, "--out", tmp_path / "run")
    assert "begun anew" in done.stdout and "l_eye" in done.stdout
    init = ["--init", finetuned / "best.pt", "--data", "synthetic", "--out", tmp_path / "reward"]
    done = call("train_reward.py", *init, status=2)
    assert "left_eye" in done.stderr and "l_eye" in done.stderr


# ---- who trains, and how strongly photos are changed


def test_ids_stay_with_the_chain(call, calls, folder, split_of, finetuned, tmp_path):
    """With the ids of the usual split, the usual run; and whoever goes on from it keeps to them."""
    ids, out = write(tmp_path / "ids.json", split_of), tmp_path / "run"
    few = write(tmp_path / "few.json", {"train": split_of["train"][:6], "val": split_of["train"][6:8]})
    usual = ["--data", folder, "--steps", 12, "--eval-every", 6, *TINY, "--augment", "trivial"]
    short = ["--data", folder, "--steps", 1, *TINY, "--preprocess", "standardise", "--val-fraction", 0]
    done, other = calls(
        ["train_finetune.py", *usual, "--ids", ids, "--out", out],
        ["train_finetune.py", *short, "--ids", few, "--out", tmp_path / "few"],
    )
    assert "24 of 24 labelled photos; 4 images of 2 people validate" in done.stdout
    assert_same_run(out / "last.pt", finetuned / "last.pt")
    assert "6 train, 2 val" in other.stdout

    init = ["--init", tmp_path / "few" / "best.pt", "--device", "cpu"]
    flags = ["--steps", 1, "--batch-size", 4, "--out", tmp_path / "reward"]
    assert "6 train, 2 val" in call("train_reward.py", *init, *flags).stdout
    assert weights(tmp_path / "reward/last.pt")["args"]["preprocess"] == "standardise"
    reward, figures = ["--init", tmp_path / "reward" / "best.pt", "--device", "cpu"], tmp_path / "given.json"
    val, train = calls(
        ["evaluate.py", *reward, "--split", "val"],
        ["evaluate.py", *init, "--split", "train", "--ids", ids, "--json", figures],
    )
    assert "2 images of 1 people" in val.stdout
    assert "20 images" in train.stdout and json.loads(figures.read_text())["ids"] == str(ids)


def test_without_val_in_the_ids_nobody_is_held_out(call, calls, folder, split_of, finetuned, tmp_path):
    """Then best.pt is last.pt, and reward tuning watches the training photos, as with --val-fraction 0."""
    ids = write(tmp_path / "ids.json", {"train": split_of["train"][:6]})
    flags = ["--data", folder, "--steps", 1, "--ids", ids, *TINY]
    done = call("train_finetune.py", *flags, "--out", tmp_path / "run")
    assert "6 train, 0 val" in done.stdout and "since nobody is held out" in done.stdout
    assert (tmp_path / "run" / "best.pt").is_file()
    flags = ["--device", "cpu", "--steps", 1, "--batch-size", 4]
    some = ["--init", tmp_path / "run" / "best.pt", "--out", tmp_path / "reward"]
    every = ["--init", finetuned / "best.pt", "--out", tmp_path / "all", "--limit", 9, "--val-fraction", 0]
    some, every = calls(["train_reward.py", *some, *flags], ["train_reward.py", *every, *flags])
    assert "6 train, 6 val" in some.stdout and "the training photos are watched" in some.stdout
    assert "9 train, 9 val" in every.stdout


def test_every_training_script_keeps_to_a_schedule(calls, folder, finetuned, judge, tmp_path):
    """Constant where the schedule is, something else where it is not."""
    init, schedules = (
        ["--init", finetuned / "best.pt", "--lr", "1e-5"],
        [None, [[0, 0.5]], [[0, 0.5], [2, 1.0]]],
    )
    scripts = {
        "train_finetune.py": ["--data", folder, *init],
        "train_reward.py": init,
        "train_scores.py": [*init, "--unlabelled", folder, "--reward", judge, "--score-budget", 150],
    }
    scripts["train_scores.py"] += ["--limit", 8]
    jobs = []
    for script, flags in scripts.items():
        for i, (scale, schedule) in enumerate(zip((0.5, 1.0, 0.5), schedules, strict=True)):
            policy = {**POLICIES["trivial"], "scale": scale, "schedule": schedule}
            flags = [*flags, "--augment", write(tmp_path / f"{i}.json", policy), "--steps", 4]
            jobs.append(
                [script, *flags, "--batch-size", 4, "--device", "cpu", "--out", tmp_path / script / str(i)]
            )
    calls(*jobs)
    for script in scripts:
        first, *others = (weights(tmp_path / script / str(i) / "last.pt")["model"] for i in range(3))
        same = [all(torch.equal(first[key], other[key]) for key in other) for other in others]
        assert same == [True, False], script
