"""The scripts as their users run them: real processes, real signals, files in a temporary folder."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, command
from PIL import Image

import evaluate
import train_finetune
import train_reward

TINY = ["--size", "32", "--batch-size", "4", "--model", "unet_gn", "--device", "cpu"]


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
    facts = {"classes": lapa.classes, "colors": lapa.colors, "groups": groups}
    facts["flip_pairs"] = [[lapa.classes[a], lapa.classes[b]] for a, b in lapa.flip_pairs]
    facts.pop("colors")
    (root / "classes.json").write_text(json.dumps(facts))
    return root


@pytest.fixture(scope="session")
def finetuned(call, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    flags = ["--steps", 12, "--eval-every", 6, "--augment", "trivial", "--out", out, *TINY]
    call("train_finetune.py", "--data", folder, *flags)
    return out


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


def test_the_chain_from_photos_to_overlays(call, folder, finetuned, tmp_path):
    for name in ("best.pt", "last.pt", "args.json", "metrics.jsonl", "train_batch.png", "val.png"):
        assert (finetuned / name).is_file(), name
    reward, init = tmp_path / "reward", finetuned / "best.pt"
    done = call("train_reward.py", "--init", init, "--steps", 10, "--eval-every", 5, "--batch-size", 4,
                "--estimator", "rloo", "--samples", 3, "--out", reward, "--device", "cpu")  # fmt: skip
    assert "before" in done.stdout and f"--init {reward / 'best.pt'}" in done.stdout
    logged = [json.loads(line) for line in (reward / "metrics.jsonl").read_text().splitlines()]
    names = {"reward/mean", "reward/std", "reward/greedy", "reward/baseline", "rewards/f1/mean",
             "reward/per_class/nose", "advantage/mean", "advantage/std", "frac_reward_zero_std", "kl",
             "entropy", "ce_loss", "policy_loss", "grad_norm", "grad_snr", "val/reward", "val/sampled_f1",
             "val/boundary_f1", "val/ece"}  # fmt: skip
    assert names <= set().union(*logged), names - set().union(*logged)
    assert [row["step"] for row in logged] == sorted(row["step"] for row in logged)

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


def kill_in_the_middle(arguments, environment, out):
    """Start, wait for the first checkpoint, and SIGKILL the whole group a little later."""
    process = subprocess.Popen(arguments, env=environment, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    until = time.time() + 120
    while not (out / "metrics.jsonl").is_file() or not _steps(out):
        assert process.poll() is None and time.time() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL


def _steps(out):
    return (out / "last.pt").is_file() and weights(out / "last.pt")["step"] > 0


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


@pytest.mark.parametrize("estimator", ["field", "rloo", "reinforce", "block"])
def test_tuning_on_scores_alone(estimator, call, folder, finetuned, judge, tmp_path):
    out = tmp_path / "run"
    flags = ["--init", finetuned / "best.pt", "--unlabelled", folder, "--reward", judge, "--device", "cpu"]
    flags += ["--score-budget", 150, "--batch-size", 4, "--lr", "1e-5", "--out", out]
    flags += ["--limit", 8, "--steps", 6] if estimator == "field" else ["--samples", 4, "--cell", 8]
    done = call("train_scores.py", *flags, "--estimator", estimator)
    answers = (out / "scores.jsonl").read_text().splitlines()
    assert 60 < len(answers) <= 150 and f"{len(answers)} scores asked for" in done.stdout
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    names = {"scores/asked", "val/reward", "kl", "entropy", "policy_loss", "grad_norm"}
    names |= set() if estimator == "field" else {"reward/mean", "reward/std", "frac_reward_zero_std"}
    assert names <= set().union(*logged)
    assert Image.open(out / "val.png").width == 2 * 4 * 256 + 6  # two photos a row, four panels each
    init = ["--init", out / "best.pt", "--data", folder, "--split", "val"]
    assert "mean_f1" in call("evaluate.py", *init).stdout


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("script", ["train_finetune.py", "train_reward.py"])
def test_a_killed_and_resumed_run_is_the_run_never_killed(
    script, workers, call, environment, folder, finetuned, tmp_path
):
    flags = ["--data", folder, "--workers", workers, "--device", "cpu"]
    flags += ["--steps", 40, "--eval-every", 7, "--batch-size", 4]
    if script == "train_finetune.py":  # BatchNorm here: its statistics must come back too
        flags += ["--augment", "cutmix", "--size", 32, "--ema", 0.9, "--synthetic", 0.25]
    else:
        flags += ["--augment", "trivial", "--init", finetuned / "best.pt", "--lr", "1e-6"]
        flags += ["--kl", 0.1, "--ce-weight", 0.1]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call(script, *flags, "--out", whole)
    kill_in_the_middle(command(script, *flags, "--out", broken), environment, broken)
    assert 0 < weights(broken / "last.pt")["step"] < 40
    call(
        script,
        "--out",
        broken,
        "--resume",
        "--workers",
        2 - workers,
    )
    assert_same_run(whole / "last.pt", broken / "last.pt")
    rows = [(whole / "metrics.jsonl").read_text().splitlines() for whole in (whole, broken)]
    steps = [[json.loads(line)["step"] for line in lines] for lines in rows]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("estimator", ["field", "rloo"])
def test_no_score_is_asked_for_twice(estimator, call, environment, folder, finetuned, judge, tmp_path):
    """Killed in the middle and resumed, it is the run never killed, and no answer was paid twice."""
    flags = ["--init", finetuned / "best.pt", "--unlabelled", folder, "--reward", judge, "--device", "cpu"]
    flags += ["--batch-size", 4, "--samples", 4, "--steps", 40, "--eval-every", 7, "--lr", "1e-6"]
    flags += ["--estimator", estimator]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call("train_scores.py", *flags, "--out", whole)
    kill_in_the_middle(command("train_scores.py", *flags, "--out", broken), environment, broken)
    assert 0 < weights(broken / "last.pt")["step"] < 40
    call("train_scores.py", "--out", broken, "--resume")
    assert_same_run(whole / "last.pt", broken / "last.pt")
    keys = [{json.loads(line)["key"] for line in (out / "scores.jsonl").read_text().splitlines()
             if line.endswith("}")} for out in (whole, broken)]  # fmt: skip
    assert keys[0] == keys[1] and len(keys[0]) > 40


def test_sigterm_saves_and_resumes(call, environment, folder, tmp_path):
    flags = ["--data", folder, "--steps", 60, "--eval-every", 7, *TINY]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call("train_finetune.py", *flags, "--out", whole)
    process = subprocess.Popen(command("train_finetune.py", *flags, "--out", broken), env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    while not (broken / "last.pt").is_file():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume" in text
    call("train_finetune.py", "--out", broken, "--resume")
    assert_same_run(whole / "last.pt", broken / "last.pt")


@pytest.mark.parametrize("script", ["train_finetune.py", "train_reward.py", "train_reward.py batch"])
def test_two_processes_are_one(script, call, environment, folder, finetuned, tmp_path):
    # Adam turns rounding in tiny gradients into a share of the rate, so the rate is small: the loss
    # divided by each process's own count, say, would still move weights apart by 6e-5
    flags = ["--data", folder, "--steps", 3, "--eval-every", 3, "--augment", "trivial"]
    flags += ["--device", "cpu", "--grad-clip", "1e6"]
    if script == "train_finetune.py":
        flags += ["--size", 32, "--model", "unet_gn", "--loss", "ce=1", "dice=1", "--synthetic", 0.25]
        flags += ["--lr", "3e-5"]
    else:
        flags += ["--init", finetuned / "best.pt", "--lr", "3e-6", "--ce-weight", "1"]
        flags += ["--reward-level", "batch" if script.endswith("batch") else "image"]
        script = "train_reward.py"
    call(script, *flags, "--batch-size", 8, "--out", tmp_path / "one")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run += [
        str(ROOT / script),
        *map(str, flags),
        "--batch-size",
        "4",
        "--out",
        str(tmp_path / "two"),
    ]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (weights(tmp_path / name / "last.pt") for name in ("one", "two"))
    for key in one["model"]:
        difference = (one["model"][key].double() - two["model"][key].double()).abs().max()
        assert difference <= 1e-6, (key, difference)


def test_two_processes_count_as_one(call, environment, folder, finetuned, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    flags = ["--init", str(finetuned / "best.pt"), "--split", "train", "--batch-size", "3"]
    flags += ["--device", "cpu"]
    call("evaluate.py", *flags, "--json", one)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    run += [str(ROOT / "evaluate.py"), *flags, "--json", str(two)]
    subprocess.run(run, env=environment, check=True, capture_output=True, timeout=300)
    one, two = json.loads(one.read_text()), json.loads(two.read_text())
    assert one == two and one["n_images"] == 20  # not a multiple of 3: nothing is padded


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
    done = call("train_reward.py", "--init", finetuned / "best.pt", "--data", "synthetic", "--out",
                tmp_path / "reward", status=2)  # fmt: skip
    assert "left_eye" in done.stderr and "l_eye" in done.stderr


ALONE = ["--init", "{best}", "--unlabelled", "{folder}"]
STEPS = ["--reward", "anatomy", "--estimator", "rloo"]
FIELD = ["--reward", "anatomy", "--score-budget", "99", "--steps", "2"]
MISTAKES = [
    ("train_finetune.py", ["--data", "nowhere"], "nowhere"),
    ("train_finetune.py", ["--data", "{folder}", "--model", "unett"], "unet"),
    ("train_finetune.py", ["--data", "{folder}", "--loss", "cee=1"], "dice"),
    ("train_finetune.py", ["--data", "{folder}", "--augment", "trivail"], "trivial"),
    ("train_finetune.py", ["--data", "{folder}", "--limit", "999"], "20 labelled"),
    ("train_finetune.py", ["--data", "{folder}", "--resume"], "last.pt"),
    ("train_finetune.py", ["--data", "{folder}", "--device", "cuda"], "no GPU"),
    ("train_finetune.py", ["--data", "{folder}", "--freeze", "9"], "stages"),
    ("train_finetune.py", ["--stpes", "3"], "--stpes"),
    ("train_reward.py", ["--init", "nowhere.pt"], "nowhere.pt"),
    ("train_reward.py", ["--init", "{folder}/images/0.png"], "0.png"),
    ("train_reward.py", ["--init", "{best}", "--reward", "f2=1"], "boundary_f1"),
    ("train_reward.py", ["--init", "{best}", "--reward", "anatomy"], "--estimator block"),
    ("train_reward.py", ["--init", "{best}", "--class-weight", "nos=2"], "nose"),
    ("train_reward.py", ["--init", "{best}", "--estimator", "rloo", "--samples", "1"], "2 or more"),
    ("train_scores.py", [*ALONE, "--reward", "f1", "--score-budget", "99"], "FILE.py:FUNCTION"),
    ("train_scores.py", [*ALONE, "--reward", "anatomy"], "--score-budget"),
    ("train_scores.py", [*ALONE, "--reward", "anatomy", "--score-budget", "20"], "--limit"),
    ("train_scores.py", [*ALONE, *STEPS, "--score-budget", "60", "--steps", "40"], "too small"),
    ("train_scores.py", [*ALONE, *STEPS, "--score-budget", "60"], "too small"),
    ("train_scores.py", ["--init", "{best}", "--unlabelled", "synthetic", *STEPS], "synthetic"),
    ("train_scores.py", [*ALONE, *STEPS, "--temperature", "0"], "--temperature"),
    ("train_scores.py", [*ALONE, *FIELD, "--standardise"], "--estimator field has no --standardise"),
    ("train_scores.py", [*ALONE, *FIELD, "--cell", "4"], "and no --cell"),
    ("evaluate.py", ["--init", "nowhere.pt"], "nowhere.pt"),
    ("predict.py", ["--init", "{best}", "nowhere.jpg"], "nowhere.jpg"),
    ("predict.py", ["--init", "{best}", "{folder}"], "picture"),
    ("evaluate.py", ["--init", "{best}", "--split", "test"], "no split test"),
]


@pytest.mark.parametrize(("script", "flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(script, flags, named, call, folder, finetuned, tmp_path):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    flags = [f.format(folder=folder, best=finetuned / "best.pt") for f in flags]
    if script != "evaluate.py":
        flags += ["--out", tmp_path / "run"]
    done = call(script, *flags, status=2)
    assert named in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "args.json").exists()


def test_nothing_is_silently_replaced(call, folder, finetuned):
    done = call("train_finetune.py", "--data", folder, "--out", finetuned, status=2)
    assert "--resume" in done.stderr
    done = call("train_finetune.py", "--resume", "--out", finetuned, "--lr", "0.5", status=2)
    assert "--lr" in done.stderr and "0.003" in done.stderr


def test_the_scan_names_every_faulty_file(call, folder, tmp_path):
    import shutil

    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    half = (bad / "images" / "3.png").read_bytes()
    (bad / "images" / "3.png").write_bytes(half[: len(half) // 2])
    Image.fromarray(np.full((48, 48), 99, np.uint8)).save(bad / "labels" / "5.png")
    Image.fromarray(np.zeros((20, 48), np.uint8)).save(bad / "labels" / "7.png")
    flags = ["--data", bad, "--val-fraction", "0", "--out", tmp_path / "run", *TINY]
    done = call("train_finetune.py", *flags, status=2)
    assert "3 of 24" in done.stderr
    for name in ("3.png", "5.png", "7.png"):
        assert name in done.stderr


# ---- what a data engine steers: who trains, how strongly, for how long


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def split_of(folder):
    """What the scripts make of `folder` by themselves, as a file for --ids would say it."""
    from datasets import loading

    faces = loading.open_data(folder)
    return {side: [s.id for s in faces.splits[side]] for side in ("train", "val")}


def logged(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def stronger(tmp_path, **more):
    """A policy.json of several operations, half as strong as it may become."""
    from datasets.transforms import POLICIES

    return write(tmp_path / "policy.json", {**POLICIES["trivial"], "scale": 0.5, "scale_max": 1.0, **more})


def test_ids_stay_with_the_chain(call, complaint, folder, finetuned, tmp_path):
    """With the ids of the usual split, the usual run; and whoever goes on from it keeps to them."""
    sides, flags = split_of(folder), ["--data", folder, "--steps", 12, "--eval-every", 6, *TINY]
    ids, out = write(tmp_path / "ids.json", sides), tmp_path / "run"
    done = call("train_finetune.py", *flags, "--augment", "trivial", "--ids", ids, "--out", out)
    assert "24 of 24 labelled photos; 4 images of 2 people validate" in done.stdout
    assert_same_run(out / "last.pt", finetuned / "last.pt")

    few = write(tmp_path / "few.json", {"train": sides["train"][:6], "val": sides["train"][6:8]})
    done = call("train_finetune.py", *flags, "--ids", few, "--val-fraction", 0, "--out", tmp_path / "few")
    assert "6 train, 2 val" in done.stdout
    init = ["--init", tmp_path / "few" / "best.pt", "--device", "cpu"]
    flags = ["--steps", 1, "--batch-size", 4, "--out", tmp_path / "reward"]
    assert "6 train, 2 val" in call("train_reward.py", *init, *flags).stdout
    reward = ["--init", tmp_path / "reward" / "best.pt", "--device", "cpu"]
    for run in (init, reward):
        assert "2 images of 1 people" in call("evaluate.py", *run, "--split", "val").stdout
    figures = tmp_path / "given.json"
    done = call("evaluate.py", *init, "--split", "train", "--ids", ids, "--json", figures)
    assert "20 images" in done.stdout and json.loads(figures.read_text())["ids"] == str(ids)

    wrong = write(tmp_path / "wrong.json", {"train": sides["train"], "val": sides["train"][:1]})
    out = ["--out", tmp_path / "none"]
    for script, flags, words in (
        (train_reward, [*init, "--limit", 4, *out], "--limit 4: --ids"),
        (evaluate, [*init, "--ids", ids], "--split train or val"),
        (train_finetune, ["--data", folder, "--ids", wrong, *out], "named twice"),
        (train_reward, [*init, "--ids", wrong, *out], "named twice"),
        (evaluate, [*init, "--ids", wrong, "--split", "val"], "named twice"),
    ):
        said = complaint(script, *flags)
        assert words in said and said.count("\n") == 1


def test_without_val_in_the_ids_nobody_validates(call, folder, tmp_path):
    ids = write(tmp_path / "ids.json", {"train": split_of(folder)["train"][:6]})
    flags = ["--data", folder, "--steps", 1, "--ids", ids, *TINY]
    done = call("train_finetune.py", *flags, "--out", tmp_path / "run")
    assert "6 train, 0 val" in done.stdout and (tmp_path / "run" / "best.pt").is_file()
    init = ["--init", tmp_path / "run" / "best.pt", "--device", "cpu", "--out", tmp_path / "reward"]
    assert "no split val" in call("train_reward.py", *init, status=2).stderr


def test_a_policy_says_which_trainer_gets_which_photos(call, folder, tmp_path):
    train = split_of(folder)["train"]
    allocation = {"ft": train[:12], "reward": train[8:], "quarantine": train[8:10]}
    policy = stronger(tmp_path, allocation=allocation)
    flags = ["--augment", policy, "--steps", 1, "--batch-size", 4, "--device", "cpu"]
    first = ["--data", folder, "--size", 32, "--preprocess", "standardise", *flags, "--out", tmp_path / "run"]
    done = call("train_finetune.py", *first)
    assert "10 train, 4 val" in done.stdout
    assert "leaves out 10 of 20 training photos (allocation, ft)" in done.stdout
    flags += ["--init", tmp_path / "run/best.pt", "--val-fraction", 0]  # the training photos, in their place
    done = call("train_reward.py", *flags, "--out", tmp_path / "reward")
    assert "10 train, 10 val" in done.stdout
    assert "leaves out 14 of 24 training photos (allocation, reward)" in done.stdout
    kept = torch.load(tmp_path / "reward/last.pt", weights_only=True)["args"]
    assert kept["preprocess"] == "standardise"


CONTROLLED = ["--steps", 40, "--eval-every", 5, "--control", 0.05, *TINY]


@pytest.fixture(scope="session")
def controlled(call, folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("controlled")
    flags = ["--data", folder, "--augment", stronger(root), *CONTROLLED, "--out", root / "run"]
    call("train_finetune.py", *flags)
    return root


def test_control_moves_the_strength_against_the_gap(call, folder, controlled):
    """E3: and it never leaves what it is clamped to."""
    rows = [row for row in logged(controlled / "run") if "augment/gap" in row]
    assert [row["step"] for row in rows] == [4, 9, 14, 19, 24, 29, 34, 39]
    strengths, change = [row["augment/strength"] for row in rows], 1.0 * 3 * 5 / 40
    assert strengths[0] == 0.5 and len(set(strengths)) > 2
    for row, now, then in zip(rows, strengths, strengths[1:], strict=False):
        up = 1 if row["augment/gap"] > 0.05 else -1
        assert then == pytest.approx(min(max(now + up * change, 0.0), 1.0), abs=1e-6)
    schedule = weights(controlled / "run" / "last.pt")["schedule"]
    assert [step for step, _ in schedule] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert [scale for _, scale in schedule] == pytest.approx(strengths, abs=1e-6)


def test_the_gap_is_that_of_training_photos_as_they_are(call, folder, controlled, tmp_path):
    sides, f1 = split_of(folder), {}
    ids = write(
        tmp_path / "ids.json", {"train": sides["train"][::5], "val": sides["val"]}
    )  # as many: 4 of 20
    for side in ("train", "val"):
        flags = ["--init", controlled / "run" / "last.pt", "--ids", ids, "--split", side, "--device", "cpu"]
        call("evaluate.py", *flags, "--json", tmp_path / side)
        f1[side] = json.loads((tmp_path / side).read_text())["mean_f1"]
    last = [row["augment/gap"] for row in logged(controlled / "run") if "augment/gap" in row][-1]
    assert last == pytest.approx((f1["train"] - f1["val"]) / f1["train"], abs=1e-5) and last != 0


def test_a_schedule_replays_what_control_did(call, folder, controlled, tmp_path):
    """Bit for bit; and without it, another run."""
    flags = [f for f in CONTROLLED if f not in ("--control", 0.05)]
    schedule = weights(controlled / "run" / "last.pt")["schedule"]
    policy = stronger(tmp_path, scale=1.0, schedule=schedule)
    call("train_finetune.py", "--data", folder, "--augment", policy, *flags, "--out", tmp_path / "run")
    assert_same_run(controlled / "run" / "last.pt", tmp_path / "run" / "last.pt")
    assert weights(tmp_path / "run" / "last.pt")["schedule"] == schedule
    call(
        "train_finetune.py",
        "--data",
        folder,
        "--augment",
        stronger(tmp_path),
        *flags,
        "--out",
        tmp_path / "still",
    )
    still, moved = (weights(root / "last.pt") for root in (tmp_path / "still", controlled / "run"))
    assert still["schedule"] == [[0, 0.5]]
    assert any(not torch.equal(still["model"][key], moved["model"][key]) for key in moved["model"])


@pytest.mark.parametrize("script", ["train_reward.py", "train_scores.py"])
def test_a_reward_run_keeps_to_the_schedule(script, call, folder, finetuned, judge, tmp_path):
    """Constant where the schedule is, something else where it is not."""
    flags, found = ["--init", finetuned / "best.pt", "--steps", 4, "--batch-size", 4, "--device", "cpu"], []
    if script == "train_scores.py":
        flags += ["--unlabelled", folder, "--reward", judge, "--score-budget", 150, "--limit", 8]
        flags += ["--lr", "1e-5"]
    for i, (scale, schedule) in enumerate([(0.5, None), (1.0, [[0, 0.5]]), (0.5, [[0, 0.5], [2, 1.0]])]):
        policy = stronger(tmp_path, scale=scale, schedule=schedule)
        call(script, *flags, "--augment", policy, "--out", tmp_path / str(i))
        found.append(weights(tmp_path / str(i) / "last.pt")["model"])
    same = [all(torch.equal(found[0][key], other[key]) for key in other) for other in found[1:]]
    assert same == [True, False]


def test_a_controlled_run_killed_and_resumed_is_the_run_never_killed(
    call, environment, folder, controlled, tmp_path
):
    flags = [
        "--data",
        folder,
        "--augment",
        controlled / "policy.json",
        *CONTROLLED,
        "--out",
        tmp_path / "run",
    ]
    kill_in_the_middle(command("train_finetune.py", *flags), environment, tmp_path / "run")
    broken = weights(tmp_path / "run" / "last.pt")
    assert 0 < broken["step"] < 40 and len(broken["schedule"]) > 1
    call("train_finetune.py", "--out", tmp_path / "run", "--resume")
    assert_same_run(controlled / "run" / "last.pt", tmp_path / "run" / "last.pt")
    whole, broken = (weights(root / "run" / "last.pt") for root in (controlled, tmp_path))
    assert whole["schedule"] == broken["schedule"]
    rows = [[row for row in logged(root / "run") if "augment/gap" in row] for root in (controlled, tmp_path)]
    keys = ("step", "augment/gap", "augment/strength")
    assert [[row[k] for k in keys] for row in rows[0]] == [[row[k] for k in keys] for row in rows[1]]


@pytest.mark.parametrize(
    "flags, more",
    [
        (["--val-fraction", "0"], {}),
        (["--augment", "flip"], {}),
        ([], {"schedule": [[0, 0.5]]}),
        ([], {"scale": 0.0, "scale_max": 0.0}),
    ],
)
def test_control_needs_something_to_steer_by(flags, more, call, folder, tmp_path):
    given = ["--data", folder, "--augment", stronger(tmp_path, **more), "--control", 0.2, *TINY, *flags]
    done = call("train_finetune.py", *given, "--out", tmp_path / "run", status=2)
    assert "--control 0.2: needs validation" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "last.pt").exists()
