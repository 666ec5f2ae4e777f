"""A student and its teachers: equations, what stays as it is, what is refused, and that a run goes on."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import FASSEG, assert_same_run, logged, needs_fasseg, refusal, tags, weights, write
from PIL import Image

import train_student
from datasets import batches, splits, synthetic
from datasets.augmentation import augment, mirror
from datasets.policies import load_policy
from models import restore
from utils import checkpoint, rng, teaching

PLAIN = ["--batch-size", 4, "--device", "cpu"]
NOBODY = ["--val-fraction", 0]  # validates: half the time
LAPA = synthetic.SCHEMES["lapa"]


# ---- a teacher, photos, and runs in this process


@pytest.fixture(scope="session")
def crowd(tmp_path_factory):
    """Ten photos of five people at known yaws, two of a sixth who tests."""
    root = tmp_path_factory.mktemp("crowd")
    made = synthetic.faces(5, torch.arange(12), 48, "lapa")
    for i in range(12):
        for kind, array in (("images", made["image"][i].movedim(0, -1)), ("labels", made["semantic"][i])):
            folder = root / ("test" if i > 9 else "train") / kind
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.numpy()).save(folder / f"{i}.png")
    write(
        root / "classes.json",
        {
            "classes": LAPA.classes,
            "flip_pairs": [[LAPA.classes[a], LAPA.classes[b]] for a, b in LAPA.flip_pairs],
            "groups": {str(i): f"person {i // 2}" for i in range(12)},
            "yaw": {str(i): round(made["yaw"][i].item(), 1) for i in range(12)},
        },
    )
    return root


@pytest.fixture(scope="session")
def teacher(call, folder, tmp_path_factory):
    """Of BatchNorm, and with background, skin and hair known."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    flags = ["--data", folder, "--size", 32, "--model", "unet", "--augment", "flip", *PLAIN]
    call("train_finetune.py", *flags, "--steps", 40, "--eval-every", 40, "--out", out)
    return out / "best.pt"


# ---- who teaches, and what


class Half:
    """Sees the side of a photo: class 1 where it is dark on the left half, 2 on the right one, else 0."""

    def __init__(self, bias=0.0):
        self.bias = bias

    def __call__(self, images):
        dark = images.mean(1) < 100
        left = torch.arange(images.shape[-1]) < images.shape[-1] // 2
        seen = torch.where(dark, torch.where(left, 1, 2), 0)
        logits = 3.0 * torch.nn.functional.one_hot(seen, 3).movedim(-1, 1).float()
        return logits + self.bias * torch.arange(images.shape[-1])


def test_a_mirror_image_is_taught_the_mirrored_labels():
    images = torch.randint(0, 256, (2, 3, 4, 6)).byte()
    predict = lambda images, teacher: teacher(images.float())
    sides = [(1, 2)]
    for teachers in ([Half()], [Half(), Half(0.1)]):
        straight, mirrored = (
            train_student.teach(predict, teachers, x, sides) for x in (images, images.flip(-1))
        )
        assert torch.allclose(mirror(mirrored, sides), straight, atol=1e-6)
        assert torch.allclose(straight.sum(1), torch.ones(2, 4, 6))
    one = train_student.teach(predict, [Half()], images, sides)
    assert torch.allclose(one, Half()(images.float()).softmax(1)), "which is equivariant by itself"
    assert not torch.allclose(train_student.teach(predict, [Half()], images, []), one, atol=0.1)
    other = lambda images: 2 * Half()(images).roll(1, 1)
    both = train_student.teach(predict, [Half(), other], images, sides)
    alone = train_student.teach(predict, [other], images, sides)
    assert torch.allclose(both, (one + alone) / 2, atol=1e-6), "of several the mean counts"


