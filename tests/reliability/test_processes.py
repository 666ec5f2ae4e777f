"""Several processes: one that ends takes the others with it, and a restart meets those of this start only."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import TINY, assert_same_run, torchrun
from torch.distributed import TCPStore

STEPS = ["--steps", 6, "--eval-every", 2]
UNDER = Path(__file__).with_name("under.py")


@pytest.fixture
def start_ranks(start, tmp_path):
    """start_ranks(attempt, *flags, more=flags of rank 1): two processes as torchrun starts them, with its
    store, which outlives a restart. late: seconds by which rank 1 starts after rank 0. dies: the step before
    which rank 1 is killed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    place |= {"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}

    started = []

    def start_ranks(attempt, *flags, more=(), late=0, dies=None):
        ranks = []
        for rank in "01":
            at = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RESTART_COUNT": str(attempt), **place}
            job = ["train_finetune.py", *flags]
            if rank == "1":
                under = [UNDER, f"dies={dies}"] if dies else []
                job = [*under, *job, *more]
            said = tmp_path / f"said {attempt} {rank}"
            ranks.append(start(*job, stderr=said, **at))
            ranks[-1].said = said
            time.sleep(late if rank == "0" else 0)
        started.extend(ranks)
        return ranks

    yield start_ranks
    for rank in started:
        if rank.returncode is None and rank.poll() is None:
            os.kill(rank.pid, signal.SIGKILL)


def wait_for(path, *processes):
    while not path.is_file():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


def assert_end(ranks, *statuses):
    ended = tuple(rank.wait() for rank in ranks)
    assert ended == statuses, "\n".join(rank.said.read_text() for rank in ranks)


# ---- R15, R16


def test_a_killed_process_ends_the_other_and_a_restart_is_the_run_never_killed(
    start_ranks, folder, times, tmp_path
):
    """As torchrun does it, but for its start, which takes long; the next test has torchrun itself. Killed in
    the middle of a transfer, the other may wait for `dist.PATIENCE`: see docs/reliability.md."""
    times(1, 1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--data", folder, *STEPS, *TINY]
    assert_end(start_ranks("whole", *flags, "--out", whole), 0, 0)
    ranks = start_ranks(0, *flags, "--out", broken, dies=3)
    assert_end(ranks, 2, -signal.SIGKILL)
    said = ranks[0].said.read_text().splitlines()
    assert "another process of this run" in said[-1] and "Traceback" not in said[0]
    # late: rank 0 could read where the dead one was
    assert_end(start_ranks(1, "--out", broken, "--resume", late=2), 0, 0)
    assert_same_run(whole / "last.pt", broken / "last.pt")


def test_a_process_that_raises_ends_the_other(start_ranks, folder, times, tmp_path):
    times(1, 1)
    flags = ["--data", folder, *STEPS, *TINY, "--out", tmp_path / "run"]
    ranks = start_ranks(0, *flags, more=["--data", "nowhere"])
    assert_end(ranks, 2, 2)
    assert ranks[1].said.read_text() == "error: nowhere: no such folder\n"
    assert "another process of this run" in ranks[0].said.read_text()


@pytest.mark.parametrize("who", ["a worker is killed", "torchrun is told to stop"])
def test_under_torchrun(who, environment, folder, times, record_property, tmp_path):
    """A killed worker: torchrun starts all again. SIGTERM: all save and end; the same command goes on."""
    n = times(0, 8)
    moments = random.Random(0)
    flags = ["--data", folder, "--steps", 60, "--eval-every", 3, *TINY]
    whole, ended = tmp_path / "whole", []
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(torchrun(2, "train_finetune.py", *flags, "--out", whole), check=True, timeout=300, **quiet)
    for i in range(n):
        out = tmp_path / f"broken {i}"
        command = torchrun(2, "train_finetune.py", *flags, "--out", out, "--resume")
        command.insert(command.index("--standalone"), "--max-restarts=2")
        process = subprocess.Popen(command, **quiet)
        wait_for(out / "last.pt", process)
        time.sleep(moments.uniform(0, 0.5))
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        since = time.time()
        if who == "a worker is killed":
            os.kill(int(moments.choice(workers)), signal.SIGKILL)
            status = process.wait(timeout=300)
        else:
            process.terminate()
            assert process.wait(timeout=300) != 0
            since = time.time()
            status = subprocess.run(command, timeout=300, **quiet).returncode
        ended.append((status, time.time() - since))
        assert_same_run(whole / "last.pt", out / "last.pt")
    record_property("passed", sum(status == 0 for status, _ in ended))
    slowest = max(seconds for _, seconds in ended)
    record_property(
        "figure", f"{who}: weights the same; started again and done after {slowest:.0f} s at most"
    )
    assert all(status == 0 for status, _ in ended)


# ---- R22


def test_a_second_run_in_the_same_folder_is_refused(call, start, folder, times, tmp_path):
    times(1, 1)
    out = tmp_path / "run"
    flags = ["--data", folder, "--steps", 8, "--eval-every", 2, *TINY, "--out", out]
    first = start("train_finetune.py", *flags)
    wait_for(out / "last.pt", first)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        done = call("train_finetune.py", "--out", out, "--resume", status=2)
    finally:
        os.kill(first.pid, signal.SIGKILL)
    assert str(first.pid) in done.stderr and done.stderr.count("\n") == 1
    assert first.wait() == -9
    call("train_finetune.py", "--out", out, "--resume")  # a dead run locks nobody out


@pytest.mark.parametrize("where", ["/proc/run", "{file}", "{file}/run"])
def test_where_nothing_can_be_written(where, complaint, folder, times, tmp_path):
    import train_finetune

    times(1, 1)
    (tmp_path / "file").write_text("mine")
    out = where.format(file=tmp_path / "file")
    said = complaint(train_finetune, "--data", folder, "--steps", 1, *TINY, "--out", out)
    assert said.count("\n") == 1 and out in said and (tmp_path / "file").read_text() == "mine"
