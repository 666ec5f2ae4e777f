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
from utils import checkpoint, cli
from utils.files import sha256

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
    (train_finetune, [*DATA, "--limit", "999"], "20 photos"),
    (train_finetune, [*DATA, "--device", "cuda"], "no GPU"),
    (train_finetune, [*DATA, "--freeze", "9"], "stages"),
    (train_finetune, ["--stpes", "3"], "did you mean --steps?"),
    (train_finetune, [*DATA, "--synthetic", "2"], "share from 0 to 1"),
    (train_finetune, [], "--data or --init is needed"),
    (train_finetune, ["--data", ""], "--data: is empty"),
    (train_finetune, ["--epoch", "3"], "--help lists the flags"),
    (train_reward, ["--init", "{run}"], "did you mean"),
    (evaluate, [*INIT, "--json", "{best}"], "need a name that ends in .json"),
    (predict, [*INIT, "--onnx", "{best}", "--overwrite"], "is the checkpoint"),
    (train_finetune, [*DATA, "--lr", "nan"], "not a number above zero"),
    (train_finetune, [*DATA, "--lr", "-1"], "not a number above zero"),
    (train_finetune, [*DATA, "--workers", "-2"], "whole number"),
    (train_finetune, [*DATA, "--seed", "-1"], "whole number"),
    (train_finetune, [*DATA, "--seed", str(2**64)], "whole number"),
    (train_finetune, [*DATA, "--steps", "0"], "from 1 to"),
    (train_finetune, [*DATA, "--batch-size", "2.5"], "from 1 to 65536"),
    (train_finetune, [*DATA, "--val-fraction", "1.5"], "from 0 to below 1"),
    (train_finetune, [*DATA, "--val-fraction", "-0.5"], "from 0 to below 1"),
    (train_finetune, [*DATA, "--ema", "2"], "from 0 to below 1"),
    (train_finetune, [*DATA, "--grad-clip", "-1"], "above zero"),
    (train_finetune, [*DATA, "--loss", "ce=-1"], "at least zero"),
    (train_finetune, [*DATA, "--loss", "ce=0"], "one of them above"),
    (train_finetune, [*DATA, "--loss", "ce=nan"], "finite"),
    (train_finetune, [*DATA, "--classes", "lapa"], "has no effect on"),
    (train_finetune, [*DATA, "--amp", "fp17"], "bf16"),
    (train_finetune, [*DATA, "--allow-empty", "nos"], "--allow-empty nos: the classes are"),
    (train_finetune, [*DATA, "--ids", "{wrong}", "--val-fraction", "0.2"], "named twice"),
    (train_finetune, [*DATA, "--weights", "{notes}"], "notes.txt"),
    (train_finetune, [*DATA, *INIT, "--weights", "imagenet"], "beside --init"),
    (train_finetune, ["--data", "{notes}"], "a file"),
    (train_finetune, ["--data", "synthetic", "--part-order", "farl"], "on other data than CelebAMask-HQ"),
    (train_finetune, ["--data", "synthetic", "--ids", "{wrong}"], "no ids"),
    (train_finetune, [*DATA, "--ids", "{wrong}"], "named twice"),
    (train_reward, [], "--init is needed"),
    (train_reward, ["--init", "nowhere.pt"], "nowhere.pt"),
    (train_reward, ["--init", "{folder}/images/0.png"], "0.png"),
    (train_reward, [*INIT, "--reward", "f2=1"], "boundary_f1"),
    (train_reward, [*INIT, "--reward", "anatomy"], "--estimator block"),
    (train_reward, [*INIT, "--class-weight", "nos=2"], "nose"),
    (train_reward, [*INIT, "--estimator", "rloo", "--samples", "1"], "2 or more"),
    (train_reward, [*INIT, "--samples", "4"], "no effect with --estimator local"),
    (train_reward, [*INIT, "--tolerance", "2"], "no effect on --reward f1"),
    (train_reward, [*INIT, "--kl", "-1"], "from 0 to 1e9"),
    (train_reward, [*INIT, "--reward", "f1=inf"], "finite"),
    (train_reward, [*INIT, "--reward", "f1=-1"], "at least zero"),
    (train_reward, [*INIT, "--class-weight", "background=2"], "has no effect on reward f1"),
    (train_reward, ["--init", "{fields}"], "but no model"),
    (train_reward, ["--init", "{nan}"], "not finite"),
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
    (
        train_scores,
        [*ALONE, *FIELD, "--score-timeout", "9"],
        "9.0: has no effect on --reward anatomy",
    ),
    (train_scores, [*ALONE, *FIELD, "--same-scorer"], "--same-scorer True: has no effect on --reward"),
    (train_scores, [*ALONE, *FIELD, "--standardise"], "--estimator field has no --standardise"),
    (train_scores, [*ALONE, *FIELD, "--cell", "4"], "and no --cell"),
    (evaluate, ["--init", "nowhere.pt"], "nowhere.pt"),
    (evaluate, [*INIT, "--split", "tset"], "no split tset"),
    (evaluate, [*INIT, "--ids", "{wrong}"], "--split train or val"),
    (evaluate, [*INIT, "--ids", "{wrong}", "--split", "val"], "named twice"),
    (predict, [*INIT, "nowhere.jpg"], "nowhere.jpg"),
    (predict, [*INIT, "{folder}"], "picture"),
]