def test_a_pixel_and_its_label_come_from_one_photo():
    """CutMix pastes photos beside one another, labelled or not, with what is known of them."""
    shade = torch.tensor([10, 60, 110, 160, 210, 250])
    ids = torch.tensor([0, 1, 2, 255, teaching.UNSURE, 2])
    full = torch.ones(6, 1, 32, 32)
    probs = torch.rand(6, 3)
    batch = {
        "image": (shade.view(-1, 1, 1, 1) * full.expand(-1, 3, -1, -1)).byte(),
        "semantic": (ids.view(-1, 1, 1) * full[:, 0]).byte(),
        "probs": probs.view(6, 3, 1, 1) * full,
    }
    policy = {**load_policy("none"), "num_ops": 1}
    policy["ops"] = [{"name": "cutmix", "m_neg": 0.0, "m_pos": 1.0, "weight": 1.0}]
    seen = augment(batch, policy, 0, torch.arange(6), {"semantic": [], "probs": []})
    photo = ((seen["image"][:, 0] * 255).round()[..., None] == shade).int().argmax(-1)  # (B, H, W)
    assert sum(len(p.unique()) > 1 for p in photo) > 2, "boxes were pasted"
    assert torch.equal(seen["semantic"], ids[photo].byte())
    assert torch.equal(seen["probs"], probs[photo].movedim(-1, 1))


@pytest.mark.parametrize(
    "flags",
    [
        ["--distill", 0.75, "--unlabelled-weight", 0.5, "--threshold", 0.8, "--keep", 0.25],
        ["--target", "soft", "--temperature", 2],
        ["--threshold", 1, "--keep", 0, "--unlabelled-weight", 3],
    ],
    ids=["hard", "soft", "unsure"],
)
def test_the_first_loss_is_what_the_equations_say(flags, student, teacher, folder, crowd, tmp_path):
    """Written out here pixel by pixel, of a student that still equals the first of its two teachers; photos
    are moved, so that there are pixels from outside."""
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    policy = {"flip": 0.5, "ops": [{"name": "translate_x", "m_neg": 0.4, "m_pos": 0.4}]}
    policy = write(tmp_path / "policy.json", policy)
    states = [checkpoint.load(teacher), checkpoint.load(teacher)]
    states[1]["model"]["head.bias"] += torch.linspace(-2, 2, len(states[1]["model"]["head.bias"]))
    checkpoint.save(tmp_path / "other.pt", **states[1])
    flags = [*flags, "--teacher", teacher, tmp_path / "other.pt", "--unlabelled", crowd]
    out = student(*flags, "--augment", policy, "--steps", 1)
    networks = [restore(state, "cpu") for state in states]

    @torch.no_grad()
    def logits(images, network=networks[0]):
        return network(images.float() / 255 if images.dtype == torch.uint8 else images)["semantic"].double()

    def mean(images):
        return (logits(images).softmax(1) + logits(images, networks[1]).softmax(1)) / 2

    def said(images):
        order = list(range(len(LAPA.classes)))
        for a, b in LAPA.flip_pairs:
            order[a], order[b] = b, a
        return (mean(images) + mean(images.flip(-1)).flip(-1)[:, order]) / 2

    faces = splits.open_data(folder)
    photos = splits.open_unlabelled(crowd, faces.classes, 0.15, faces, folder)
    own, other = batches.load(faces, "train", 32), batches.load(photos, "unlabelled", 32)
    own = own[next(iter(batches.Order(len(own), 2, 0, 0, 1)))]
    shown = other[next(iter(batches.Order(len(other), 2, 1, 0, 1)))]
    probs = said(shown["image"])
    hard = "--target" not in given
    limits = (given.get("--threshold", 0.9), given.get("--keep", 0.5)) if hard else (0.0, 0.0)
    found = teaching.survey(lambda images: said(images).float(), other, 11, 4, *limits)
    least = found["thresholds"][teaching.yaw_bins(other, shown)]
    pseudo = torch.full((2, 32, 32), 254, dtype=torch.uint8)
    for photo in range(2):
        for k in range(11):
            pseudo[photo][(probs[photo].argmax(0) == k) & (probs[photo][k] >= least[photo, k] - 1e-7)] = k
    temperature = given.get("--temperature", 2)
    heated = probs.pow(1 / temperature)
    soft = (heated / heated.sum(1, keepdim=True)).float()
    pairs = dict.fromkeys(("semantic", "probs"), LAPA.flip_pairs)
    how = load_policy(str(policy)), 0
    own = augment({k: own[k] for k in ("image", "semantic")}, *how, torch.tensor([0, 1]), pairs)
    taught = {"image": shown["image"], "semantic": pseudo, "probs": soft}
    taught = augment(taught, *how, torch.tensor([2, 3]), pairs)
    images = torch.cat([own["image"], taught["image"]])
    labels, scores, clean = torch.cat([own["semantic"], taught["semantic"]]), logits(images), mean(images)

    def distance(q, z):
        return temperature**2 * (q * (q.log() - (z / temperature).log_softmax(0))).sum().item()

    losses = {"labelled": [], "unlabelled": [], "kd": []}
    for photo, y, x in np.ndindex(4, 32, 32):
        if labels[photo, y, x] == 255:
            continue  # comes from outside of the photo, or nobody labelled it: never counts
        z = scores[photo, :, y, x]
        name = "labelled" if photo < 2 else "unlabelled"
        if photo < 2 or hard:
            k = int(labels[photo, y, x])
            losses[name].append(0.0 if k == 254 else -z.log_softmax(0)[k].item())
        if photo < 2:
            q = clean[photo, :, y, x].pow(1 / temperature)
            losses["kd"].append(distance(q / q.sum(), z))
        elif not hard:
            q = taught["probs"][photo - 2, :, y, x].double()
            losses[name].append(distance(q / q.sum(), z))
    assert (labels[:2] == 255).any() and (labels[2:] == 255).any()
    if hard:
        assert (labels[2:] == 254).any() and (labels[2:] < 11).any() == (given.get("--threshold") != 1)
    means = {name: np.mean(values) for name, values in losses.items()}
    found = tags(out)
    assert found["loss/labelled"] == pytest.approx(means["labelled"], abs=2e-5)
    assert found["loss/unlabelled"] == pytest.approx(means["unlabelled"], abs=1e-4)
    alpha, weight = given.get("--distill", 0.0), given.get("--unlabelled-weight", 1.0)
    assert found.get("loss/kd") == (pytest.approx(means["kd"], abs=2e-5) if alpha else None)
    own = (1 - alpha) * means["labelled"] + alpha * means["kd"]
    total = (own + weight * means["unlabelled"]) / (1 + weight)
    assert found["train/loss"] == pytest.approx(total, abs=1e-4)
    if given.get("--threshold") == 1:
        assert means["unlabelled"] == 0, "all unsure: what is left is the loss on labelled photos"


