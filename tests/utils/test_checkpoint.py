"""Checkpoints are whole or refused."""

import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from utils import checkpoint
from utils.errors import UserError

ARGS = {"data": "faces", "model": "unet", "size": 32, "part_order": "canonical", "val_fraction": 0.15}
DATA = {"classes": ["background", "skin"], "colors": [[0, 0, 0], [255, 0, 0]], "flip_pairs": []}
KNOWN = {"target": "class", "classes": ["ant", "bee"], "domains": []}  # what a classifier knows
HOW = {"data": "images", "model": "cnn", "size": 32, "val_fraction": 0.15, "head": "mlp", "dropout": 0.5}
RUN = {"optimizer": {"state": {}}, "scaler": {}, "best": {"step": 3}}  # what a run goes on from
STATE = {"script": "train_finetune.py", "step": 3, "args": ARGS, "data": DATA}


def written(tmp_path, **more):
    path = tmp_path / "last.pt"
    checkpoint.save(path, **STATE, model={"w": torch.arange(4000.0)}, **more)
    return path


def classifier(path, **more):
    state = {"script": "train_classify.py", "step": 3, "args": HOW, "data": KNOWN}
    checkpoint.save(path, **state | {"model": {"w": torch.zeros(2)}} | more)
    return path


def refusal(path, *args, **more):
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, *args, **more)
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- what is written can be read


def test_round_trip(tmp_path):
    path = written(tmp_path, **RUN, ema=None)
    plain = torch.load(path, weights_only=True)
    state = checkpoint.load(path, "train_finetune.py")
    assert state.keys() == plain.keys() == {"format", *STATE, *RUN, "model", "ema"}
    assert {k: state[k] for k in STATE} == STATE and state["best"] == {"step": 3}
    assert torch.equal(state["model"]["w"], torch.arange(4000.0))
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert "train_finetune.py" in refusal(path, "train_reward.py")


def test_the_model_of_a_run_with_an_average_is_the_average(tmp_path):
    """... which was validated; a run that goes on has both."""
    average = {"w": torch.zeros(4000)}
    path = written(tmp_path, **RUN, ema=average)
    assert torch.equal(checkpoint.load(path)["model"]["w"], average["w"])
    state = checkpoint.load(path, "train_finetune.py")
    assert torch.equal(state["model"]["w"], torch.arange(4000.0)) and torch.equal(
        state["ema"]["w"], average["w"]
    )


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


# ---- what scripts rely on is there


FAULTS = {
    "step is missing": {"step": None},
    "args is no dict": {"args": [1]},
    "its flags lack size": {"args": {**ARGS, "size": "32"}},
    "it names no classes": {"data": {**DATA, "classes": [], "colors": []}},
    "do not have a name and a colour each": {"data": {**DATA, "colors": [[0, 0, 0]]}},
    "it has no flip_pairs of its classes": {"data": {**DATA, "flip_pairs": [[0, 2]]}},
    "its model is no dict of tensors": {"model": {"w": 1.0}},
    "w of the model holds values that are not finite": {"model": {"w": torch.tensor([1.0, torch.inf])}},
    "but no model": {"model": None},
}


NOBODY = {"script": "x.py", "data": {}, "parents": [], "ancestors": {}, "seen": torch.zeros(0, 8).byte()}
FAULTS |= {
    "its lineage is no list of ancestors": {"lineage": {**NOBODY, "parents": None}},
    "its lineage does not say enough": {"lineage": {**NOBODY, "ancestors": {"ab": {"parents": []}}}},
    "its lineage does not say which photos": {"lineage": {**NOBODY, "seen": torch.zeros(8).byte()}},
    "which of its classes are things": {"data": {**DATA, "target": "panoptic"}},
    "it does not say which": {"data": {**DATA, "things": {"face": [1, 2]}}},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_checkpoint_lacks_is_named(tmp_path, fault):
    state = {"format": checkpoint.FORMAT, **STATE, "model": {"w": torch.zeros(2)}, **FAULTS[fault]}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "best.pt")
    assert fault in refusal(tmp_path / "best.pt")


