"""The losses, and the schedule of the training scripts, against formulas written out."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from train_finetune import lr_at
from utils.losses import LOSSES

K, IGNORE = 4, 255


def case(n=3, height=6, width=5, classes=K, seed=0):
    """Logits and labels; the second image lacks class 2, a tenth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, height, width, generator=generator)
    labels = torch.randint(0, classes, (n, height, width), generator=generator)
    labels[1][labels[1] == 2] = 0
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    return logits, labels


def mean(name, logits, labels):
    total, count = LOSSES[name](logits, labels)
    return (total / count).item()


def pixels(logits, labels, image):
    """Probabilities (n, K) and labels (n,) of the valid pixels of one image."""
    valid = labels[image] != IGNORE
    return logits[image].softmax(0)[:, valid].T, labels[image][valid]


# ---- each against its formula


def test_ce():
    logits, labels = case()
    total, count = LOSSES["ce"](logits, labels)
    assert count == (labels != IGNORE).sum()
    expected = F.cross_entropy(logits, labels, ignore_index=IGNORE)
    torch.testing.assert_close(total / count, expected)
    logits, shares = torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 0], [0.2, 0, 0.5, 0], [0, 0, 0, 0]])
    total, count = LOSSES["ce"](logits, shares)
    assert count == 3, "an image of which nothing is known counts, too"
    torch.testing.assert_close(total, -(shares * logits.log_softmax(1)).sum())


@pytest.mark.parametrize("name", ["dice", "jaccard"])
def test_overlap_losses(name):
    logits, labels = case()
    per_image = []
    for i in range(3):
        probs, truth = pixels(logits, labels, i)
        losses = []
        for k in truth.unique().tolist():
            p, t = probs[:, k], (truth == k).float()
            inter = (p * t).sum()
            dice = 2 * inter / (p.sum() + t.sum())
            losses.append(1 - (dice if name == "dice" else dice / (2 - dice)))
        per_image.append(sum(losses) / len(losses))
    total, count = LOSSES[name](logits, labels)
    assert count == 3
    assert total.item() == pytest.approx(sum(per_image).item(), rel=1e-5)


def test_ohem_keeps_the_hardest_quarter():
    logits, labels = case()
    expected, kept = 0.0, 0
    for i in range(3):
        probs, truth = pixels(logits, labels, i)
        losses = sorted((-probs[range(len(truth)), truth].log()).tolist(), reverse=True)
        n = math.ceil(len(losses) / 4)
        expected, kept = expected + sum(losses[:n]), kept + n
    total, count = LOSSES["ohem"](logits, labels)
    assert count == kept
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert mean("ohem", logits, labels) > mean("ce", logits, labels)


def test_lovasz_is_one_minus_iou_at_the_vertices():
    """All hard predictions of two classes on five pixels, one of them ignored."""
    labels = torch.tensor([0, 1, 1, 0, IGNORE])
    for hard in itertools.product([0, 1], repeat=5):
        hard = torch.tensor(hard)
        logits = 200 * F.one_hot(hard, 2).T.float()[None, :, None]
        valid = labels != IGNORE
        losses = []
        for k in (0, 1):
            p, t = (hard == k) & valid, labels == k
            losses.append(1 - (p & t).sum() / (p | t).sum())
        value = mean("lovasz", logits, labels[None, None])
        assert value == pytest.approx(sum(losses).item() / 2, abs=1e-6), hard


def test_lovasz_against_algorithm_1():
    logits, labels = case()
    per_image = []
    for i in range(3):
        probs, truth = pixels(logits, labels, i)
        losses = []
        for k in truth.unique().tolist():
            t = truth == k
            errors = torch.where(t, 1 - probs[:, k], probs[:, k])
            wrong, loss, before = torch.zeros_like(t), 0.0, 0.0
            for j in errors.argsort(descending=True).tolist():
                wrong[j] = True  # the Jaccard loss of the set of pixels that are wrong so far
                after = (wrong.sum() / (t | wrong).sum()).item()
                loss, before = loss + errors[j].item() * (after - before), after
            losses.append(loss)
        per_image.append(sum(losses) / len(losses))
    total, count = LOSSES["lovasz"](logits, labels)
    assert count == 3
    assert total.item() == pytest.approx(sum(per_image), rel=1e-4)


# ---- all of them


@pytest.mark.parametrize("name", LOSSES)
def test_zero_when_perfect_and_confident(name):
    _, labels = case()
    logits = 200 * F.one_hot(labels.where(labels != IGNORE, 0), K).movedim(-1, 1).float()
    assert mean(name, logits, labels) == pytest.approx(0, abs=1e-6)
    worst = {"ce": 1, "ohem": 1, "dice": 0.9, "jaccard": 0.9, "lovasz": 0.9}[name]
    assert mean(name, -logits, labels) > worst


@pytest.mark.parametrize("name", LOSSES)
def test_ignored_pixels_never_count(name):
    logits, labels = case()
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    noise = 50 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    other = torch.where(ignored, noise, logits).requires_grad_()
    total, count = LOSSES[name](other, labels)
    expected, expected_count = LOSSES[name](logits, labels)
    torch.testing.assert_close(total.detach(), expected)
    assert count == expected_count
    total.backward()
    assert other.grad.isfinite().all() and (other.grad[ignored] == 0).all()
    assert other.grad[~ignored].abs().max() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled(name):
    logits, labels = case()
    logits.requires_grad_()
    total, count = LOSSES[name](logits, torch.full_like(labels, IGNORE))
    assert total == 0 and count == 0
    (total / count.clamp_min(1)).backward()
    assert (logits.grad == 0).all()
    # an image without labels beside others is as if it were not there
    labels[0] = IGNORE
    for ours, expected in zip(
        LOSSES[name](logits, labels), LOSSES[name](logits[1:], labels[1:]), strict=True
    ):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_sums_over_processes_are_those_of_one(name):
    logits, labels = case()
    shards = [LOSSES[name](logits[rows], labels[rows]) for rows in (slice(1), slice(1, 3))]
    for whole, parts in zip(LOSSES[name](logits, labels), zip(*shards, strict=True), strict=True):
        torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_that_of_finite_differences(name):
    logits, labels = case(2, 3, 3)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels)[0], logits, atol=1e-5)


# ---- schedule


def test_lr_at():
    rates = [lr_at(step, 200, 3e-3) for step in range(200)]  # 10 steps of warm-up
    assert rates[:10] == pytest.approx([3e-4 * (i + 1) for i in range(10)])
    assert rates[10] == max(rates) == pytest.approx(3e-3)
    assert rates[105] == pytest.approx(1.5e-3), "half-way down the cosine"
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-6
    assert lr_at(200, 200, 3e-3) == pytest.approx(0, abs=1e-12)
    for steps in (1, 2):  # the shortest runs train too
        assert lr_at(0, steps, 1.0) == 1.0
