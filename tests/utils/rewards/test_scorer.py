"""Scores from outside: asked once, counted, kept, whatever the scorer does; masks judged on photos as they
are."""

import json
import pathlib
import resource
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refusal
from PIL import Image

from datasets import batches, splits
from utils import dist
from utils.metrics import IGNORE_INDEX as IGNORE
from utils.rewards import scorer as rewards_scorer
from utils.rewards.scorer import Scorer, judge

NAMES = ["background", "skin", "nose"]
MASKS = torch.arange(3).view(3, 1, 1).expand(3, 2, 2)
HEAD = "import os, pathlib, signal, sys, time\nimport numpy as np\nHERE = pathlib.Path(__file__).parent\n"
# so that a test sees what was asked about
MEAN = "    (HERE / 'asked').open('a').write(''.join(photos))\n    return masks.mean((1, 2))\n"


@pytest.fixture
def scorer(tmp_path):
    """scorer(lines of the function, **more): of mine.py, as it is on disk then."""

    def scorer(lines, **more):
        (tmp_path / "mine.py").write_text(f"{HEAD}def score(masks, photos):\n{lines}")
        return Scorer([f"{tmp_path}/mine.py:score"], NAMES, tmp_path / "scores.jsonl", **more)

    return scorer


def rows(scorer):
    return [json.loads(line) for line in scorer.path.read_text().splitlines()]


def test_nothing_is_asked_twice(scorer, tmp_path):
    one = scorer(MEAN, budget=4)
    first = one(MASKS, ["a", "b", "c"])
    assert first.tolist() == [[0.0], [1.0], [2.0]] and first.dtype == torch.double
    assert torch.equal(one(MASKS[[2, 0]], ["c", "a"]), first[[2, 0]]) and one.asked == 3
    assert one(MASKS[:2], ["c", "b"]).tolist() == [[0.0], [1.0]]  # the mask of one photo, for another
    assert (tmp_path / "asked").read_text() == "abcc" and one.asked == 4
    assert "score budget 4: 1 more" in refusal(one, MASKS[1:], ["a", "c"])

    again = scorer(MEAN, budget=5)
    assert torch.equal(again(MASKS, ["a", "b", "c"]), first) and again.asked == 4 and again.left() == 1
    assert (tmp_path / "asked").read_text() == "abcc"


@pytest.mark.parametrize(
    "how", ["return [count]", "for _ in photos: yield len(path.read_text().splitlines())"]
)
def test_each_answer_is_on_disk_before_the_next_is_asked_for(scorer, how):
    """The scorer counts the answers that are there."""
    lines = "    path = HERE / 'scores.jsonl'\n"
    lines += "    count = len(path.read_text().splitlines()) if path.exists() else 0\n"
    found = scorer(f"{lines}    path.touch()\n    {how}\n")(MASKS, ["a", "b", "c"])
    assert found.tolist() == [[0.0], [1.0], [2.0]]


def test_answers_are_kept_where_they_were_meant_to_be_kept(tmp_path, monkeypatch):
    """By a scorer that leaves the working directory, at import and in each call."""
    monkeypatch.chdir(tmp_path)
    lines = "import os\nos.chdir('/')\ndef score(masks, photos):\n    os.chdir('/')\n    return [1]\n"
    (tmp_path / "mine.py").write_text(lines)
    Scorer(["mine.py:score"], NAMES, "scores.jsonl")(MASKS, ["a", "b", "c"])
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 3


def test_damaged_lines_are_left_out_and_what_follows_a_torn_one_is_kept(scorer, capsys):
    first = scorer(MEAN)
    values = first(MASKS, ["a", "b", "c"])
    lines = first.path.read_text().splitlines()
    first.path.write_text("\n".join([lines[0], lines[1].replace("score", "sc\ufffdre"), lines[2][:20]]))
    again = scorer(MEAN)
    assert "2 damaged of 3 lines" in capsys.readouterr().out and again.asked == 1
    assert torch.equal(again(MASKS, ["a", "b", "c"]), values)
    assert scorer(MEAN).asked == 3 and len(rows(first)) == 3


def test_one_number_a_class(scorer):
    lines = "    return [[np.nan, 0.5, 1.0]] if masks.any() else [[np.nan, np.nan, 0.25]]\n"
    first = scorer(lines)(MASKS[:2], ["a", "b"])
    assert np.array_equal(first, [[np.nan, np.nan, 0.25], [np.nan, 0.5, 1.0]], equal_nan=True)
    assert np.array_equal(scorer("    1 / 0\n")(MASKS[:2], ["a", "b"]), first, equal_nan=True)


