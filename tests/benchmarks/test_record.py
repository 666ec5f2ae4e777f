"""benchmarks/record.py: a run of it, and what it refuses."""

import json

from conftest import FASSEG, needs_fasseg

FLAGS = ["--draws", 1, "--seeds", 1, "--row", "first"]


@needs_fasseg
def test_a_run_is_written_down(call, tmp_path):
    out = tmp_path / "new/record.jsonl"
    short = "--flags=--steps 1 --size 32 --augment none"
    said = call("benchmarks/record.py", FASSEG / "V3", *FLAGS, short, "--out", out).stdout
    (row,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert row["seconds"] == 0, "what it starts is here a fork of another process"
    assert 0 <= row["f1"] < 0.5 and not row["tune"]
    assert "1 runs" in said and "lower 95 % bound -inf" in said


@needs_fasseg
def test_a_command_that_fails_is_named(call, tmp_path):
    flags = [FASSEG / "V3", *FLAGS, "--flags=--stepz 1", "--out", tmp_path / "record.jsonl"]
    said = call("benchmarks/record.py", *flags, status=2).stderr
    assert "did you mean --steps" in said and "--stepz 1: ended with status 2" in said


def test_other_data_is_refused(call, folder, tmp_path):
    said = call("benchmarks/record.py", folder, *FLAGS, "--out", tmp_path / "record.jsonl", status=2).stderr
    assert f"{folder}: holds " in said and said.count("\n") == 1
