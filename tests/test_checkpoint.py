"""Checkpoints are whole or refused; randomness is a function; heads are carried over by name."""

import argparse
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from scipy import stats

from models import build_model, carry_over
from utils import checkpoint, rng
from utils.errors import UserError

REPO = Path(__file__).parents[1]
STATE = {"script": "train_finetune.py", "step": 3, "args": {"lr": 0.1, "data": "faces"}}


def written(tmp_path, **more):
    path = tmp_path / "last.pt"
    checkpoint.save(path, **STATE, model={"w": torch.arange(4000.0)}, **more)
    return path


def refusal(path, *args):
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, *args)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- what is written can be read


def test_round_trip(tmp_path):
    path = written(tmp_path, best={"mean_f1": 0.5}, ema=None)
    plain = torch.load(path, weights_only=True)
    state = checkpoint.load(path, "train_finetune.py")
    assert state.keys() == plain.keys() == {"format", *STATE, "model", "best", "ema"}
    assert {k: state[k] for k in STATE} == STATE and state["best"] == {"mean_f1": 0.5}
    assert torch.equal(state["model"]["w"], torch.arange(4000.0))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert "train_finetune.py" in refusal(path, "train_reward.py")


# ---- what is not whole, or not ours, is refused


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_missing(tmp_path):
    assert "no such checkpoint" in refusal(tmp_path / "none.pt")
    assert "no such checkpoint" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_part_of_a_file(tmp_path, share):
    path = written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "not a whole checkpoint" in refusal(path)


def test_one_flipped_byte_of_a_tensor(tmp_path):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(2000.0, 2010.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["step"] == 3, "torch notices: no need of ours"
    assert "damaged" in refusal(path)


def test_a_flipped_byte_anywhere(tmp_path):
    """Refused, or without effect; never another exception."""
    path = written(tmp_path)
    expected, content = str(checkpoint.load(path)), path.read_bytes()
    refused = 0
    for i in range(0, len(content), 41):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x81]) + content[i + 1 :])
        try:
            assert str(checkpoint.load(path)) == expected, i
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 0.8 * len(range(0, len(content), 41))


@pytest.mark.parametrize("wrapped", ["by torch", "by torch before 1.6", "by pickle"])
def test_a_pickled_object_is_not_run(tmp_path, wrapped):
    path, trap = tmp_path / "evil.pt", tmp_path / "trap"
    state = {"format": checkpoint.FORMAT, **STATE, "model": Canary(trap)}
    if wrapped == "by pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=wrapped == "by torch")
    refusal(path)
    assert not trap.exists()
    torch.load(path, weights_only=False) if wrapped == "by torch" else None
    assert trap.exists() == (wrapped == "by torch"), "the trap does not work: no test"


@pytest.mark.parametrize("foreign", [{"model": {}}, {"format": 99}, [1, 2], torch.zeros(3)])
def test_another_programs_file(tmp_path, foreign):
    path = tmp_path / "other.pt"
    torch.save(foreign, path)
    assert "not a checkpoint of these scripts" in refusal(path)


def test_another_zip(tmp_path):
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refusal(path)


# ---- a write that fails


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, model=lambda: 0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


