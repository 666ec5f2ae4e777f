"""Scenes of several faces, from training to a mask of faces; and who refuses them."""

import json

import pytest
import torch
from conftest import logged, weights

import evaluate
import train_finetune
import train_reward
import train_student


@pytest.fixture(scope="module")
def trained(call, folder, tmp_path_factory):
    """A network that tells faces apart, trained on scenes of up to three: (its run folder, what it said)."""
    out = tmp_path_factory.mktemp("scenes") / "run"
    said = call(
        *("train_finetune.py", "--data", folder, "--scenes", 3, "--model", "panoptic_unet"),
        *("--size", 32, "--steps", 2, "--eval-every", 2, "--batch-size", 4, "--device", "cpu", "--out", out),
    )
    return out, said


def test_what_a_run_leaves(trained):
    out, said = trained
    state = weights(out / "best.pt")
    assert state["data"]["target"] == "panoptic" and state["args"]["scenes"] == 3
    assert state["data"]["things"] == {"face": list(range(1, len(state["data"]["classes"])))}
    assert state["data"]["aspects"] == [1.0, 1.0, 1.0], "scenes are square, whatever the photos are"
    assert state["args"]["loss"][-2:] == ["center=10", "offset=0.01"]
    training, validation = logged(out)[-2:]
    assert {"val/pq", "val/parts_f1", "val/mean_f1"} <= validation.keys()
    parts = [training[f"train/loss/{name}"] for name in ("ce", "dice", "center", "offset")]
    assert training["train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert (out / "val_faces.png").stat().st_size > 1000
    assert f"next:    python evaluate.py --init {out}/best.pt" in said.stdout and "invented" in said.stdout


def test_scored_on_scenes_of_its_own_people_or_on_photos(trained, call, tmp_path):
    out, _ = trained
    flags = ("--init", out / "best.pt", "--split", "val", "--device", "cpu")
    call("evaluate.py", *flags, "--json", tmp_path / "a.json")
    call("evaluate.py", *flags, "--scenes", 0, "--json", tmp_path / "b.json")
    scenes, photos = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert (
        scenes["n_images"] == 128 and scenes["scenes"] == 3 and "face" in scenes["panoptic"]["per_category"]
    )
    assert photos["n_images"] < 20 and not photos.get("scenes")
    assert logged(out)[-1]["val/mean_f1"] == pytest.approx(scenes["mean_f1"], abs=1e-6), "the same scenes"


def test_begins_from_a_parser_of_single_faces(finetuned, call, tmp_path):
    """Its encoder and its classes are carried over, the decoder of instances begins anew."""
    begun = weights(finetuned / "best.pt")["model"]
    call(
        *("train_finetune.py", "--init", finetuned / "best.pt", "--scenes", 2, "--model", "panoptic_unet_gn"),
        *(
            "--steps",
            1,
            "--lr",
            "1e-9",
            "--batch-size",
            2,
            "--val-fraction",
            0,
            "--device",
            "cpu",
            "--out",
            tmp_path / "run",
        ),
    )
    state = weights(tmp_path / "run/last.pt")["model"]
    weight = [key for key in begun if key.endswith(".weight")]
    assert all(torch.allclose(state[key], begun[key], atol=1e-6) for key in weight)
    assert any(key.startswith("instances.") for key in state)


def test_a_weight_weighs_in_both_decoders(trained, call, folder, tmp_path):
    """Without the weight of the offsets the encoder and the decoder of instances learn something else."""
    out, _ = trained
    flags = weights(out / "last.pt")["args"]
    call(
        *("train_finetune.py", "--data", folder, "--scenes", 3, "--model", "panoptic_unet"),
        *("--loss", *flags["loss"][:-1], "offset=0", "--size", 32, "--steps", 2, "--eval-every", 2),
        *("--batch-size", 4, "--device", "cpu", "--out", tmp_path / "run"),
    )
    a, b = (weights(run / "last.pt")["model"] for run in (out, tmp_path / "run"))
    moved = [key for key in a if not torch.equal(a[key], b[key])]
    assert any(key.startswith("instances.") for key in moved) and any("stages" in key for key in moved)


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (train_finetune, ["--data", "{folder}", "--model", "panoptic_unet"], "--scenes N makes scenes"),
        (train_finetune, ["--data", "{folder}", "--loss", "ce=1", "center=1"], "names from ce"),
        (
            train_finetune,
            ["--data", "{folder}", "--scenes", "2", "--model", "panoptic_unet", "--loss", "ce"],
            "each head needs a loss",
        ),
        (
            train_finetune,
            ["--data", "{folder}", "--scenes", "2", "--model", "panoptic_unet", "--loss", "center", "offset"],
            "each head needs a loss",
        ),
        (train_finetune, ["--data", "{folder}", "--scenes", "300"], "from 0 to 254"),
        (train_finetune, ["--init", "{best}", "--model", "unet"], "holds a panoptic_unet"),
        (train_reward, ["--init", "{best}"], "evaluate.py and predict.py use it"),
        (
            train_student,
            ["--teacher", "{best}", "--unlabelled", "{folder}"],
            "evaluate.py and predict.py use it",
        ),
        (evaluate, ["--init", "{best}", "--scenes", "2", "--split", "unlabelled"], "unlabelled"),
    ],
)
def test_mistakes(script, flags, words, trained, complaint, folder, tmp_path):
    places = {"folder": folder, "best": trained[0] / "best.pt"}
    out = ["--out", tmp_path / "out"] if script is not evaluate else []
    assert words in complaint(script, *(flag.format(**places) for flag in flags), *out)