@pytest.mark.parametrize("more", [["--synthetic", 0.25], ["--ema", 0.8]])
def test_without_photos_it_is_finetuning_bit_for_bit(more, student, teacher, start, folder, tmp_path):
    flags = ["--steps", 5, "--eval-every", 3, "--lr", "2e-3", "--augment", "cutmix", *more]
    tuned = tmp_path / "tuned"
    own = ["--init", teacher, "--loss", "ce=1", "--out", tuned]
    other = start("train_finetune.py", *flags, *PLAIN, *own)  # meanwhile
    out = student(*flags, "--bn", "batch")
    assert other.wait() == 0
    assert_same_run(out / "last.pt", tuned / "last.pt")
    if "--ema" in more:
        one, other = (weights(run / "last.pt")["ema"] for run in (out, tuned))
        assert all(torch.equal(one[k], other[k]) for k in one)


# ---- what stays as it is, and what follows


@pytest.fixture
def spied(monkeypatch):
    """The networks that taught, once each, their modes whenever they did, and each state that was saved."""
    seen = {"teachers": [], "training": [], "saved": []}
    teach, save_run = train_student.teach, checkpoint.save_run

    def watch(predict, teachers, *rest):
        seen["teachers"] += [t for t in teachers if not any(t is other for other in seen["teachers"])]
        seen["training"] += [module.training for t in teachers for module in t.modules()]
        return teach(predict, teachers, *rest)

    def keep(out, state, *rest):
        copies = {k: {n: v.clone() for n, v in state[k].items()} for k in ("model", "ema") if state[k]}
        seen["saved"].append({**state, **copies})
        save_run(out, state, *rest)

    monkeypatch.setattr(train_student, "teach", watch)
    monkeypatch.setattr(checkpoint, "save_run", keep)
    return seen


