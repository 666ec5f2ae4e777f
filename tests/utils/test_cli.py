"""The flags that scripts share: their types, what a checkpoint hands on, what a resumed run may change."""

import argparse

import pytest

from utils import cli
from utils.errors import UserError


def test_named_weights():
    assert cli.named_weights(["ce=1", "dice=0.5"], "--loss") == {"ce": 1.0, "dice": 0.5}
    assert cli.named_weights(["lovasz"], "--loss", ["ce", "lovasz"]) == {"lovasz": 1.0}
    assert cli.named_weights(["a=b.py:f=2"], "reward") == {"a=b.py:f": 2.0}


@pytest.mark.parametrize("words", [["focal=1"], ["ce=much"], ["ce=1", "=2"], ["ce:1"]])
def test_named_weights_refuses(words):
    with pytest.raises(UserError, match="NAME=WEIGHT") as caught:
        cli.named_weights(words, "--loss", ["ce", "dice"])
    assert f"--loss {' '.join(words)}" in str(caught.value)


def test_a_name_is_given_once():
    with pytest.raises(UserError, match="each name once"):
        cli.named_weights(["ce=1", "ce=2"], "--loss")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_positive_refuses(text):
    assert cli.positive("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1"):
        cli.positive(text)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "x"])
def test_above_zero_refuses(text):
    assert cli.above_zero("0.5") == 0.5
    with pytest.raises(argparse.ArgumentTypeError, match="number above zero"):
        cli.above_zero(text)


def test_help_tells_a_default_once_and_only_where_there_is_one():
    p = cli.parser("What it does.\n\nRun: it")
    p.add_argument("--lr", default=0.1, help="rate")
    p.add_argument("--reward", nargs="+", default=["f1", "dice"], help="names")
    p.add_argument("--share", default=0.0, help="of all")
    p.add_argument("--data", help="folder")
    p.add_argument("--resume", action="store_true", help="go on")
    text = p.format_help()
    assert "What it does.\n\nRun: it" in text and text.count("(default") == 3
    for words in ("rate (default 0.1)", "names (default f1 dice)", "of all (default 0.0)"):
        assert words in text


def test_a_run_needs_what_it_begins_from(tmp_path):
    p = cli.parser("")
    p.add_argument("--init")
    cli.add_output_flags(p, out=str(tmp_path / "run"), eval_every=1)
    with pytest.raises(UserError, match="--init is needed"):
        cli.start_run(p.parse_args([]), p, "x.py", needs=["init"])
    assert not (tmp_path / "run").exists()
    out, args, last = cli.start_run(p.parse_args(["--init", "a"]), p, "x.py", needs=["init"])
    assert out.is_dir() and args.init == "a" and last is None


def test_words_are_no_files_whatever_files_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cpu", "flip", "half", "mine", "own.py", "none"):
        (tmp_path / name).write_text(name)
    flags = {"device": "cpu", "augment": "flip", "arms": ["half", "mine"], "weights": "none", "json": "mine"}
    flags |= {"init": "half", "teacher": ["flip", "gone"], "reward": ["f1", "own.py:score=2"], "loss": None}
    args = argparse.Namespace(**flags)
    named = {"half": "init", "flip": "teacher", "mine": "arms", "own.py": "reward"}
    assert {path: file["flag"] for path, file in cli.files_of(args).items()} == named
    assert cli.input_files(args, but=["reward"]).keys() == named.keys() - {"own.py"}
    assert cli.files_of(args, {"gone": "kept"})["gone"] == {"flag": "teacher", "sha256": "kept"}


def test_inherit():
    args = argparse.Namespace(data=None, size=64, model=None, lr=None)
    init = {"args": {"data": "faces", "size": 128, "model": "unet"}}
    filled = cli.inherit(args, init, data="synthetic", size=256, model="fpn")
    assert vars(filled) == {"data": "faces", "size": 64, "model": "unet", "lr": None}
    filled = cli.fill(args, {"data": "synthetic", "size": 256, "model": "fpn"})
    assert vars(filled) == {"data": "synthetic", "size": 64, "model": "fpn", "lr": None}
    assert args.data is None, "the given args were changed"


def test_resume_flags():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--data")
    parser.add_argument("--out", default="runs/a")
    parser.add_argument("--device")
    saved = {"lr": 0.3, "batch_size": 8, "data": "faces", "out": "runs/a", "device": "cuda"}

    def resume(line):
        return vars(cli.resume_flags(parser, saved, line.split()))

    assert resume("--data moved")["data"] == "moved", "contents are compared instead"
    free = {"out": "runs/b", "device": "cpu"}
    assert resume("--out runs/b --device cpu") == saved | free
    assert resume("--lr 0.3 --data faces --out runs/b --device cpu") == saved | free
    parser.add_argument("--limit")  # a flag younger than the run
    assert resume("--out runs/b --device cpu") == saved | free | {"limit": None}
    for line, flag in (
        ("--limit 4", "--limit"),
        ("--lr 0.2", "--lr"),
        ("--batch-size 4", "--batch-size"),
        ("--lr 0.1", "--lr"),
    ):
        with pytest.raises(UserError, match=flag) as caught:
            resume(line)
        assert "--resume" in str(caught.value)
