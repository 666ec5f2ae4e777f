"""What a teacher says: targets, thresholds, and what is measured of it."""

import math

import pytest
import torch
from torch import nn

from models import build_model
from utils.teaching import (
    BINS,
    UNSURE,
    class_thresholds,
    distillation,
    hard_labels,
    measure_statistics,
    norms_of,
    pseudo_scalars,
    soften,
    survey,
    targets_of,
    vanished,
    yaw_bins,
)

CLASSES = ["background", "skin", "eye"]


@pytest.mark.parametrize("shape", [(4, 5), (2, 5, 3, 4)])
def test_the_gradient_of_distillation_is_the_difference(shape):
    """T (p_s - p_t), of images and of pixels; zero where the two agree."""
    student, teacher = torch.randn(2, *shape, dtype=torch.double).unbind()
    for temperature in (1.0, 2.0, 4.0):
        target = soften(teacher.softmax(1), temperature)
        assert torch.allclose(target, (teacher / temperature).softmax(1))
        logits = student.clone().requires_grad_(True)
        loss = distillation(logits, target, temperature)
        assert loss.shape == (shape[0], *shape[2:]) and (loss > 0).all()
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.allclose(gradient, temperature * ((student / temperature).softmax(1) - target))
        logits = teacher.clone().requires_grad_(True)
        loss = distillation(logits, target, temperature)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.abs().max() < 1e-6 and gradient.abs().max() < 1e-6
    nothing = distillation(student, torch.zeros_like(student), 2.0)
    assert (nothing == 0).all(), "where nothing is known nothing is lost"


def test_half_of_each_class_is_kept_however_unsure():
    """... at each |yaw|; and without --keep one threshold holds for all."""
    torch.manual_seed(0)
    confidence = torch.rand(6, 100)
    preds = (torch.arange(100) % 10).clamp_max(2).expand(6, -1)  # 10, 10 and 80 of each photo
    confidence[preds == 0] *= 0.2  # a class that is never sure
    bins = torch.tensor([0, 0, 0, 6, 6, 6])
    confidence[3:] *= 0.5  # and photos that never are
    found = class_thresholds(confidence, preds, bins, 4, 1.0, 0.5)
    assert found.shape == (BINS, 4)
    sure = confidence >= found[bins].gather(1, preds)
    for b in (0, 6):
        for k in range(3):
            assert sure[bins == b][preds[bins == b] == k].float().mean() == 0.5, (b, k)
    assert (found[:, 3] == 1).all(), "a class that is nowhere"
    everywhere = class_thresholds(confidence, preds, torch.zeros_like(bins), 4, 1.0, 0.5)[0]
    assert torch.equal(found[1:6], everywhere.expand(5, -1)), "no photo at these angles: as of all"
    lower = class_thresholds(confidence, preds, bins, 4, 0.3, 0.5)
    assert torch.equal(lower, found.clamp_max(0.3)), "the smaller one of the two holds"
    assert (class_thresholds(confidence, preds, bins, 4, 0.9, 0.0) == 0.9).all()
    everything = class_thresholds(confidence, preds, bins, 4, 1.0, 1.0)
    assert (confidence >= everything[bins].gather(1, preds)).all()


def test_a_label_is_the_likeliest_class_where_it_is_sure():
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]]).view(2, 3, 1, 1)
    thresholds = torch.tensor([[0.6, 0.9, 0.9], [0.0, 0.8, 0.0]])
    labels = hard_labels(probs, thresholds)
    assert labels.dtype == torch.uint8 and labels.flatten().tolist() == [0, UNSURE]


def test_an_image_is_taught_shares_of_classes():
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    shares = hard_labels(probs, torch.tensor([[0.6, 0.9, 0.9], [0.0, 0.8, 0.0]]))
    assert shares.tolist() == [[1, 0, 0], [0, 0, 0]]
    mixed = torch.lerp(shares, shares.flip(0), 0.25)  # as CutMix does
    target, counts, teaches = targets_of(torch.cat([mixed, torch.zeros(1, 3)]))
    assert target[:, 0].tolist() == [0.75, 0.25, 0]
    assert counts.all() and teaches.tolist() == [True, True, False]
    maps = torch.tensor([[[0, UNSURE, 255]]], dtype=torch.uint8)
    target, counts, teaches = targets_of(maps)
    assert target.tolist() == [[[0, 255, 255]]] and target.dtype == torch.long
    assert counts.tolist() == [[[True, True, False]]] and teaches.tolist() == [[[True, False, False]]]


class Photos:
    """Photos whose red is the class that `label` below sees, and whose green its probability."""

    def __init__(self, seen, masks, yaws):
        self.images = torch.stack([torch.stack([s * 1.0, p, p]) for s, p in seen])
        self.masks, self.yaws = masks, yaws

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return {"image": self.images[rows], "semantic": self.masks[rows], "index": torch.tensor(rows)}


class Images(Photos):
    """The same without masks."""

    def __getitem__(self, rows):
        return {"image": self.images[rows], "index": torch.tensor(rows)}


def label(images):
    seen, sure = images[:, 0].long(), images[:, 1]
    probs = (1 - sure)[:, None].expand(-1, 3, -1, -1) / 2
    return probs.scatter(1, seen[:, None], sure[:, None])


