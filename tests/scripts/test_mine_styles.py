"""Mining styles: what it does to a batch, a run that is killed, targets, and a bank in fine-tuning."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, assert_same_run, lineage_of, logged, weights
from PIL import Image

import mine_styles
import train_finetune
from mine_styles import first_patches, mine
from models import build_model
from models.styles import ANY, digest, embed, features_after, restyle, style
from utils import checkpoint, lineage
from utils.files import sha256

PHRASES = ["a face at night", "a face in fog"]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Dark, of another size than those to train on."""
    path = tmp_path_factory.mktemp("night") / "night.png"
    pixels = torch.randint(0, 60, (50, 40, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(pixels.byte().numpy()).save(path)
    return path


@pytest.fixture(scope="module")
def source(finetuned, tmp_path_factory):
    """A clip_unet, as train_finetune.py would leave it with its encoder frozen."""
    state = weights(finetuned / "best.pt")
    torch.manual_seed(7)  # not what a run of any test draws for itself
    model = build_model("clip_unet", len(state["data"]["classes"]))
    path = tmp_path_factory.mktemp("source") / "best.pt"
    args = state["args"] | {"model": "clip_unet"}
    checkpoint.save(path, **state | {"args": args, "model": model.state_dict()})
    return path


def embedded(path, source, names=(None,), **change):
    """A file of `PHRASES`, each for every name."""
    model = build_model("clip_unet", len(weights(source)["data"]["classes"]))
    model.load_state_dict(weights(source)["model"])
    rows = [(phrase, name) for phrase in PHRASES for name in names]
    torch.manual_seed(1)
    made = {"phrases": [phrase for phrase, _ in rows], "classes": [name for _, name in rows], "clip": "tiny"}
    made["embeddings"] = torch.nn.functional.normalize(torch.randn(len(rows), 64))
    torch.save(made | {"tower": digest(model.tower_tensors()), **change}, path)
    return path


@pytest.fixture(scope="module")
def mined(call, source, photo, tmp_path_factory):
    out = tmp_path_factory.mktemp("mined") / "run"
    call("mine_styles.py", "--init", source, "--photo", photo, *FEW, "--out", out)
    return out


FEW = ["--images", 16, "--batch-size", 4, "--steps", 40, "--device", "cpu"]


# ---- a batch


@pytest.fixture(scope="module")
def case():
    """A network and features of six images, with targets that are 64 numbers."""
    torch.manual_seed(0)
    model = build_model("clip_unet", 3).eval().requires_grad_(False)
    features = features_after(model, torch.rand(6, 3, 32, 32), 1)
    targets = torch.randn(2, 64)[[0, 1, 0, 1, 0, 1]]

    def mine_rows(rows, **flags):
        flags = {"steps": 10, "lr": 0.5, "seed": 0, "text_noise": 0.0, "feature_noise": 0.0} | flags
        rows = torch.tensor(rows)
        embedding_of = lambda x: embed(model, x, 1)  # noqa: E731
        return mine(features[rows], targets[rows], rows, embedding_of, True, SimpleNamespace(**flags))

    return SimpleNamespace(model=model, features=features, targets=targets, mine=mine_rows)


def test_mining_comes_nearer_to_the_target(case):
    before = {key: value.clone() for key, value in case.model.state_dict().items()}
    mean, std, history = case.mine(range(6), steps=30)
    assert mean.shape == std.shape == (6, 24) and history.shape == (31, 6)
    assert (history[-1] > history[0] + 0.02).all()
    assert std.min() >= 0
    own_mean, _ = style(case.features)
    assert not torch.allclose(mean, own_mean.flatten(1), atol=1e-2)
    after = case.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in case.model.parameters())


@pytest.mark.parametrize("noise", [{}, {"text_noise": 0.5}, {"feature_noise": 0.2}])
def test_an_image_is_mined_by_itself(case, noise):
    together = case.mine(range(6), **noise)
    alone = [case.mine([i], **noise) for i in range(6)]
    for k, dim in enumerate((0, 0, 1)):
        torch.testing.assert_close(torch.cat([found[k] for found in alone], dim), together[k])
    if noise:
        assert not torch.allclose(case.mine(range(6))[0], together[0], atol=1e-3)
        assert not torch.allclose(case.mine(range(6), seed=1, **noise)[0], together[0], atol=1e-3)
        assert torch.equal(case.mine(range(6), steps=0, **noise)[2], case.mine(range(6), steps=0)[2])


def test_a_step_is_that_of_the_paper(case):
    """Its rate and decay of 1 and 1e-4 are those of a mean over the batch."""
    mean, std, _ = case.mine(range(6), steps=3, lr=1 / 6)
    styles = [values.clone().requires_grad_() for values in style(case.features)]
    optimizer = torch.optim.SGD(styles, 1.0, momentum=0.9, weight_decay=1e-4)
    for _ in range(3):
        restyled = restyle(case.features, *styles).relu()
        cosine = torch.cosine_similarity(embed(case.model, restyled, 1), case.targets)
        optimizer.zero_grad()
        (1 - cosine).mean().backward()
        optimizer.step()
        styles[1].data.clamp_(min=0)
    torch.testing.assert_close(mean, styles[0].detach().flatten(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, styles[1].detach().flatten(1), rtol=1e-4, atol=1e-5)


def test_the_first_patch_of_each_class():
    labels = torch.zeros(2, 6, 6, dtype=torch.uint8)
    labels[0, :2] = 2
    labels[1] = ANY
    labels[1, 2:4, 4:] = 1
    assert first_patches(labels, 3).tolist() == [[0, 1, 0, 0], [0, 0, 0, 2], [1, 1, 2, 1]]


# ---- runs


def test_a_bank_of_a_photo(mined, source, photo):
    bank = weights(mined / "bank.pt")
    assert bank["mean"].shape == bank["std"].shape == (16, 24) and bank["std"].min() >= 0
    assert bank["phrase"] == [str(photo)] * 16 and set(bank["class"].tolist()) == {ANY}
    assert bank["classes"] == weights(source)["data"]["classes"] and bank["stage"] == 1 and bank["relu"]
    rows = logged(mined)
    assert all(0 < row["mine/moved"] < 2 for row in rows)
    assert [row["step"] for row in rows] == [4, 8, 12, 16]
    assert all(row["mine/cosine_after"] > row["mine/cosine_before"] for row in rows)
    for name in ("cosine.png", "styles.png"):
        assert Image.open(mined / name).size[0] > 100
    own, said = bank["lineage"], lineage_of(mined)
    assert own["parents"] == said["parents"] == [sha256(source)] and own["data"]["train"]["photos"] == 16
    seen = lineage.seen(bank)
    assert sha256(photo)[:16] in seen and lineage.seen(weights(source)) < seen
    assert said["files"][str(photo)]["flag"] == "photo" and said["outputs"]["bank.pt"] == sha256(
        mined / "bank.pt"
    )


def test_a_killed_and_resumed_run_gives_the_same_bank(start, call, complaint, mined, source, photo, tmp_path):
    out = tmp_path / "run"
    flags = ["--init", source, "--photo", photo, *FEW, "--out", out]

    def images():
        return weights(out / "last.pt")["images"] if (out / "last.pt").exists() else 0

    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = images()
        process = start("mine_styles.py", *flags, *["--resume"] * bool(before))
        while images() == before:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, number)
        assert process.wait() == status and not (out / "bank.pt").exists()
    assert "holds a last.pt already" in complaint(mine_styles, *FEW, "--out", out)
    assert "began with 40" in complaint(mine_styles, "--resume", "--steps", 9, "--out", out)
    call("mine_styles.py", "--resume", "--out", out)
    whole, again = weights(mined / "bank.pt"), weights(out / "bank.pt")
    assert torch.equal(whole["mean"], again["mean"]) and torch.equal(whole["std"], again["std"])
    assert [row["step"] for row in logged(out)] == [4, 8, 12, 16]
    assert "is whole" in call("mine_styles.py", "--resume", "--out", out).stdout
    (out / "last.pt").unlink()
    assert "holds a bank.pt already" in complaint(mine_styles, *FEW, "--out", out)


def test_words_by_class_train_a_head(call, source, folder, tmp_path):
    classes = weights(source)["data"]["classes"]
    targets = embedded(tmp_path / "targets.pt", source, [None, *classes])
    state = weights(source)
    source = tmp_path / "source.pt"  # of larger photos: a patch is to be seen after every stage
    checkpoint.save(source, **state | {"args": state["args"] | {"size": 96}})
    flags = ["--init", source, "--targets", targets, "--images", 6, "--steps", 2, "--device", "cpu"]
    call("mine_styles.py", *flags, "--per-class", "--patches", 3, "--mix", "beta", "--out", tmp_path / "bank")
    bank = weights(tmp_path / "bank/bank.pt")
    assert bank["patches"] == 3 and bank["mix"] == "beta" and len(set(bank["class"].tolist())) > 1
    pairs = {(phrase, kind) for phrase, kind in zip(bank["phrase"], bank["class"].tolist(), strict=True)}
    assert {phrase for phrase, _ in pairs} == set(PHRASES) and ANY not in bank["class"]

    out = tmp_path / "run"
    flags = [
        "--init",
        source,
        "--styles",
        tmp_path / "bank/bank.pt",
        "--freeze",
        "backbone",
        "--device",
        "cpu",
    ]
    flags += ["--batch-size", 4, "--steps", 2, "--eval-every", 1, "--out", out]
    call("train_finetune.py", *flags)
    before, after = weights(source)["model"], weights(out / "last.pt")["model"]
    assert before.keys() == after.keys()
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert same >= {key for key in before if key.startswith(("stages.", "embedding."))}
    assert "head.weight" not in same
    # and the next script takes it
    flags = ["--init", out / "last.pt", "--lr", "1e-6", "--steps", 1, "--batch-size", 4, "--device", "cpu"]
    call("train_reward.py", *flags, "--out", tmp_path / "reward")


def test_styles_act_in_training_and_in_a_run_that_goes_on(call, start, mined, source, tmp_path):
    flags = [
        "--init",
        source,
        "--freeze",
        "backbone",
        "--batch-size",
        4,
        "--eval-every",
        5,
        "--device",
        "cpu",
    ]
    plain, whole, broken = (tmp_path / name for name in ("plain", "whole", "broken"))
    other = start("train_finetune.py", *flags, "--steps", 5, "--out", plain)
    flags += ["--styles", mined / "bank.pt", "--steps", 8]
    dies = ["tests/reliability/under.py", "dies=7"]
    assert start(*dies, "train_finetune.py", *flags, "--out", broken).wait() == -signal.SIGKILL
    call("train_finetune.py", *flags, "--out", whole)
    call("train_finetune.py", "--resume", "--out", broken)
    assert_same_run(whole / "last.pt", broken / "last.pt")
    assert other.wait() == 0
    losses = [logged(out)[0]["train/loss"] for out in (plain, whole)]
    assert abs(losses[0] - losses[1]) > 1e-3


def test_mixstyle_needs_no_target(call, finetuned, tmp_path):
    out = tmp_path / "bank"
    call("mine_styles.py", "--init", finetuned / "best.pt", "--mix", "batch", "--device", "cpu", "--out", out)
    assert weights(out / "bank.pt")["mix"] == "batch"
    flags = ["--init", finetuned / "best.pt", "--styles", out / "bank.pt", "--freeze", 1, *TINY]
    call("train_finetune.py", *flags, "--steps", 2, "--out", tmp_path / "run")


# ---- mistakes


def test_mistakes_take_one_line(complaint, source, finetuned, mined, photo, folder, tmp_path):
    init = ["--init", finetuned / "best.pt", "--device", "cpu", "--out", tmp_path / "run"]
    clip = ["--init", source, "--device", "cpu", "--out", tmp_path / "run"]
    words = embedded(tmp_path / "words.pt", source)
    other = embedded(tmp_path / "other.pt", source, tower="0")
    few = embedded(tmp_path / "few.pt", source, ["skin"])
    torch.save([1], tmp_path / "list.pt")
    each = ["--per-class", "--patches", 3]

    def said(*flags):
        return complaint(mine_styles, *flags)

    assert "--init is needed" in said("--out", tmp_path / "run")
    assert "one of --targets" in said(*init)
    assert "one of --targets" in said(*init, "--photo", photo, "--targets", words)
    assert "one of --targets" in said(*init, "--photo", photo, "--mix", "batch")
    assert "--per-class True: has no effect on photos" in said(*init, "--photo", photo, "--per-class")
    assert "whole images" in said(*init, "--mix", "batch", "--patches", 3)
    assert "this model has 5" in said(*init, "--photo", photo, "--stage", 6)
    assert "need a parser on the encoder of a CLIP" in said(*init, "--targets", words)
    assert "another CLIP" in said(*clip, "--targets", other)
    assert "no embedded phrases" in said(*clip, "--targets", tmp_path / "list.pt")
    assert "no such file" in said(*clip, "--targets", tmp_path / "none.pt")
    assert "no phrase with {class}" in said(*clip, "--targets", words, *each)
    assert "need --per-class" in said(*clip, "--targets", few)
    assert "needs --patches 3" in said(*clip, "--targets", few, "--per-class")
    by_class = embedded(tmp_path / "classes.pt", source, weights(source)["data"]["classes"])
    assert "6x6 features are too few" in said(*clip, "--targets", by_class, *each)
    assert "is not embedded for background" in said(*clip, "--targets", few, *each)
    assert "none.png: cannot be read" in said(*clip, "--photo", tmp_path / "none.png")
    assert not (tmp_path / "run").exists()

    def trained(*flags):
        return complaint(train_finetune, "--init", source, "--device", "cpu", *flags)

    out = ["--out", tmp_path / "finetune"]
    assert "would be trained away" in trained("--styles", mined / "bank.pt", *out)
    assert "not a checkpoint of these scripts" in trained("--styles", words, *out)
    init = ["--init", finetuned / "best.pt", "--styles", mined / "bank.pt", "--freeze", "backbone", *TINY]
    assert "for another network" in complaint(train_finetune, *init, *out)