def statistics(state):
    return {k: v for k, v in state.items() if "running" in k or "batches_tracked" in k}


@pytest.mark.parametrize("how", ["frozen", "batch", "unlabelled"])
def test_a_fixed_teacher_stays_as_it_is(how, student, spied, teacher, crowd):
    flags = ["--ema", 0, "--bn", how, "--steps", 3, "--eval-every", 3]
    out = student("--unlabelled", crowd, *flags, "--distill", 0.5)
    start, end = weights(teacher)["model"], weights(out / "last.pt")["model"]
    fixed = spied["teachers"][0].state_dict()
    assert all(torch.equal(fixed[k], start[k]) for k in start), "buffers too"
    assert not any(spied["training"]) and spied["training"]
    assert any(not torch.equal(end[k], start[k]) for k in start if k.endswith("weight"))
    same = [torch.equal(v, start[k]) for k, v in statistics(end).items()]
    assert all(same) if how == "frozen" else not any(same)
    if how == "unlabelled":
        faces = splits.open_any(crowd, val_fraction=0.15)
        data = batches.load(faces, "train", 32)
        network = restore(weights(out / "last.pt"), "cpu").train()
        for norm in teaching.norms_of(network):
            norm.reset_running_stats()
            norm.momentum = None
        with torch.no_grad():
            for i in range(0, len(data), 4):
                network(data[list(range(i, min(i + 4, len(data))))]["image"].float() / 255)
        for key, value in statistics(network.state_dict()).items():
            assert torch.allclose(value, end[key], rtol=1e-4, atol=1e-5), key


def test_a_teacher_that_follows_is_the_mean_and_then_an_average(student, spied, crowd):
    """Mean Teacher: decay min(1 - 1 / t, d), of parameters and of BatchNorm's statistics."""
    decay = 0.6
    flags = ["--ema", decay, "--bn", "batch", "--steps", 5, "--eval-every", 1]
    student("--unlabelled", crowd, *flags, *NOBODY)
    saved = spied["saved"]
    assert [state["step"] for state in saved] == [1, 2, 3, 4, 5]
    for key, first in saved[0]["model"].items():
        states = [state["model"][key] for state in saved]
        if not first.is_floating_point():
            assert torch.equal(saved[-1]["ema"][key], states[-1]), key
            continue
        expected = (states[0] + states[1]) / 2  # decays of 0 and 1 / 2, then of .6
        for state in states[2:]:
            expected = decay * expected + (1 - decay) * state
        assert torch.allclose(saved[-1]["ema"][key], expected, rtol=1e-5, atol=1e-7), key
        assert torch.equal(saved[0]["ema"][key], first)
    assert not any(spied["training"]) and spied["training"]
    own = spied["teachers"][-1].state_dict()
    assert all(torch.equal(own[k], v) for k, v in saved[-1]["ema"].items()), "it is the average that teaches"