@pytest.fixture(scope="module")
def files(finetuned, tmp_path_factory):
    """Files that are not what a flag asks for."""
    home = tmp_path_factory.mktemp("files")
    (home / "notes.txt").write_text("hello")
    checkpoint.save(home / "fields.pt", fields=torch.zeros(2))
    state = checkpoint.load(finetuned / "best.pt")
    next(iter(state["model"].values()))[0] = torch.nan
    checkpoint.save(home / "nan.pt", **state)
    return {"notes": home / "notes.txt", "fields": home / "fields.pt", "nan": home / "nan.pt"}


@pytest.mark.parametrize(("script", "flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(
    script, flags, named, complaint, folder, split_of, finetuned, files, tmp_path
):
    if "cuda" in flags and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    wrong = write(tmp_path / "wrong.json", {"train": split_of["train"], "val": split_of["train"][:1]})
    names = {"folder": folder, "run": finetuned, "best": finetuned / "best.pt", "wrong": wrong, **files}
    flags = [flag.format(**names) for flag in flags]
    if script is not evaluate:
        flags += ["--out", tmp_path / "run"]
    said = complaint(script, *flags)
    assert named in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "what was refused leaves nothing behind"


def test_the_line_is_all_that_a_process_says(call, tmp_path):
    done = call("train_finetune.py", "--data", "nowhere", "--out", tmp_path / "run", status=2)
    assert done.stderr == "error: nowhere: no such folder\n" and done.stdout == ""


def test_nothing_is_silently_replaced(call, complaint, folder, finetuned):
    flags = ["--data", folder, "--steps", 1, *TINY, "--out", finetuned]
    assert "--resume" in complaint(train_finetune, *flags)
    done = call("train_finetune.py", "--resume", "--out", finetuned, "--lr", "0.5", status=2)
    assert "--lr" in done.stderr and "0.003" in done.stderr
    done = call("train_finetune.py", "--resume", "--out", finetuned)  # as a queue may, that starts it again
    assert "has done all of its 12 steps" in done.stdout


@pytest.fixture
def unfinished(finetuned, folder, tmp_path):
    """unfinished(): a run of 99 steps that was stopped after 12, on a copy of the data; its folder."""
    shutil.copytree(folder, tmp_path / "data")
    shutil.copytree(finetuned, tmp_path / "run")
    state = checkpoint.load(finetuned / "last.pt")
    flags = {"steps": 99, "out": str(tmp_path / "run"), "data": str(tmp_path / "data")}
    policy = write(tmp_path / "policy.json", {"ops": [], "scale": 0.0})
    flags["augment"] = str(policy)
    inputs = {str(policy): sha256(policy)}
    checkpoint.save(tmp_path / "run" / "last.pt", **state | {"args": state["args"] | flags, "inputs": inputs})
    return tmp_path / "run"


def resume(out, complaint, *flags):
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = complaint(train_finetune, "--resume", "--out", out, *flags)
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}
    assert before.items() >= after.items(), "what there was is as it was"
    return said


def test_a_resumed_run_has_the_data_that_it_began_with(unfinished, complaint):
    mask = unfinished.parent / "data" / "labels" / "3.png"
    ids = np.asarray(Image.open(mask)).copy()
    ids[:9] = 2
    Image.fromarray(ids).save(mask)
    assert "1 with another photo, mask or class (train/3)" in resume(unfinished, complaint)


def test_a_resumed_run_has_the_files_that_it_began_with(unfinished, complaint):
    policy = unfinished.parent / "policy.json"
    policy.write_text(policy.read_text() + " ")
    assert f"{policy} is not the file that the run" in resume(unfinished, complaint)


def test_a_resumed_run_has_its_best_weights(unfinished, complaint):
    best = (unfinished / "best.pt").read_bytes()
    (unfinished / "best.pt").write_bytes(best[: len(best) // 2])
    assert "best.pt: not a whole checkpoint" in resume(unfinished, complaint)
    (unfinished / "best.pt").unlink()
    assert "best.pt: no such checkpoint" in resume(unfinished, complaint)


def test_a_resumed_run_may_find_its_data_elsewhere(unfinished, complaint):
    moved = unfinished.parent / "moved"
    (unfinished.parent / "data").rename(moved)
    assert "no such folder" in resume(unfinished, complaint)
    broken = checkpoint.load(unfinished / "last.pt")  # refused, but not for its data, which comes first
    model = {name: tensor[:0] for name, tensor in broken["model"].items()}
    checkpoint.save(unfinished / "last.pt", **broken | {"model": model})
    assert "weights of another model" in resume(unfinished, complaint, "--data", moved)
    said = resume(unfinished, complaint, "--data", "synthetic")
    assert "the data is not what the run began with" in said


def test_a_run_with_control_does_not_go_on_without(finetuned, tmp_path):
    """A checkpoint of format 1 whose flags have --control, which is no more; to start from it is allowed."""
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