BAD = {
    "return [float('nan')]": "got nan",
    "return [float('inf')]": "got inf",
    "return [1e300]": "got 1e+300; need numbers of at most 1e+09 in size",
    "return [[float('nan')] * 3]": "got nan",
    "return None": "got None",
    "return ['good']": "got 'good'",
    "return ['1.5']": "got '1.5'",
    "return [1j]": "got 1j",
    "return {'score': 1}": "got {'score': 1}",
    "return [[1, 2]]": "got 2 numbers",
    "return [[1], [1, 2]]": "got [[1], [1, 2]]",
    "1 / 0": "ZeroDivisionError: division by zero (",
    "sys.exit(3)": "left by sys.exit(3)",
    "yield from []": "got None",
    "return [1, 1, 1]": "got 3 numbers, and 1 before",
    "time.sleep(99)": "no answer in 0.1 s",
    "while True:\n            try: time.sleep(99)\n            except Exception: pass": "no answer in 0.1 s",
    "try: time.sleep(99)\n        except: pass\n        return [1]": "no answer in 0.1 s",
    "try: time.sleep(99)\n        except: 1 / 0": "no answer in 0.1 s",
    "while True:\n            try: time.sleep(99)\n            except: time.sleep(99)": "no answer in 0.1 s",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_answer_costs_that_call_alone(scorer, monkeypatch, bad):
    """The third mask's; then the scorer is mended."""
    monkeypatch.setattr(rewards_scorer, "AGAIN", 0.1)
    good = "yield from [masks[0].mean(), masks[1].mean()]" if "yield" in bad else "return masks.mean((1, 2))"
    test = "True" if "yield" in bad else "masks.mean() < 2"
    broken = scorer(f"    if {test}:\n        {good}\n    if True:\n        {bad}\n", timeout=0.1)
    said = refusal(broken, MASKS, ["a", "b", "c"])
    assert f"{broken.name}: {BAD[bad]}" in said and said.endswith("the same command goes on")
    assert "about c; 2 answers are kept" in said and [row["score"] for row in rows(broken)] == [[0.0], [1.0]]
    (broken.path.parent / "last.pt").touch()
    assert refusal(broken, MASKS, ["a", "b", "c"]).endswith("--resume goes on")
    assert scorer(MEAN)(MASKS, ["a", "b", "c"]).tolist() == [[0.0], [1.0], [2.0]]
    assert (broken.path.parent / "asked").read_text() == "c"


@pytest.mark.parametrize("again", [0, 1])
def test_a_signal_ends_a_scorer_that_hangs(scorer, monkeypatch, capsys, again):
    """A moment later; a second signal at once."""
    monkeypatch.setattr(rewards_scorer, "MOMENT", 60 if again else 0.1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    kill = "os.kill(os.getpid(), signal.SIGTERM)"
    lines = (
        f"    if masks.any():\n        {kill}\n        {kill if again else 'pass'}\n        time.sleep(99)\n"
    )
    hung = scorer(f"{lines}    return [0]\n", stop=dist.Stop())
    with pytest.raises(SystemExit) as left:
        hung(MASKS, ["a", "b", "c"])
    assert left.value.code == 143 and len(rows(hung)) == 1
    assert "stopped by signal 15 while" in capsys.readouterr().out
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_scorer_has_a_moment_in_all_after_a_signal(scorer, monkeypatch):
    """That came before it was asked, too."""
    monkeypatch.setattr(rewards_scorer, "MOMENT", 0.1)
    slow = scorer("    time.sleep(0.07)\n    return [0]\n", stop=SimpleNamespace(signal=signal.SIGTERM))
    with pytest.raises(SystemExit):
        slow(MASKS, ["a", "b", "c"])
    assert len(rows(slow)) <= 1


def test_a_scorer_that_answers_in_time_is_not_hurried(scorer):
    """By a signal: what the step needs is answered, and the script saves and stops by itself."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop = dist.Stop()
    quick = scorer("    os.kill(os.getpid(), signal.SIGTERM) if not masks.any() else 0\n" + MEAN, stop=stop)
    assert quick(MASKS, ["a", "b", "c"]).tolist() == [[0.0], [1.0], [2.0]] and stop.signal == signal.SIGTERM
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_edited_code_is_noticed(scorer):
    first = scorer(MEAN)
    first(MASKS[:1], ["a"])
    scorer(MEAN).refuse_other_code()
    edited = scorer(f"    masks = masks / 2\n{MEAN}")
    said = refusal(edited.refuse_other_code)
    assert "restore the file, or name another --out; --same-scorer" in said
    edited(MASKS[1:2], ["a"])  # --same-scorer
    scorer(f"    masks = masks / 2\n{MEAN}").refuse_other_code()
    assert "must not be mixed" in refusal(scorer(MEAN).refuse_other_code)
    old = [{key: row[key] for key in ("key", "score")} for row in rows(first)]
    first.path.write_text("".join(json.dumps(row) + "\n" for row in old))  # from before code was noted
    scorer(MEAN).refuse_other_code()


def test_a_full_disk_is_one_line_and_what_is_there_stays_whole(scorer):
    full = scorer(MEAN)
    full(MASKS[:1], ["a"])
    before, limits = full.path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
    try:
        said = refusal(full, MASKS, ["a", "b", "c"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "scores.jsonl: cannot be written" in said and full.path.read_bytes() == before
    assert full(MASKS, ["a", "b", "c"]).tolist() == [[0.0], [1.0], [2.0]]


def test_scores_add_up(tmp_path):
    (tmp_path / "mine.py").write_text("def score(masks, photos):\n    return [len(p) for p in photos]\n")
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[1, 2:6, 2:6] = 1
    both = [*judge([f"{tmp_path}/mine.py:score=2", "anatomy"], NAMES)(masks, ["a", "bcd"])]
    assert both[0].tolist() == [2] and both[1][0] > 6


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
        train, val = (batches.load(faces, split, 16) for split in ("unlabelled", "val"))
        assert len(train) == 3 and len(val) == 1
        assert (train[[0, 1, 2]]["semantic"] == IGNORE).all()
        assert sorted(pathlib.Path(p).stem for p in train.paths + val.paths) == list("abcd")