def test_a_class_that_vanishes_stops_the_run(student, crowd, folder, tmp_path, capsys, monkeypatch):
    """Labels without hair, and a teacher that soon forgets it; of each |yaw| there are two photos."""
    monkeypatch.setattr(teaching, "FEW", 1)
    bald = tmp_path / "bald"
    shutil.copytree(folder, bald)
    for path in (bald / "labels").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == LAPA.classes.index("hair"), 0, mask)).save(path)
    flags = ["--data", bald, "--allow-empty", "hair", "--unlabelled", crowd, "--unlabelled-weight", 0.01]
    flags += ["--bn", "batch", "--lr", "1e-2", "--augment", "flip", "--eval-every", 10, *NOBODY]
    out = student(*flags, "--ema", 0.5, "--steps", 40, status=3)
    said = capsys.readouterr().out.splitlines()[-1]
    assert re.match(
        r"collapsed: \w+ at \|yaw\| \d+: [\d.]+% of the pixels at first, now [\d.]+% by step", said
    )
    assert weights(out / "last.pt")["step"] < 40
    with pytest.raises(SystemExit, match="3"):  # it is not taken for done, nor goes on
        student("--resume", out=out.name)
    assert "has collapsed" in capsys.readouterr().out
    # a teacher that stays as it is forgets nothing; what its student forgot is found when the round ends
    for rounds, step in ((1, 12), (2, 7)):
        fixed = ["--ema", 0, "--rounds", rounds, "--steps", 12]
        student(*flags, *fixed, out=f"fixed {rounds}", status=3)
        assert f"by step {step}." in capsys.readouterr().out.splitlines()[-1]


# ---- killed and resumed


CASES = {
    "fixed": ["--ema", 0, "--bn", "batch", "--order", "confidence", "--distill", 0.3],
    "follows": ["--ema", 0.9, "--order", "yaw", "--augment", "trivial", *NOBODY],
    "fresh": [
        *"--students unet unet_gn --target soft --order random --optimizer muon".split(),
        *NOBODY,
    ],
}


@pytest.mark.parametrize(("case", "kills"), [("fixed", [1, 2]), ("follows", [2, 3]), ("fresh", [2, 3])])
def test_killed_in_any_round_it_is_the_run_never_killed(case, kills, student, crowd, tmp_path, monkeypatch):
    """Killed after its checkpoint of a step, of which 2 is at the end of a round, with lines more in the log:
    the folder as it then was is kept beside the run."""
    save_run = checkpoint.save_run
    kept = {}

    def keep(out, state, *rest):
        save_run(out, state, *rest)
        kept[state["step"]] = shutil.copytree(out, tmp_path / f"killed {state['step']}")

    monkeypatch.setattr(train_student, "vanished", lambda *_: None)  # so short a run learns nothing
    monkeypatch.setattr(checkpoint, "save_run", keep)
    flags = ["--unlabelled", crowd, *CASES[case], "--rounds", 2, "--steps", 4, "--eval-every", 1]
    whole = student(*flags)
    monkeypatch.setattr(checkpoint, "save_run", save_run)
    assert list(kept) == [1, 2, 3, 4]
    lines = (whole / "metrics.jsonl").read_text()
    for step in kills:
        (kept[step] / "metrics.jsonl").write_text(lines)  # it was killed later than it saved
        student("--resume", out=f"killed {step}")
        assert_same_run(whole / "last.pt", kept[step] / "last.pt")
        a, b = logged(whole), logged(kept[step])
        untimed = [[{k: v for k, v in row.items() if "time/" not in k} for row in rows] for rows in (a, b)]
        assert untimed[0] == untimed[1]
        if case == "follows":
            one, other = (weights(out / "last.pt")["ema"] for out in (whole, kept[step]))
            assert all(torch.equal(one[k], other[k]) for k in one)
    models = [weights(kept[step] / "best.pt")["args"]["model"] for step in kept]
    saved = weights(whole / "last.pt")
    assert saved["args"]["model"] == ("unet_gn" if case == "fresh" else "unet") and "unet" in models
    assert [row["round"] for row in logged(whole) if "round" in row] == [0, 0, 1, 1]


def test_photos_are_opened_in_order(crowd, folder):
    """A sixth of a round after the other, half of the draws from the newest two."""
    steps = range(0, 600)
    ranked = [100 + i for i in range(60)]
    order = batches.Gradual(ranked, 4, 0, steps, 300)
    drawn = torch.tensor(list(order)) - 100
    for part in range(6):
        for round_ in (0, 300):
            own = drawn[round_ + part * 50 : round_ + (part + 1) * 50].flatten()
            assert own.min() >= 0 and (part + 1) * 10 - 3 <= own.max() < (part + 1) * 10
            newest = (own >= (part - 1) * 10).float().mean().item()
            expected = 0.5 + 0.5 * min(1, 2 / (part + 1))
            assert abs(newest - expected) < 0.15
    later = batches.Gradual(ranked, 2, 0, range(7, 9), 300, rank=1, world=2)
    assert list(later) == (drawn[7:9, 2:] + 100).tolist(), "a function of step and place"
    one = list(batches.Gradual([5], 2, 0, range(3), 3))
    assert one == [[5, 5]] * 3