CLASSIFIER_FAULTS = {
    "its flags lack head": {"args": {k: v for k, v in HOW.items() if k != "head"}},
    "its flags lack dropout": {"args": {**HOW, "dropout": "a half"}},
    "it names no classes": {"data": {**KNOWN, "classes": None}},
    "its 2 classes do not have a name each": {"data": {**KNOWN, "classes": ["ant", "ant"]}},
    "no list of its domains": {"data": {"target": "class", "classes": ["ant", "bee"]}},
    "its target is depth, none of semantic, class, panoptic": {"data": {**KNOWN, "target": "depth"}},
}


@pytest.mark.parametrize("fault", CLASSIFIER_FAULTS)
def test_what_a_classifier_lacks_is_named(tmp_path, fault):
    path = classifier(tmp_path / "best.pt", **CLASSIFIER_FAULTS[fault])
    assert fault in refusal(path, target="class")


def test_a_checkpoint_of_another_target_is_refused(tmp_path):
    """... unless any is taken, as by evaluate.py and by a run that goes on."""
    parser, images = written(tmp_path), classifier(tmp_path / "best.pt", **RUN)
    assert "holds a classifier of images, and a face parser is needed" in refusal(images)
    assert "holds a face parser, and a classifier of images is needed" in refusal(parser, target="class")
    assert checkpoint.load(images, target="class")["data"] == KNOWN
    assert checkpoint.target_of(checkpoint.load(parser, target=None)) == "semantic"
    assert checkpoint.load(images, "train_classify.py", target=None)["step"] == 3
    assert "was written by train_classify.py" in refusal(images, "train_finetune.py", target=None)


def test_scenes_are_for_scripts_that_know_them(tmp_path):
    """... which name several targets; others say in a line who knows them."""
    path = tmp_path / "best.pt"
    data = {**DATA, "target": "panoptic", "things": {"face": [1]}, "scenes": 3}
    checkpoint.save(path, **STATE | {"data": data, "model": {"w": torch.zeros(2)}})
    assert checkpoint.load(path, target=("semantic", "panoptic"))["data"] == data
    said = refusal(path)
    assert "holds a parser of scenes or instances, and a face parser is needed; train_finetune.py" in said
    assert "evaluate.py and predict.py use it" in said and "\n" not in said
    said = refusal(path, target=("semantic", "class"))
    assert "a face parser or a classifier of images is needed" in said
    assert "a face parser or a parser of scenes or instances is needed" in refusal(
        classifier(tmp_path / "class.pt"), target=("semantic", "panoptic")
    )


def test_what_a_run_goes_on_from_is_there(tmp_path):
    assert "optimizer is missing" in refusal(written(tmp_path), "train_finetune.py")
    broken = {"state": {0: {"exp_avg": torch.tensor([torch.nan])}}}
    path = written(tmp_path, **RUN | {"optimizer": broken})
    assert checkpoint.load(path)["step"] == 3, "it may be started from"
    assert "state.0.exp_avg of the optimizer holds values" in refusal(path, "train_finetune.py")


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    state = {**STATE, "model": model.state_dict(), "ema": None}
    checkpoint.save_run(tmp_path, state, True, model)
    kept = (tmp_path / "last.pt").read_bytes(), (tmp_path / "best.pt").read_bytes()
    average = {"weight": torch.tensor([torch.nan])}
    for broken in ({"ema": average}, {"model": {**state["model"], "bias": torch.tensor([torch.inf])}}):
        with pytest.raises(UserError, match="not finite"):
            checkpoint.save_run(tmp_path, state | broken, True, model)
    assert kept == ((tmp_path / "last.pt").read_bytes(), (tmp_path / "best.pt").read_bytes())


# ---- a write that fails


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, model=lambda: 0)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


FULL_DISK = f"""
import resource, signal, sys, torch
sys.path.insert(0, {str(ROOT)!r})
from utils import checkpoint
from utils.errors import UserError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    checkpoint.save(sys.argv[1], model=torch.zeros(100_000))
except UserError as error:
    print(error)
"""


def test_a_full_disk_keeps_the_earlier_file(call, tmp_path, tmp_path_factory):
    script = tmp_path_factory.mktemp("script") / "save.py"
    script.write_text(FULL_DISK)
    path = written(tmp_path)
    before = path.read_bytes()
    said = call(script, path).stdout
    assert str(path) in said and "cannot be written" in said
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "none" / "last.pt", **STATE)
