"""A student and its teachers: equations, what stays as it is, what is refused, and that a run goes on."""

import collections
import json
import pathlib
import shutil
import signal

import numpy as np
import pytest
import torch
from conftest import FASSEG, assert_same_run, logged, needs_fasseg, refusal, weights, write
from PIL import Image

import evaluate
import train_student
from datasets import batches, splits, synthetic
from datasets.augmentation import augment, mirror
from datasets.policies import load_policy
from models import restore
from utils import checkpoint, rng, teaching

PLAIN = ["--batch-size", 4, "--device", "cpu"]
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


@pytest.fixture
def student(teacher, tmp_path, monkeypatch):
    """student(*flags, out="run", status=None): a run in this process; its folder."""

    def student(*flags, out="run", status=None):
        flags = [*flags, "--out", tmp_path / out]
        if "--resume" not in flags:
            flags += PLAIN
            flags += [] if "--teacher" in flags else ["--teacher", teacher]
        flags = [str(flag) for flag in flags]
        monkeypatch.setattr("sys.argv", [train_student.__file__, *flags])  # --resume reads them again
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            assert train_student.main(train_student.get_parser().parse_args(flags)) == status
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return tmp_path / out

    return student


def tags(out):
    return collections.ChainMap(*logged(out))


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
        straight, mirrored = (train_student.teach(predict, teachers, x, sides) for x in (images, images.flip(-1)))
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
    """Written out here pixel by pixel, of a student that still equals its teacher; photos are moved, so that
    there are pixels from outside."""
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    policy = {"flip": 0.5, "ops": [{"name": "translate_x", "m_neg": 0.4, "m_pos": 0.4}]}
    policy = write(tmp_path / "policy.json", policy)
    out = student(*flags, "--unlabelled", crowd, "--augment", policy, "--steps", 1, "--ema", 0)
    state = checkpoint.load(teacher)
    network = restore(state, "cpu")

    @torch.no_grad()
    def logits(images):
        return network(images.float() / 255 if images.dtype == torch.uint8 else images)["semantic"].double()

    def said(images):
        mirrored = logits(images.flip(-1)).softmax(1).flip(-1)
        order = list(range(len(LAPA.classes)))
        for a, b in LAPA.flip_pairs:
            order[a], order[b] = b, a
        return (logits(images).softmax(1) + mirrored[:, order]) / 2

    faces = splits.open_data(folder)
    photos = splits.open_unlabelled(crowd, faces.classes, 0.15, faces, folder)
    own, other = batches.load(faces, "train", 32), batches.load(photos, "unlabelled", 32)
    rows = [next(iter(batches.Order(len(data), 2, 0, 0, 1))) for data in (own, other)]
    own, shown = own[rows[0]], other[rows[1]]
    probs = said(shown["image"])
    limits = given.get("--threshold", 0.9), given.get("--keep", 0.5)
    found = teaching.survey(lambda images: said(images).float(), other, 11, 4, *limits)
    least = found["thresholds"][teaching.yaw_bins(other, shown)]
    pseudo = torch.full((2, 32, 32), 254, dtype=torch.uint8)
    for photo in range(2):
        for k in range(11):
            pseudo[photo][(probs[photo].argmax(0) == k) & (probs[photo][k] >= least[photo, k] - 1e-7)] = k
    temperature = given.get("--temperature", 2)
    heated = probs.pow(1 / temperature)
    soft = torch.cat([torch.zeros_like(probs), heated / heated.sum(1, keepdim=True)])
    batch = {
        "image": torch.cat([own["image"], shown["image"]]),
        "semantic": torch.cat([own["semantic"], pseudo]),
        "probs": soft.float(),
    }
    pairs = dict.fromkeys(("semantic", "probs"), LAPA.flip_pairs)
    batch = augment(batch, load_policy(str(policy)), 0, torch.arange(4), pairs)
    labels, scores = batch["semantic"], logits(batch["image"])
    losses = {"labelled": [], "unlabelled": [], "kd": []}
    for photo, y, x in np.ndindex(4, 32, 32):
        if labels[photo, y, x] == 255:
            continue  # comes from outside of the photo, or nobody labelled it: never counts
        z = scores[photo, :, y, x]
        name = "labelled" if photo < 2 else "unlabelled"
        if photo < 2 or "--target" not in given:
            k = int(labels[photo, y, x])
            losses[name].append(0.0 if k == 254 else -z.log_softmax(0)[k].item())
        if photo < 2:
            losses["kd"].append(0.0)  # a student that equals its teacher
        elif "--target" in given:
            q = batch["probs"][photo, :, y, x].double()
            q = q / q.sum()
            losses[name].append(temperature**2 * (q * (q.log() - (z / temperature).log_softmax(0))).sum().item())
    assert (labels[:2] == 255).any() and (labels[2:] == 255).any()
    assert ((labels == 254).any() and (labels[2:] < 11).any()) == (given.get("--threshold") != 1)
    means = {name: np.mean(values) for name, values in losses.items()}
    found = tags(out)
    assert found["loss/labelled"] == pytest.approx(means["labelled"], abs=2e-5)
    assert found["loss/unlabelled"] == pytest.approx(means["unlabelled"], abs=2e-5)
    alpha, weight = given.get("--distill", 0.0), given.get("--unlabelled-weight", 1.0)
    assert found.get("loss/kd", 0.0) == pytest.approx(0.0, abs=2e-5) and ("loss/kd" in found) == (alpha > 0)
    total = ((1 - alpha) * means["labelled"] + weight * means["unlabelled"]) / (1 + weight)
    assert found["train/loss"] == pytest.approx(total, abs=2e-5)
    if given.get("--threshold") == 1:
        assert means["unlabelled"] == 0, "all unsure: what is left is the loss on labelled photos"