def test_what_opens_first(crowd, folder):
    faces = splits.open_data(folder)
    data = batches.load(splits.open_unlabelled(crowd, faces.classes, 0.0, faces, folder), "unlabelled", 32)
    rank = train_student.ranking("yaw", data, None, 4, 0)
    yaws = [abs(data.yaws[row]) for row in rank]
    assert yaws == sorted(yaws) and sorted(rank) == list(range(10)) and yaws[0] < yaws[-1]
    sure = torch.rand(10)
    place = {data[[row]]["image"].sum().item(): row for row in range(10)}

    def label(images):
        p = torch.stack([sure[place[image.sum().item()]] for image in images]).view(-1, 1, 1, 1) / 2 + 0.5
        return torch.cat([p, 1 - p], 1).expand(-1, -1, 2, 2)

    rank = train_student.ranking("confidence", data, label, 4, 0)
    assert rank == sure.argsort(descending=True).tolist()
    rank = train_student.ranking("random", data, None, 4, 3)
    assert rank == rng.order(3, 0, 10).tolist() and rank != list(range(10))


# ---- pictures, scalars, and the scripts that come next


def test_it_logs_and_goes_on_to_the_next_script(student, teacher, call, calls, crowd, folder, tmp_path):
    out = student("--unlabelled", crowd, "--steps", 4, "--eval-every", 2, "--ema", 0.9, "--distill", 0.2)
    found = tags(out)
    for name in ("background", "skin", "hair"):
        for what in ("share", "kept", "threshold", "f1"):
            assert 0 <= found[f"pseudo/{what}/{name}"] <= 1
    assert sum(found[f"pseudo/share/{name}"] for name in LAPA.classes) == pytest.approx(1, abs=1e-4)
    more = {"pseudo/agreement", "loss/labelled", "loss/unlabelled", "loss/kd", "round", "order/yaw"}
    assert more | {"val/mean_f1", "pseudo/mean_f1"} <= set(found)
    assert [row["step"] for row in logged(out) if "pseudo/mean_f1" in row] == [1, 2, 4]
    for name in ("pseudo.png", "val.png", "train_batch.png"):
        picture = np.asarray(Image.open(out / name))
        assert picture.std() > 20
    height, width = np.asarray(Image.open(out / "pseudo.png")).shape[:2]
    assert width >= 2 * 5 * 192 and height >= 192, "five panels of each of two photos"
    last = weights(out / "last.pt")
    measured = checkpoint.load(out / "last.pt")["model"]
    assert all(torch.equal(measured[k], v) for k, v in last["ema"].items())
    best = weights(out / "best.pt")
    assert not {"ema", "optimizer", "teacher", "surveyed"} & set(best)
    plain = ["--device", "cpu"]
    calls(
        ["evaluate.py", "--init", out / "last.pt", "--json", tmp_path / "last.json", *plain],
        [
            "predict.py",
            "--init",
            out / "best.pt",
            folder / "images/1.png",
            "--out",
            tmp_path / "seen",
            *plain,
        ],
        ["train_reward.py", "--init", out / "last.pt", "--steps", 1, "--out", tmp_path / "reward", *PLAIN],
        [
            *("train_scores.py", "--init", out / "best.pt", "--unlabelled", crowd, "--reward", "anatomy"),
            *("--score-budget", 200, "--limit", 4, "--steps", 1, "--out", tmp_path / "scores", *PLAIN),
        ],
    )
    scored = json.loads((tmp_path / "last.json").read_text())
    assert scored["mean_f1"] == pytest.approx(found["val/mean_f1"], abs=1e-5), "of the average"
    for run in ("reward", "scores"):
        again = student("--teacher", tmp_path / run / "best.pt", "--steps", 1, out=f"of {run}")
        assert weights(again / "last.pt")["args"]["model"] == "unet"


