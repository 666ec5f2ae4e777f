"""The data engine's decisions, on scores and predictions that are made up so that the right one is known."""

import json
import os
import pathlib
import signal
import sys
import time

import numpy as np
import pytest
import torch

from datasets.operations import UNITS
from datasets.policies import POLICIES
from utils.engine import decisions as engine
from utils.engine import report, runs

PEOPLE = {f"p{i}": [f"p{i}/{j}" for j in range(2)] for i in range(8)}
PHOTOS = [photo for ids in PEOPLE.values() for photo in ids]


def scores(rng, effect):
    """F1 of every photo under an arm that is worth `effect`; what a photo is like is common to all arms."""
    return {photo: 0.7 + effect + 0.03 * rng.normal() for photo in PHOTOS}


def search(effects, seed, safe="none"):
    """Three rungs, each held to more of the people; in the last one arms are held to the safe one."""
    rng, alive = np.random.default_rng(seed), list(effects)
    found = {name: scores(rng, effect) for name, effect in effects.items()}
    for seen in (6, 12, 16):
        some = {name: {photo: found[name][photo] for photo in PHOTOS[:seen]} for name in alive}
        over = some["none" if seen < 16 else safe]
        gains = {name: engine.gain(some[name], over, PEOPLE) for name in alive}
        alive = engine.survivors(gains, safe) if seen < 16 else [engine.winner(gains, safe)]
    return alive[0]


def test_a_harmful_arm_is_never_chosen_and_a_good_one_mostly():
    """E1, on simulated scores."""
    effects = {"none": 0, "hue": -0.1, "geometric": 0.05, "half": 0.06, "full": 0.01, "cutmix": -0.02}
    chosen = [search(effects, seed) for seed in range(20)]
    assert "hue" not in chosen and sum(c in ("geometric", "half") for c in chosen) >= 18


def test_if_all_arms_harm_none_is_chosen():
    """E2, on simulated scores."""
    effects = {"none": 0} | {f"arm {i}": -0.02 * (i + 1) for i in range(8)}
    assert sum(search(effects, seed) == "none" for seed in range(20)) >= 18
    effects["safe"] = -0.05
    assert sum(search(effects, seed, "safe") == "none" for seed in range(20)) >= 18


def test_an_arm_takes_the_place_of_the_safe_one_only_if_it_beats_it():
    effects = {"none": 0, "safe": 0.1} | {f"arm {i}": 0.01 * i for i in range(6)}
    assert sum(search(effects, seed, "safe") == "safe" for seed in range(20)) >= 18
    effects["arm 5"] = 0.15
    assert sum(search(effects, seed, "safe") == "arm 5" for seed in range(20)) >= 18


def test_where_arms_are_alike_another_is_often_chosen_all_the_same():
    """What the report says of its own choice, of eight arms."""
    effects = dict.fromkeys(["none", "safe", *(f"arm {i}" for i in range(6))], 0)
    assert 0.3 < np.mean([search(effects, seed, "safe") != "safe" for seed in range(200)]) < 0.55


def test_gain_is_paired_and_counts_people():
    baseline = {photo: 0.1 * i for i, photo in enumerate(PHOTOS)}
    better = {photo: f1 + 0.05 for photo, f1 in baseline.items()}
    mean, error = engine.gain(better, baseline, PEOPLE)
    assert mean == pytest.approx(0.05) and error == pytest.approx(0)
    better["p0/0"] += 0.8  # one photo of one person in eight
    mean, error = engine.gain(better, baseline, PEOPLE)
    assert mean == pytest.approx(0.1) and error == pytest.approx(0.05)
    alone = {photo: better[photo] for photo in PEOPLE["p0"]}
    assert engine.gain(alone, baseline, PEOPLE) == pytest.approx((0.45, 0.45))
    assert engine.winner({"none": (0, 0), "a": (0.1, 0.11)}) == "none" == engine.winner({"none": (0, 0)})
    assert engine.winner({"none": (0, 0), "a": (0.1, 0.09), "b": (0.2, 0.195)}) == "a"


