"""Files are whole or not there; a folder has one writer."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from utils import files
from utils.errors import UserError
from utils.log import RunLog

HOLD = "import sys; from utils import files; files.lock(sys.argv[1]); print('held', flush=True); input()"


def holder(folder):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, "first")
    with pytest.raises(KeyError), files.whole(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "first" and [p.name for p in tmp_path.iterdir()] == ["file"]
    with pytest.raises(UserError, match="cannot be written"):
        files.write_whole(tmp_path / "none" / "file", "")


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "new" / "run"
    process = holder(folder)
    with pytest.raises(UserError, match=rf"process {process.pid} on .* is writing there"):
        files.lock(folder)
    process.kill()
    process.wait()
    files.lock(folder)  # however it ended, the folder is free
    files.release()
    assert folder.exists(), "it was there before"


def test_what_was_made_for_nothing_is_taken_back(tmp_path):
    for name in ("empty", "used"):
        files.lock(tmp_path / name)
    (tmp_path / "used" / "best.pt").touch()
    files.release()
    assert [p.name for p in tmp_path.iterdir()] == ["used"]


def test_a_lock_that_was_just_taken_back(tmp_path, monkeypatch):
    """Another process ends, and removes its folder, between our opening of the lock and our hold of it."""
    real, first = files.fcntl.lockf, []

    def lockf(file, how):
        if not first:
            first.append(file)
            (tmp_path / "run/.lock").unlink()
            (tmp_path / "run").rmdir()
        return real(file, how)

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    files.lock(tmp_path / "run")
    assert (tmp_path / "run/.lock").is_file() and files.held[-1][1] is not first[0]
    files.release()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no folder that can be written into"):
        files.lock(tmp_path / "file" / "run")


def test_a_log_goes_on_after_damage(tmp_path, capsys):
    log = RunLog(tmp_path, {"lr": 0.1})
    for step in (10, 20, 30):
        log.scalars(step, **{"train/loss": 1 / step})
    log.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_text().splitlines()
    path.write_bytes("\n".join([whole[0], "\0\0\0", "[1]", *whole[1:], '{"step": 4']).encode() + b"\xff")
    RunLog(tmp_path, {}, resumed=20).close()
    assert path.read_text().splitlines() == whole[:2]
    assert "3 damaged of 6 lines dropped" in capsys.readouterr().out
    assert '"lr": 0.1' in (tmp_path / "args.json").read_text(), "a resumed run keeps its flags"
    RunLog(tmp_path, {}, resumed=0).close()
    assert path.read_text() == "" and os.listdir(tmp_path).count("args.json") == 1