def test_synthetic_faces_have_the_classes_of_the_teacher(student, monkeypatch):
    for split, count in (("unlabelled", 8), ("val", 4)):
        monkeypatch.setitem(batches.SYNTHETIC, split, count)
    flags = ["--unlabelled", "synthetic", "--order", "yaw", "--steps", 1]
    for data in ([], ["--data", "synthetic"]):
        out = student(*data, *flags, out=f"of {data}")
        saved = weights(out / "last.pt")
        assert saved["data"]["classes"] == LAPA.classes
        assert json.loads((out / "data.json").read_text())["unlabelled"]["photos"] == 8
    assert saved["args"]["classes"] == "lapa", "so that the next script finds them"


# ---- who trains nothing, and mistakes


def test_those_who_test_or_validate_are_not_among_the_photos(complaint, crowd, folder, teacher, tmp_path):
    faces = splits.open_data(crowd)
    own = splits.open_unlabelled(crowd, faces.classes, 0.15, faces, crowd).splits["unlabelled"]
    validate = {s.group for s in faces.splits["val"]}
    people = {s.group for s in own}
    assert validate and people == {f"person {i}" for i in range(5)} - validate
    assert all(s.label for s in own), "masks of the same classes measure what a teacher says"
    own = [s for s in faces.splits["train"] if s.group == faces.splits["train"][0].group]
    ids = {"train": [s.id for s in faces.splits["train"] if s not in own], "val": [s.id for s in own]}
    by_ids = splits.open_data(crowd, ids=write(tmp_path / "ids.json", ids))
    photos = splits.open_unlabelled(crowd, faces.classes, 0.15, by_ids, crowd).splits["unlabelled"]
    assert {s.group for s in photos} == people - {own[0].group}, "those who validate by a file of ids"
    others = splits.open_data(folder)
    photos = splits.open_unlabelled(crowd, ["background", "face"], 0.15, others, folder)
    assert not any(s.label for s in photos.splits["unlabelled"])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(crowd / "train/images/1.png", pictures / "a.png")
    assert len(splits.open_unlabelled(pictures, faces.classes, 0.15, faces, crowd).splits["unlabelled"]) == 1
    shutil.copy(crowd / "test/images/11.png", pictures / "b.png")
    flags = ["--teacher", teacher, "--data", crowd, "--unlabelled", pictures, "--out", tmp_path / "run"]
    said = complaint(train_student, *flags)
    assert "1 photo of a test split" in said and "b.png" in said and not (tmp_path / "run").exists()
    splits.open_unlabelled(pictures, faces.classes, 0.15, others, folder)  # of data that nobody named


@needs_fasseg
def test_fasseg_people_who_test_are_refused(tmp_path):
    faces = splits.open_data(FASSEG / "V3")
    photos = splits.open_unlabelled(FASSEG / "V3", faces.classes, 0.15, faces, FASSEG / "V3")
    tested = {s.group for s in faces.splits["test"]}
    validate = {s.group for s in faces.splits["val"]}
    assert not {s.group for s in photos.splits["unlabelled"]} & (tested | validate)
    for split in ("test", "unlabelled"):
        sample = next(s for s in faces.splits[split] if s.group in tested)
        home = tmp_path / split
        home.mkdir()
        shutil.copy(sample.image, home / ("renamed" + pathlib.Path(sample.image).suffix))
        call = splits.open_unlabelled
        said = refusal(call, home, faces.classes, 0.15, faces, FASSEG / "V3")
        assert "1 photo of a test split" in said