def test_what_a_teacher_says_is_measured_by_class_and_yaw():
    rows = torch.arange(4).view(2, 2)
    seen = [((rows == 0).long(), torch.full((2, 2), 0.8)), ((rows < 2).long() * 2, 0.5 + rows / 10)]
    masks = torch.stack([torch.zeros(2, 2), torch.full((2, 2), 255)]).byte()
    masks[0, 0, 0] = 1
    data = Photos(seen, masks, [-20.0, 88.0])
    found = survey(label, data, 3, 1, threshold=0.9, keep=0.5)
    assert torch.equal(found["shares"][1], torch.tensor([0.75, 0.25, 0]))
    assert torch.equal(found["shares"][6], torch.tensor([0.5, 0, 0.5]))
    assert found["shares"][[0, 2, 3, 4, 5]].isnan().all()
    assert torch.allclose(found["thresholds"][1], torch.tensor([0.8, 0.8, 0.9]))
    assert torch.allclose(found["thresholds"][6], torch.tensor([0.8, 0.9, 0.6]))
    # all three of .8 at 15 degrees and one of two (.7, .8) at 90; one of two eyes (.5, .6)
    assert torch.allclose(found["kept"], torch.tensor([4 / 5, 1, 1 / 2]))
    assert found["confusion"][1].tolist() == [[3, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert found["confusion"].sum() == 4, "255 is not counted"
    named = pseudo_scalars(found, CLASSES)
    assert named["pseudo/share/skin"] == 0.125 and named["pseudo/kept/eye"] == 0.5
    assert named["pseudo/threshold/eye"] == pytest.approx(0.6)
    assert named["pseudo/f1/skin"] == named["pseudo/mean_f1"] == named["pseudo/f1_at_15/skin"] == 1
    assert math.isnan(named["pseudo/f1_at_90/skin"])
    assert yaw_bins(data, {"index": torch.tensor([0, 1])}).tolist() == [1, 6]
    assert yaw_bins(data, {"index": torch.tensor([0]), "yaw": torch.tensor([-120.0])}).tolist() == [6]
    data.yaws[0] = None
    assert yaw_bins(data, {"index": torch.tensor([0])}).tolist() == [0]


def test_a_class_counts_as_lost_below_a_quarter_of_what_it_was():
    first = torch.full((BINS, 3), torch.nan)
    first[0], first[6] = torch.tensor([0.7, 0.26, 0.04]), torch.tensor([0.7, 0.2996, 0.0004])
    photos = torch.tensor([4, 0, 0, 0, 0, 0, 4])
    assert vanished(first, first, photos, [], CLASSES) is None
    later = first.clone()
    later[6, 2] = 0  # so small that it may come and go
    later[0, 2] = 0.011
    assert vanished(later, first, photos, [], CLASSES) is None
    later[0, 2] = 0.009
    said = vanished(later, first, photos, [], CLASSES)
    assert said == "eye at |yaw| 0: 4.00% of the pixels at first, now 0.90%"
    assert vanished(later, first, photos, [(1, 2)], CLASSES) is None, "one side of two may vanish in profile"
    assert vanished(later, first, photos - 1, [], CLASSES) is None, "three photos say nothing"


def test_what_a_teacher_says_of_images_is_measured_by_class():
    """... ten of which may come and go, however many classes there are."""
    seen = [(torch.tensor(i % 3 // 2), torch.tensor(0.5 + i / 100)) for i in range(30)]
    data = Images(seen, None, [None] * 30)
    of_images = lambda images: label(images[:, :, None, None])[:, :, 0, 0]
    found = survey(of_images, data, 3, 7, threshold=0.9, keep=0.5)
    assert torch.allclose(found["shares"][0], torch.tensor([2 / 3, 1 / 3, 0])) and found["photos"][0] == 30
    assert torch.allclose(found["thresholds"][0], torch.tensor([0.65, 0.67, 0.9]))
    assert torch.allclose(found["kept"][:2], torch.tensor([0.5, 0.5])) and not found["confusion"].any()
    first, later = found["shares"], found["shares"].clone()
    later[0, 1] = 0
    assert vanished(later, first, found["photos"], [], CLASSES, "images") is None
    later[0, 0] = 0.1
    said = vanished(later, first, found["photos"], [], CLASSES, "images")
    assert said == "background: 66.67% of the images at first, now 10.00%"


class Batches:
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        return {"image": self.images[rows]}


def test_statistics_are_those_of_the_photos():
    """Of the first layer they follow directly: the mean of its input, and the variance within batches."""
    torch.manual_seed(0)
    images = torch.rand(6, 3, 16, 16)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4))
    network[1].running_mean += 9
    before = {k: v.clone() for k, v in network.named_parameters()}
    measure_statistics(lambda x, by: by(x), network, Batches(images), 3)
    seen = network[0](images)
    batches = [seen[:3], seen[3:]]
    mean = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    var = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    assert torch.allclose(network[1].running_mean, mean, atol=1e-6)
    assert torch.allclose(network[1].running_var, var, atol=1e-6)
    # no dropout: what the second layer saw has a mean of zero and a variance of one
    assert network[3].running_mean.abs().max() < 1e-5
    assert (network[3].running_var - 1).abs().max() < 1e-2
    assert all(norm.momentum == 0.1 and not norm.training for norm in norms_of(network))
    assert all(torch.equal(v, before[k]) for k, v in network.named_parameters())


def test_networks_without_batchnorm_have_no_statistics():
    network = build_model("unet_gn", 3)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    measure_statistics(lambda x, by: by(x)["semantic"], network, Batches(torch.rand(2, 3, 32, 32)), 2)
    assert norms_of(network) == [] and norms_of(build_model("unet", 3))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