def test_a_rung_keeps_none_and_a_third():
    gains = {"none": (0.0, 0.0)} | {f"arm {i}": (-0.1 * i, 0.0) for i in range(1, 8)}
    assert engine.survivors(gains) == ["none", "arm 1", "arm 2", "arm 3"]
    assert engine.survivors({"none": (0, 0), "a": (1, 5), "b": (0.5, 0.1)}) == ["none", "b"]
    assert engine.survivors(gains, "arm 7") == ["none", "arm 7", "arm 1", "arm 2"]
    alone = {"none": (0, 0)} | {
        name: (g, g) for name, g in zip("abcd", (0.001, 0.3, 0.002, 0.2), strict=True)
    }
    assert engine.survivors(alone) == ["none", "b", "d"]  # one person was held out: by the gain itself


def test_a_policy_that_the_gate_did_not_limit_is_called_so():
    said = {}
    for verdict in ("PASS", "REJECT", "UNDERPOWERED", "not asked"):
        for gated in (True, False):
            policy = {"kind": "cutmix", "gate": {"verdict": f"{verdict}: ...", "gated": gated}}
            said[verdict, gated] = "did not limit `cutmix`" in report.beyond(policy)
    assert {key for key, limited in said.items() if limited} == {("PASS", False), ("REJECT", False)}


def test_the_report_says_what_is_done_to_every_photo():
    first = {"name": "rotate", "m_neg": 15.0, "m_pos": 20.0, "p": 0.5}
    for name in ("flip", "trivial"):
        policy = POLICIES[name]
        page = "\n".join(report._operations({**policy, "always": [first]}, UNITS))
        assert "First, 50% of photos get rotate, from -15 to 20 (degrees)." in page
        assert "First" not in "\n".join(report._operations(policy, UNITS))


def photo(truth, sure=0.97, classes=4):
    """Logits (1, K, 16, 16) of a network that is `sure` of `truth` (16, 16)."""
    probs = torch.full((classes, *truth.shape), (1 - sure) / (classes - 1))
    return probs.scatter_(0, truth[None], sure).log()[None]


def test_planted_wrong_masks_are_found():
    """Masks with two classes swapped, shifted, or of somebody else, among right ones with ragged borders."""
    rng, contradiction, wrong = np.random.default_rng(0), {}, set()
    for i in range(24):
        truth = torch.zeros(16, 16, dtype=torch.long)
        truth[4:12, 4:12], truth[6:8, 6:10], truth[10:12, 6:10] = 1, 2, 3
        logits = photo(truth)
        label = truth.clone()
        if i in (3, 11, 17):
            wrong.add(str(i))
            swapped = {
                3: lambda t: t + (t == 2).long() - (t == 3).long(),
                11: lambda t: t.roll(3, 0),
                17: torch.zeros_like,
            }
            label = swapped[i](label)
        else:  # right, but for a handful of pixels
            label.view(-1)[torch.from_numpy(rng.integers(0, 256, 3))] = 1
        found = engine.signals(logits, label[None].byte(), 0, torch.tensor([i]))
        contradiction[str(i)] = float(found["contradiction"])
    assert set(engine.suspicious(contradiction)) == wrong
    assert engine.suspicious(dict.fromkeys("abcd", 0.01)) == []


def test_a_reason_is_of_what_is_contradicted_confidently():
    """Of 16 x 16 pixels that the mask calls a, 2 rows are c for sure, and 12 perhaps b."""
    pred = torch.zeros(16, 16, dtype=torch.long)
    pred[:2], pred[2:14] = 2, 1
    logits = torch.where(pred == 1, photo(pred, 0.6, 3), photo(pred, 0.97, 3))
    label = torch.zeros(1, 16, 16, dtype=torch.uint8)
    where = engine.contradicted(logits, label)
    assert torch.equal(where[0], pred == 2)
    assert engine.main_confusion(label[0], pred, where[0], "abc") == "a in the mask, c to the network"
    label[0, 0] = 255  # not labelled
    assert engine.contradicted(logits, label).sum() == 16


def test_signals_tell_solved_from_undecided():
    truth = torch.zeros(16, 16, dtype=torch.long)
    truth[:, 8:], truth[:4] = 1, 2
    label = truth[None].byte()
    solved = engine.signals(photo(truth, 0.999, 3), label, 0, torch.tensor([0]))
    unsure = engine.signals(photo(truth, 0.5, 3), label, 0, torch.tensor([0]))
    assert solved["mean"] > 0.98 > 0.7 > unsure["mean"] and solved["spread"] < unsure["spread"]
    assert solved["contradiction"] == unsure["contradiction"] == 0
    again = engine.signals(photo(truth, 0.5, 3), label, 0, torch.tensor([0]))
    assert all(torch.equal(again[k], unsure[k]) for k in again)