FULL_DISK = """
import resource, signal, sys, torch
from utils import checkpoint
from utils.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(sys.argv[1], model=torch.zeros(100_000))
except UserError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_earlier_file(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert str(path) in result.stdout and "cannot be written" in result.stdout, result.stderr
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "none" / "last.pt", **STATE)


# ---- flags


def test_inherit():
    args = argparse.Namespace(data=None, size=64, model=None, lr=None)
    init = {"args": {"data": "faces", "size": 128, "model": "unet"}}
    filled = checkpoint.inherit(args, init, data="synthetic", size=256, model="fpn")
    assert vars(filled) == {"data": "faces", "size": 64, "model": "unet", "lr": None}
    filled = checkpoint.inherit(args, None, data="synthetic", size=256, model="fpn")
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
        return vars(checkpoint.resume_flags(parser, saved, line.split()))

    free = {"out": "runs/b", "device": "cpu"}
    assert resume("--out runs/b --device cpu") == saved | free
    assert resume("--lr 0.3 --data faces --out runs/b --device cpu") == saved | free
    parser.add_argument("--ids")  # a flag younger than the run
    assert resume("--out runs/b --device cpu") == saved | free | {"ids": None}
    for line, flag in (
        ("--ids a.json", "--ids"),
        ("--lr 0.2", "--lr"),
        ("--batch-size 4", "--batch-size"),
        ("--data x", "x"),
        ("--lr 0.1", "--lr"),
    ):
        with pytest.raises(UserError, match=flag) as caught:
            resume(line)
        assert "--resume" in str(caught.value)


# ---- heads


@pytest.mark.parametrize("name", ["unet", "unet_gn"])
def test_carry_over_by_class_name(name):
    old, new = ["background", "skin", "hair", "nose"], ["background", "hat", "hair", "skin"]
    torch.manual_seed(0)
    trained, model = build_model(name, 4).eval(), build_model(name, 4).eval()
    head = model.head.weight.detach().clone()
    assert carry_over(model, name, trained.state_dict(), old, new) == ["hat"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before, after = trained(images)["semantic"], model(images)["semantic"]
    for k in ("background", "skin", "hair"):
        assert torch.equal(before[:, old.index(k)], after[:, new.index(k)]), k
    assert torch.equal(model.head.weight[4:8], head[4:8]), "the new class begins at random"
    assert not torch.equal(model.head.weight[:4], head[:4])


def test_carry_over_to_more_and_to_the_same_classes():
    old, new = ["background", "skin"], ["background", "hair", "skin", "hat"]
    trained, model = build_model("unet", 2).eval(), build_model("unet", 4).eval()
    assert carry_over(model, "unet", trained.state_dict(), old, new) == ["hair", "hat"]
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before, after = trained(images)["semantic"], model(images)["semantic"]
    torch.testing.assert_close(after[:, [0, 2]], before)
    twin = build_model("unet", 2)
    assert carry_over(twin, "unet", trained.state_dict(), old, old) == []
    for key, value in trained.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value), key


# ---- randomness


def test_uniform_depends_on_seed_position_and_stream_alone():
    positions = torch.tensor([5, 0, 7, 2**33 + 7, 123456789])
    whole = rng.uniform(1, positions, 6, stream=2)
    assert whole.shape == (5, 6) and whole.dtype == torch.float32
    for rows in (slice(0, 2), slice(2, 5), [4], [3, 0]):
        assert torch.equal(rng.uniform(1, positions[rows], 6, stream=2), whole[rows])
    assert torch.equal(rng.uniform(1, positions, 3, stream=2), whole[:, :3])
    assert len(whole.unique()) == whole.numel()
    for other in (rng.uniform(2, positions, 6, 2), rng.uniform(1, positions, 6, 3)):
        assert (other != whole).all()


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_is_uniform_and_uncorrelated(seed):
    n = 20000
    u = rng.uniform(seed, torch.arange(n), 4, stream=1)
    assert 0 <= u.min() and u.max() < 1
    for lane in u.T:
        assert stats.kstest(lane.numpy(), "uniform").pvalue > 1e-4
    limit = 4.5 / n**0.5  # 4.5 standard errors of a correlation
    neighbours = torch.cat([u[:-1], u[1:]], 1)  # lanes of a position and of the next
    streams = torch.cat([u, rng.uniform(seed, torch.arange(n), 4, 2)], 1)
    seeds = torch.cat([u, rng.uniform(seed + 1, torch.arange(n), 4, 1)], 1)
    for columns in (neighbours, streams, seeds):
        assert (torch.corrcoef(columns.T) - torch.eye(8)).abs().max() < limit
    for k in range(1, 9):  # one position's numbers over many lanes
        lanes = rng.uniform(seed, torch.tensor([k]), n)[0]
        assert stats.kstest(lanes.numpy(), "uniform").pvalue > 1e-4


def test_normal_is_normal():
    draws = rng.normal(0, torch.arange(5000), 4)
    assert draws.shape == (5000, 4) and draws.isfinite().all()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-4
    assert torch.equal(rng.normal(0, torch.arange(10, 20), 4), draws[10:20])


def test_order_is_a_permutation_for_each_epoch():
    orders = [rng.order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert torch.equal(rng.order(1, 2, 50), orders[-1])