PHOTOS = ["--unlabelled", "{crowd}"]
TWO = ["--teacher", "{best}", "{best}"]
MISTAKES = [
    ([], "--teacher is needed"),
    (["--teacher", "nowhere.pt"], "nowhere.pt"),
    (["--teacher", "{best}", "{size}"], "--teacher: size of {best}: 32; of {size}: 48"),
    (
        ["--teacher", "{best}", "{grey}"],
        "--teacher: preprocess of {best}: none; of {grey}: grey-world",
    ),
    (
        ["--teacher", "{best}", "{named}"],
        "--teacher: classes of {best}: background skin left_eyebrow",
    ),
    (["--teacher", "{named}"], "other classes: the teacher's are background face left_eyebrow"),
    ([*TWO, *PHOTOS, "--ema", ".9"], "--ema 0.9: a teacher that follows"),
    (["--ema", ".9", "--students", "unet", *PHOTOS], "--ema 0.9: a teacher that follows"),
    (["--bn", "frozen", "--students", "unet"], "--bn frozen: a student that begins anew"),
    (["--bn", "unlabelled"], "--bn unlabelled: needs --unlabelled"),
    ([*PHOTOS, "--unlabelled-share", ".01"], "at least one of --unlabelled and one labelled"),
    ([*PHOTOS, "--unlabelled-share", ".99"], "at least one of --unlabelled and one labelled"),
    ([*PHOTOS, "--unlabelled-share", "0"], "at least one of --unlabelled and one labelled"),
    (
        [*PHOTOS, "--unlabelled-share", ".75", "--synthetic", ".5"],
        "--synthetic 0.5: leave none for labelled photos",
    ),
    (
        ["--steps", "5", "--rounds", "2"],
        "--steps 5: no multiple of --rounds 2, which are equally long: try 6",
    ),
    (["--students", "unet", "unet_gn"], "--students unet unet_gn: more than --rounds 1"),
    (["--unlabelled", "{plain}", "--order", "yaw"], "--order yaw: of 1 photos nobody knows the yaw"),
    ([*PHOTOS, "--target", "soft", "--threshold", ".5"], "--threshold 0.5: has no effect on --target soft"),
    ([*PHOTOS, "--target", "soft", "--keep", ".5"], "--keep 0.5: has no effect on --target soft"),
    ([*PHOTOS, "--temperature", "2"], "--temperature 2.0: has no effect without --distill or --target soft"),
    (["--weights", "imagenet"], "--weights imagenet: has no effect without --students"),
    (["--order", "random"], "--order random: has no effect without --unlabelled"),
    (["--threshold", ".5"], "--threshold 0.5: has no effect without --unlabelled"),
    (["--target", "soft"], "--target soft: has no effect without --unlabelled"),
    (["--unlabelled-weight", "2"], "has no effect without --unlabelled"),
    (["--unlabelled-share", ".5"], "has no effect without --unlabelled"),
    (["--freeze", "backbone", "--backbone-lr-scale", ".1"], "has no effect on a backbone that is frozen"),
    (["--students", "unett"], "no model is called unett"),
]


@pytest.fixture(scope="module")
def files(teacher, tmp_path_factory):
    """Teachers that differ in one thing each, and a photo of unknown yaw."""
    home = tmp_path_factory.mktemp("files")
    for name in ("size", "grey", "named"):
        state = checkpoint.load(teacher)
        state["args"] |= {"size": 48} if name == "size" else {}
        state["args"] |= {"preprocess": "grey-world"} if name == "grey" else {}
        state["data"]["classes"][1] = "face" if name == "named" else "skin"
        checkpoint.save(home / f"{name}.pt", **state)
    (home / "plain").mkdir()
    Image.new("RGB", (32, 32)).save(home / "plain/a.png")
    found = {path.stem: path for path in home.iterdir()}
    return {**found, "best": teacher}


@pytest.mark.parametrize(("flags", "named"), MISTAKES)
def test_a_mistake_gets_one_line(flags, named, complaint, crowd, files, tmp_path):
    names = {**files, "crowd": crowd}
    flags = [flag.format(**names) for flag in flags]
    if flags and "--teacher" not in flags:
        flags += ["--teacher", files["best"]]
    said = complaint(train_student, *flags, "--out", tmp_path / "run")
    assert named.format(**names) in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists(), "what was refused leaves nothing behind"