def test_a_run_is_done_once_and_a_torn_line_is_done_again(tmp_path):
    """E7: real processes; the second call runs only what the first did not finish."""
    ledger = runs.Ledger(tmp_path / "arms.jsonl")
    jobs = [{"run": f"r/{i}", "script": "tests/utils/engine/echo_out.py", "flags": [i]} for i in range(3)]

    def finish(job, path):
        return {"said": (path / "said").read_text()}

    first = runs.run_all(jobs[:2], tmp_path / "runs", ledger, finish, at_once=2)
    assert [row["said"] for row in first] == ["0", "1"]
    with open(tmp_path / "arms.jsonl", "a") as file:
        file.write('{"run": "r/2", "sa')  # a kill in the middle of a line
    (tmp_path / "runs/r/0/said").write_text("never read again")
    ledger = runs.Ledger(tmp_path / "arms.jsonl")
    again = runs.run_all(jobs, tmp_path / "runs", ledger, finish)
    assert [row["said"] for row in again] == ["0", "1", "2"]
    assert len([json.loads(line) for line in open(tmp_path / "arms.jsonl")]) == 3
    bad = [{"run": "bad", "script": "tests/utils/engine/echo_out.py", "flags": ["fail"]}]
    with pytest.raises(runs.UserError, match="echo_out.py of .* ended with 1: it was asked to"):
        runs.run_all(bad, tmp_path / "runs", ledger, finish)
    fell = [
        {"run": "fell", "script": "tests/utils/engine/echo_out.py", "flags": ["collapse"]}
    ]  # reward tuning may
    assert runs.run_all(fell, tmp_path / "runs", ledger, finish)[0]["said"] == "collapse"


def test_damaged_rows_are_left_out(tmp_path, capsys):
    path = tmp_path / "arms.jsonl"
    path.write_bytes(b'{"run": "a", "f1": 1}\n{"run": "b", "f\xff\n[3]\n{"run": "c", "f1": 3}\n')
    ledger = runs.Ledger(path)
    assert list(ledger.rows) == ["a", "c"] and "2 damaged of 4 lines" in capsys.readouterr().out
    ledger.add({"run": "d"})
    assert list(runs.Ledger(path).rows) == ["a", "c", "d"]


def test_one_process_searches_in_a_folder(start, tmp_path):
    script = tmp_path / "hold.py"
    script.write_text(
        f"import pathlib, sys, time\nsys.path.insert(0, {str(pathlib.Path.cwd())!r})\n"
        "from utils.engine import runs\nruns.begin(pathlib.Path(sys.argv[1]), {}, [])\ntime.sleep(60)\n"
    )
    out = tmp_path / "out"
    process = start(script, out)
    until = time.time() + 60
    while not (out / "search.json").is_file():
        assert process.poll() is None and time.time() < until
        time.sleep(0.01)
    with pytest.raises(runs.UserError, match=f"--out .*: process {process.pid} on .* is writing there"):
        runs.begin(out, {}, [])
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    runs.begin(out, {}, [])


def ended(pid):
    """Whether a process is gone, or dead and only not waited for."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux ends them")
def test_runs_end_with_the_process_that_started_them(start, tmp_path):
    """Whatever ends it: real processes, which nobody forked, and real signals."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        folder = tmp_path / number.name
        said = {name: tmp_path / f"{number.name}.{name}" for name in ("stdout", "stderr")}
        script = pathlib.Path(__file__).with_name("two_runs.py")
        process, until = start(script, folder, SERVED_PYTHON=sys.executable, **said), time.time() + 60
        while len(pids := [p.read_text() for p in folder.glob("runs/r/*/pid")]) < 2 or not all(pids):
            assert process.poll() is None and time.time() < until
            time.sleep(0.01)
        os.kill(process.pid, number)
        killed = number == signal.SIGKILL
        assert process.wait() == (-number if killed else 128 + number)
        told = f"stopped by signal {number.value}; the same command goes on\n"
        assert said["stderr"].read_text() == ("" if killed else told)
        assert said["stdout"].read_text() == ("" if killed else "waiting\n")
        while not all(ended(int(pid)) for pid in pids):
            assert time.time() < until
            time.sleep(0.01)
