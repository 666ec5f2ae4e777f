"""A user's mistake: one line, exit status 2, and nothing is lost, replaced or begun."""

import shutil

import numpy as np
import pytest
import torch
from conftest import TINY, write
from PIL import Image

import evaluate
import predict
import train_finetune
import train_reward
import train_scores
from utils import cli

DATA = ["--data", "{folder}", "--steps", "1", "--size", "32"]  # short, should a mistake not be noticed
INIT = ["--init", "{best}"]
ALONE = [*INIT, "--unlabelled", "{folder}"]
STEPS = ["--reward", "anatomy", "--estimator", "rloo"]
FIELD = ["--reward", "anatomy", "--score-budget", "99", "--steps", "2"]
MISTAKES = [
    (train_finetune, ["--data", "nowhere"], "nowhere"),
    (train_finetune, [*DATA, "--model", "unett"], "unet"),
    (train_finetune, [*DATA, "--loss", "cee=1"], "dice"),
    (train_finetune, [*DATA, "--augment", "trivail"], "trivial"),
    (train_finetune, [*DATA, "--limit", "999"], "20 labelled"),
    (train_finetune, [*DATA, "--resume"], "last.pt"),
    (train_finetune, [*DATA, "--device", "cuda"], "no GPU"),
    (train_finetune, [*DATA, "--freeze", "9"], "stages"),
    (train_finetune, ["--stpes", "3"], "--stpes"),
    (train_finetune, [*DATA, "--synthetic", "2"], "share from 0 to 1"),
    (train_finetune, [*DATA, "--ids", "{wrong}"], "named twice"),
    (train_reward, [], "--init is needed"),
    (train_reward, ["--init", "nowhere.pt"], "nowhere.pt"),
    (train_reward, ["--init", "{folder}/images/0.png"], "0.png"),
    (train_reward, [*INIT, "--reward", "f2=1"], "boundary_f1"),
    (train_reward, [*INIT, "--reward", "anatomy"], "--estimator block"),
    (train_reward, [*INIT, "--class-weight", "nos=2"], "nose"),
    (train_reward, [*INIT, "--estimator", "rloo", "--samples", "1"], "2 or more"),
    (train_reward, [*INIT, "--ids", "{wrong}", "--limit", "4"], "limit 4: "),
    (train_reward, [*INIT, "--ids", "{wrong}"], "named twice"),
    (train_scores, [*INIT], "--unlabelled is needed"),
    (train_scores, [*ALONE, "--reward", "f1", "--score-budget", "99"], "FILE.py:FUNCTION"),
    (train_scores, [*ALONE, "--reward", "anatomy"], "--score-budget"),
    (train_scores, [*ALONE, "--reward", "anatomy", "--score-budget", "20"], "--limit"),
    (train_scores, [*ALONE, *STEPS, "--score-budget", "60", "--steps", "40"], "too small"),
    (train_scores, [*ALONE, *STEPS, "--score-budget", "60"], "too small"),
    (train_scores, [*INIT, "--unlabelled", "synthetic", *STEPS], "synthetic"),
    (train_scores, [*ALONE, *STEPS, "--temperature", "0"], "--temperature"),
    (train_scores, [*ALONE, *FIELD, "--standardise"], "--estimator field has no --standardise"),
    (train_scores, [*ALONE, *FIELD, "--cell", "4"], "and no --cell"),
    (evaluate, ["--init", "nowhere.pt"], "nowhere.pt"),
    (evaluate, [*INIT, "--split", "tset"], "no split tset"),
    (evaluate, [*INIT, "--ids", "{wrong}"], "--split train or val"),
    (evaluate, [*INIT, "--ids", "{wrong}", "--split", "val"], "named twice"),
    (predict, [*INIT, "nowhere.jpg"], "nowhere.jpg"),
    (predict, [*INIT, "{folder}"], "picture"),
]


@pytest.mark.parametrize(("script", "flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(script, flags, named, complaint, folder, split_of, finetuned, tmp_path):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    wrong = write(tmp_path / "wrong.json", {"train": split_of["train"], "val": split_of["train"][:1]})
    flags = [flag.format(folder=folder, best=finetuned / "best.pt", wrong=wrong) for flag in flags]
    if script is not evaluate:
        flags += ["--out", tmp_path / "run"]
    said = complaint(script, *flags)
    assert named in said and "Traceback" not in said
    assert said.count("\n") == 1 or "usage:" in said  # argparse's own has the usage before it
    assert not (tmp_path / "run" / "args.json").exists()


def test_the_line_is_all_that_a_process_says(call, tmp_path):
    done = call("train_finetune.py", "--data", "nowhere", "--out", tmp_path / "run", status=2)
    assert done.stderr == "error: nowhere: no such folder\n" and done.stdout == ""


def test_nothing_is_silently_replaced(call, complaint, folder, finetuned):
    flags = ["--data", folder, "--steps", 1, *TINY, "--out", finetuned]
    assert "--resume" in complaint(train_finetune, *flags)
    done = call("train_finetune.py", "--resume", "--out", finetuned, "--lr", "0.5", status=2)
    assert "--lr" in done.stderr and "0.003" in done.stderr
    done = call("train_finetune.py", "--resume", "--out", finetuned, status=2)
    assert "has done all of its 12 steps" in done.stderr


def test_a_run_with_control_does_not_go_on_without(finetuned, tmp_path):
    """A checkpoint of format 1 whose flags have --control, which is no more; to start from it is allowed."""
    from utils import checkpoint

    state = torch.load(finetuned / "last.pt", weights_only=True)
    state |= {"format": 1, "args": {**state["args"], "control": 0.2, "steps": 99, "out": str(tmp_path)}}
    torch.save(state, tmp_path / "last.pt")
    parser = train_finetune.get_parser()
    args = parser.parse_args(["--resume", "--out", str(tmp_path)])
    with pytest.raises(cli.UserError, match="began with --control"):
        cli.start_run(args, parser, "train_finetune.py")
    assert checkpoint.load(tmp_path / "last.pt")["step"] == 12


def test_the_scan_names_every_faulty_file(complaint, folder, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    half = (bad / "images" / "3.png").read_bytes()
    (bad / "images" / "3.png").write_bytes(half[: len(half) // 2])
    Image.fromarray(np.full((48, 48), 99, np.uint8)).save(bad / "labels" / "5.png")
    Image.fromarray(np.zeros((20, 48), np.uint8)).save(bad / "labels" / "7.png")
    said = complaint(train_finetune, "--data", bad, "--val-fraction", "0", "--out", tmp_path / "run", *TINY)
    assert "3 of 24" in said
    for name in ("3.png", "5.png", "7.png"):
        assert name in said
