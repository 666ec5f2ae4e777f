"""Scores from outside: asked once, counted, kept; masks judged on photos as they are."""

import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import batches, splits
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX as IGNORE
from utils.rewards.scorer import Scorer, judge


def asking(calls, answer=lambda masks: masks.mean((1, 2))[:, None]):
    def function(masks, photos):
        assert masks.dtype == np.uint8 and len(masks) == len(photos)
        calls.append(list(photos))
        return answer(masks)

    return function


def test_nothing_is_asked_twice(tmp_path):
    calls, masks = [], torch.arange(3).view(3, 1, 1).expand(3, 2, 2)
    scorer = Scorer(asking(calls), "mine", tmp_path / "scores.jsonl", budget=4)
    first = scorer(masks, ["a", "b", "c"])
    assert first.tolist() == [[0.0], [1.0], [2.0]] and first.dtype == torch.double
    assert torch.equal(scorer(masks[[2, 0]], ["c", "a"]), first[[2, 0]]) and scorer.asked == 3
    assert scorer(masks[:2], ["c", "b"]).tolist() == [[0.0], [1.0]]  # the mask of one photo, for another
    assert calls == [["a", "b", "c"], ["c"]] and scorer.asked == 4
    with pytest.raises(UserError, match="score budget 4: 1 more"):
        scorer(masks[1:], ["a", "c"])
    assert len(calls) == 2

    with open(tmp_path / "scores.jsonl", "a") as file:
        file.write('{"key": "torn')
    again = Scorer(asking(calls), "mine", tmp_path / "scores.jsonl", budget=5)
    assert torch.equal(again(masks, ["a", "b", "c"]), first) and again.asked == 4 and len(calls) == 2
    assert again.left() == 1


def test_what_follows_a_torn_line_is_kept(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_text('{"key": "x", "score": [1.0]}\n{"key": "torn')
    masks = torch.zeros(1, 2, 2)
    Scorer(asking([]), "mine", path)(masks, ["a"])
    assert json.loads(path.read_text().splitlines()[2])["score"] == [0.0]
    calls = []
    assert Scorer(asking(calls), "mine", path)(masks, ["a"]).item() == 0 and not calls


def test_one_number_a_class(tmp_path):
    rows = np.array([[np.nan, 0.5, 1.0], [np.nan, np.nan, 0.25]])
    scorer = Scorer(lambda masks, photos: rows, "mine", tmp_path / "scores.jsonl")
    masks = torch.tensor([[[0, 1]], [[1, 1]]])
    first = scorer(masks, ["a", "b"])
    again = Scorer(None, "mine", tmp_path / "scores.jsonl")(masks, ["a", "b"])
    assert np.array_equal(first, rows, equal_nan=True) and np.array_equal(again, rows, equal_nan=True)


BAD = ["1.0", "[1.0]", "[float('nan'), 1]", "[float('inf'), 1]", "[[[1]]] * 2", "[[1, 2]] * 2", "1 / 0"]


@pytest.mark.parametrize("answer", BAD)
def test_a_bad_answer_is_refused(tmp_path, answer):
    (tmp_path / "mine.py").write_text(f"def score(masks, photos):\n    return {answer}\n")
    function = judge([f"{tmp_path}/mine.py:score"], ["background", "skin", "nose"])
    scorer = Scorer(function, "mine", tmp_path / "scores.jsonl")
    with pytest.raises(UserError, match="reward|scorer"):
        scorer(torch.tensor([[[0]], [[1]]]), ["a", "b"])
    assert scorer.asked == 0 and not scorer.path.exists()


def test_scores_add_up(tmp_path):
    (tmp_path / "mine.py").write_text("def score(masks, photos):\n    return [len(p) for p in photos]\n")
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[1, 2:6, 2:6] = 1
    names = ["background", "skin", "nose"]
    both = judge([f"{tmp_path}/mine.py:score=2", "anatomy"], names)(masks, ["a", "bcd"])
    assert both[0, 0] == 2 and both[1, 0] > 6 and both.shape == (2, 1)


def test_masks_are_never_read(tmp_path):
    """Photos of a labelled data set, of a folder of pictures: nothing labelled comes out."""
    for name in "abcd":
        for kind, mode in (("images", "RGB"), ("labels", "L")):
            (tmp_path / "set" / kind).mkdir(parents=True, exist_ok=True)
            Image.new(mode, (20, 20)).save(tmp_path / "set" / kind / f"{name}.png")
    mask = tmp_path / "set" / "labels" / "a.png"
    Image.fromarray(np.full((20, 20), 1, np.uint8)).save(mask)
    for path in (tmp_path / "set", tmp_path / "set" / "images"):
        faces = splits.open_photos(path, ["background", "skin"], val_fraction=0.25)
        train, val = (batches.load(faces, split, 16) for split in ("train", "val"))
        assert len(train) == 3 and len(val) == 1
        assert (train[[0, 1, 2]]["semantic"] == IGNORE).all()
        assert sorted(pathlib.Path(p).stem for p in train.paths + val.paths) == list("abcd")
