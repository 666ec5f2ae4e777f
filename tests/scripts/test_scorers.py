"""train_scores.py and train_reward.py with functions that fail: nothing that was answered is lost."""

import json
import os
import signal
import time

import pytest
from conftest import assert_same_run

import train_reward
import train_scores

FLAGS = ["--estimator", "rloo", "--samples", 2, "--batch-size", 2, "--limit", 4, "--device", "cpu"]
FLAGS += ["--score-budget", 5 * 4 + 3 * 2 * 2]  # five validations by four photos, and three steps
SCORER = """import pathlib, time
HERE = pathlib.Path(__file__).parent
def score(masks, photos):
    hang = HERE / "hang"
    with open(HERE / "asked", "a") as file:
        file.write("a line for each\\n")
    if hang.exists() and len((HERE / "asked").read_text().splitlines()) == int(hang.read_text()):
        hang.unlink()
        time.sleep(200)
    return [float((masks == 1).mean())]
"""


@pytest.fixture(scope="module")
def flags(folder, finetuned):
    return ["--init", finetuned / "best.pt", "--unlabelled", folder, *FLAGS]


def asked(scorer):
    path = scorer.with_name("asked")
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_a_run_stopped_while_its_scorer_hangs_is_the_run_never_stopped(start, call, flags, tmp_path):
    """Once in the first validation, when there is no last.pt, once in a step; each answer was asked for once,
    but for the two that never came."""
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(SCORER)
    straight, stopped = (tmp_path / name / "mine.py" for name in ("straight", "stopped"))
    runs = [tmp_path / name / "run" for name in ("straight", "stopped")]
    never_stopped = start("train_scores.py", *flags, "--reward", f"{straight}:score", "--out", runs[0])
    goes_on = {3: "the same command", 12: "--resume"}
    more = []
    for hang, how in goes_on.items():
        stopped.with_name("hang").write_text(str(hang))
        said, out = tmp_path / f"said{hang}", ["--reward", f"{stopped}:score", "--out", runs[1]]
        process, until = start("train_scores.py", *flags, *out, *more, stdout=said), time.time() + 120
        while stopped.with_name("hang").exists():
            assert process.poll() is None and time.time() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        last = said.read_text().splitlines()[-1]
        assert last.startswith("stopped by signal 15 while") and last.endswith(f"{how} goes on")
        more = ["--resume"] if (runs[1] / "last.pt").is_file() else []
    call("train_scores.py", *out, "--resume")
    assert never_stopped.wait() == 0
    assert asked(stopped) == asked(straight) + len(goes_on)
    scores = [[json.loads(line)["score"] for line in open(run / "scores.jsonl")] for run in runs]
    assert scores[0] == scores[1] and len(scores[0]) == asked(straight)
    assert_same_run(*(run / "last.pt" for run in runs))


def test_what_fails_is_named_in_a_line(complaint, folder, finetuned, flags, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def boom(a, b): raise RuntimeError('server down')\ndef good(a, b): return [1]\n")
    init = ["--init", finetuned / "best.pt", "--estimator", "block", "--steps", 2, "--device", "cpu"]
    said = complaint(train_reward, *init, "--reward", f"{mine}:boom", "--out", tmp_path / "reward")
    assert said == f"error: reward {mine}:boom: RuntimeError: server down ({mine}:1)\n"
    out = ["--out", tmp_path / "scores"]
    said = complaint(train_scores, *flags, "--reward", f"{mine}:boom", *out)
    assert f"reward {mine}:boom: RuntimeError: server down ({mine}:1), about " in said
    assert said.endswith(f"0 answers are kept in {out[1]}/scores.jsonl; the same command goes on\n")
    said = complaint(train_scores, *flags, "--reward", "f1=1", *out)
    assert said == "error: reward f1 needs labels; here: anatomy, or FILE.py:FUNCTION\n"
    with open(out[1] / "scores.jsonl", "w") as file:
        file.write(json.dumps({"key": "x", "score": [0.5], "code": "of another file"}) + "\n")
    said = complaint(train_scores, *flags, "--reward", f"{mine}:good", *out)
    assert "--same-scorer" in said and said.count("\n") == 1
    assert not (out[1] / "last.pt").exists()
