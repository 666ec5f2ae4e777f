"""Several processes: one that ends takes the others with it, and a restart meets those of this start only."""

import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import TINY, assert_same_run, torchrun
from torch.distributed import TCPStore

STEPS = ["--steps", 8, "--eval-every", 2]


@pytest.fixture
def start_ranks(start, tmp_path):
    """start_ranks(attempt, *flags, more=flags of rank 1): two processes as torchrun starts them, with its
    store, which outlives a restart. late: seconds by which rank 1 starts after rank 0."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": "2"}
    place |= {"GROUP_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def start_ranks(attempt, *flags, more=(), late=0):
        ranks = []
        for rank in "01":
            at = {"RANK": rank, "LOCAL_RANK": rank, "TORCHELASTIC_RESTART_COUNT": str(attempt), **place}
            own = [*flags, *more] if rank == "1" else flags
            said = tmp_path / f"said {attempt} {rank}"
            ranks.append(start("train_finetune.py", *own, stderr=said, **at))
            time.sleep(late)
        return ranks

    yield start_ranks


def wait_for(path, *processes):
    while not path.is_file():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)


# ---- R15, R16


def test_a_killed_process_ends_the_other_and_a_restart_is_the_run_never_killed(
    start_ranks, folder, times, tmp_path
):
    """As torchrun does it, but for its start, which takes long; the next test has torchrun itself."""
    times(1, 1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    flags = ["--data", folder, *STEPS, *TINY]
    assert [rank.wait() for rank in start_ranks("whole", *flags, "--out", whole)] == [0, 0]
    ranks = start_ranks(0, *flags, "--out", broken)
    wait_for(broken / "last.pt", *ranks)
    os.kill(ranks[1].pid, signal.SIGKILL)
    assert ranks[1].wait() == -9 and ranks[0].wait() == 2
    said = (tmp_path / "said 0 0").read_text().splitlines()
    assert "another process of this run" in said[-1] and "Traceback" not in said[0]
    ranks = start_ranks(1, "--out", broken, "--resume", late=2)  # rank 0 could read where the dead one was
    assert ranks[0].wait() == 0, (tmp_path / "said 1 0").read_text()
    assert ranks[1].wait() == 0
    assert_same_run(whole / "last.pt", broken / "last.pt")


def test_a_process_that_raises_ends_the_other(start_ranks, folder, times, tmp_path):
    times(1, 1)
    flags = ["--data", folder, *STEPS, *TINY, "--out", tmp_path / "run"]
    ranks = start_ranks(0, *flags, more=["--data", "nowhere"])
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert (tmp_path / "said 0 1").read_text() == "error: nowhere: no such folder\n"
    assert "another process of this run" in (tmp_path / "said 0 0").read_text()


def test_a_worker_of_torchrun_is_killed(environment, folder, times, record_property, tmp_path):
    """It starts all of them again, and they go on."""
    n = times(0, 8)
    moments = random.Random(0)
    flags = ["--data", folder, "--steps", 60, "--eval-every", 3, *TINY]
    whole = tmp_path / "whole"
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(torchrun(2, "train_finetune.py", *flags, "--out", whole), check=True, timeout=300, **quiet)
    ended = []
    for i in range(n):
        out = tmp_path / f"broken {i}"
        shutil.copytree(whole, out)
        shutil.copy(tmp_path / "whole" / "last.pt", out / "last.pt")
        command = torchrun(2, "train_finetune.py", *flags, "--out", out, "--resume")
        command.insert(command.index("--standalone"), "--max-restarts=2")
        (out / "last.pt").unlink()
        process = subprocess.Popen(command, **quiet)
        wait_for(out / "last.pt")
        time.sleep(moments.uniform(0, 0.5))
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        since = time.time()
        os.kill(int(moments.choice(workers)), signal.SIGKILL)
        ended.append((process.wait(timeout=300), time.time() - since))
        assert_same_run(whole / "last.pt", out / "last.pt")
    record_property("passed", sum(status == 0 for status, _ in ended))
    record_property(
        "figure", f"weights the same; restarted and done after {max(s for _, s in ended):.0f} s at most"
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
    done = call("train_finetune.py", "--out", out, "--resume", status=2)
    assert str(first.pid) in done.stderr and done.stderr.count("\n") == 1
    os.kill(first.pid, signal.SIGKILL)
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
