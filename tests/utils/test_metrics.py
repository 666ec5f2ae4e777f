"""Metrics and rewards against plain loops, scipy and hand-made cases."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from utils import metrics
from utils.rewards.rewards import REWARDS, build

K, IGNORE = 4, 255


def masks(n=6, height=9, width=7, classes=K, seed=0):
    """Random predictions and labels (n, height, width); a tenth of the labels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, height, width), generator=generator)
    shape = labels.shape
    right = torch.rand(shape, generator=generator) < 0.5
    preds = torch.where(right, labels, torch.randint(0, classes, shape, generator=generator))
    labels[torch.rand(shape, generator=generator) < 0.1] = IGNORE
    return preds, labels


def by_hand(pred, label):
    """F1 and IoU of each class, None where neither mask has it; accuracy. One image, plain loop."""
    pairs = [(p, t) for p, t in zip(pred.flatten().tolist(), label.flatten().tolist(), strict=True)]
    pairs = [(p, t) for p, t in pairs if t != IGNORE]
    f1, iou = [], []
    for k in range(K):
        both = sum(p == k and t == k for p, t in pairs)
        either = sum(p == k or t == k for p, t in pairs)
        f1.append(2 * both / (both + either) if either else None)
        iou.append(both / either if either else None)
    return f1, iou, sum(p == t for p, t in pairs) / len(pairs)


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values)


# ---- counts


def test_confusion_and_its_metrics_against_a_loop():
    preds, labels = masks()
    labels[0][labels[0] == 2] = 1  # class 2 is absent from one image
    preds[0][preds[0] == 2] = 1
    counts = metrics.confusion(preds, labels, K)
    assert counts.shape == (6, K, K) and counts.dtype == torch.int64
    for i in range(6):
        f1, iou, accuracy = by_hand(preds[i], labels[i])
        for ours, expected in ((metrics.f1_per_class, f1), (metrics.iou_per_class, iou)):
            expected = [math.nan if v is None else v for v in expected]
            assert ours(counts[i]).tolist() == pytest.approx(expected, nan_ok=True)
        assert metrics.mean_f1(counts[i]).item() == pytest.approx(mean(f1[1:]))
        assert metrics.miou(counts[i]).item() == pytest.approx(mean(iou))
        assert metrics.pixel_accuracy(counts[i]).item() == pytest.approx(accuracy)
    assert by_hand(preds[0], labels[0])[0][2] is None
    for metric in (metrics.mean_f1, metrics.miou, metrics.pixel_accuracy):  # a batch is its images
        assert torch.equal(metric(counts), torch.stack([metric(c) for c in counts]))


def test_confusion_rows_are_labels():
    counts = metrics.confusion(torch.tensor([[[3, 3]]]), torch.tensor([[[1, IGNORE]]]), K)
    expected = torch.zeros(1, K, K, dtype=torch.long)
    expected[0, 1, 3] = 1
    assert torch.equal(counts, expected)


def test_confusion_takes_uint8():
    preds, labels = masks()
    assert torch.equal(metrics.confusion(preds.byte(), labels.byte(), K), metrics.confusion(preds, labels, K))


def test_absent_class_is_not_scored():
    labels = torch.tensor([[[0, 1, 1, 2]]])
    counts = metrics.confusion(labels, labels, K)[0]
    assert math.isnan(metrics.f1_per_class(counts)[3])
    assert metrics.mean_f1(counts) == 1 and metrics.miou(counts) == 1
    wrong = metrics.confusion(torch.tensor([[[0, 1, 1, 3]]]), labels, K)[0]
    assert metrics.f1_per_class(wrong).tolist() == [1, 1, 0, 0], "predicted only: scored, 0"


# ---- boundaries


def boundary_by_hand(pred, label, tolerance):
    square = np.ones((3, 3))
    valid = label != IGNORE
    edges = []
    for ids in (pred, label):
        inside = [(ids == k) & valid for k in range(K)]
        edges.append([m & ~ndimage.binary_erosion(m, square, border_value=1) for m in inside])
    near = [[ndimage.binary_dilation(m, square, tolerance) for m in side] for side in edges]
    return [
        [(p & nt).sum(), p.sum(), (t & np_).sum(), t.sum()]
        for p, t, np_, nt in zip(*edges, *near, strict=True)
    ]


@pytest.mark.parametrize("tolerance", [1, 2])
def test_boundary_counts_against_scipy(tolerance):
    preds, labels = masks(4, 6, 5, seed=1)  # 6 x 5 blocks of 4 x 4 pixels
    preds, labels = (x.repeat_interleave(4, 1).repeat_interleave(4, 2) for x in (preds, labels))
    preds = preds.roll(1, 2)
    counts = metrics.boundary_counts(preds, labels, K, tolerance=tolerance)
    for i in range(4):
        assert (
            counts[i].tolist()
            == np.array(boundary_by_hand(preds[i].numpy(), labels[i].numpy(), tolerance)).tolist()
        )
    assert (counts[..., 0] < counts[..., 1]).any() and (counts[..., 0] > 0).any()


def test_boundary_f1_forgives_the_tolerance():
    labels = torch.zeros(1, 12, 12, dtype=torch.long)
    labels[:, :, 6:] = 1
    for shift, expected in ((0, 1.0), (1, 1.0), (4, 0.0)):
        counts = metrics.boundary_counts(labels.roll(shift, 2).index_fill(2, torch.arange(4), 0), labels, 2)
        assert metrics.boundary_f1(counts[0]).item() == pytest.approx(expected), shift
    nothing = metrics.boundary_counts(labels * 0, labels * 0, 2)
    assert math.isnan(metrics.boundary_f1(nothing[0]))


# ---- calibration


def test_ece_of_a_case_by_hand():
    confident = torch.tensor([0.9, 0.9, 0.9, 0.6, 0.9])
    probs = torch.stack([confident, 1 - confident])[None, :, None]
    labels = torch.tensor([[[0, 0, 1, 0, IGNORE]]])
    counts = metrics.calibration_counts(probs, labels)
    assert counts[:, 0].sum() == 4
    expected = 3 / 4 * abs(0.9 - 2 / 3) + 1 / 4 * abs(0.6 - 1)
    assert metrics.ece(counts) == pytest.approx(expected, abs=1e-6)
    sure = metrics.calibration_counts(torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[0]]]))
    assert metrics.ece(sure) == 0 and sure[-1].tolist() == [1, 1, 1]


# ---- bootstrap


def test_bootstrap():
    preds, labels = masks(48, seed=2)
    good = (torch.arange(48) % 3 == 0).view(-1, 1, 1)
    preds = torch.where(good & (labels != IGNORE), labels, preds)  # people differ
    counts = metrics.confusion(preds, labels, K)
    names = [f"p{i}" for i in range(48)]
    assert metrics.bootstrap(counts, ["a"] * 48) is None
    widths = []
    for n in (6, 48):
        low, high = metrics.bootstrap(counts[:n], names[:n])
        assert low < metrics.mean_f1(counts[:n].sum(0)) < high
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
    assert metrics.bootstrap(counts, names) == metrics.bootstrap(counts, names)
    people = [f"p{i % 3}" for i in range(48)]  # three groups, 16 images each, far apart
    low, high = metrics.bootstrap(counts, people)
    assert high - low > 2 * widths[1], "images of one person are drawn together"


def test_bootstrap_is_the_standard_error():
    """Accuracy of people with one pixel each: the interval of a binomial share."""
    right = torch.arange(400) % 4 > 0
    counts = torch.zeros(400, 2, 2, dtype=torch.long)
    counts[right, 0, 0], counts[~right, 0, 1] = 1, 1
    low, high = metrics.bootstrap(counts, list(range(400)), metrics.pixel_accuracy, 4000)
    error = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert [low, high] == pytest.approx([0.75 - error, 0.75 + error], abs=0.006)


# ---- a whole data set


class Data:
    """Seven images with masks, the form that `measure` reads; class 3 has no label."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, 3, (7, 8, 8), dtype=torch.uint8, generator=generator)
        self.labels[:, 0] = IGNORE

    def __len__(self):
        return 7

    def __getitem__(self, rows):
        return {"image": self.images[rows], "semantic": self.labels[rows]}


def predict(images):
    """Logits of three classes from the three channels; the fourth is never chosen."""
    logits = images.float() / 64
    return torch.cat([logits, torch.full_like(logits[:, :1], -9)], 1)


def test_measure_does_not_depend_on_batches():
    whole = metrics.measure(predict, Data(), "semantic", K, batch_size=7)
    assert whole["confusion"].sum() == 7 * 7 * 8 == whole["calibration"][:, 0].sum()
    for batch_size in (1, 2, 3, 16):
        parts = metrics.measure(predict, Data(), "semantic", K, batch_size)
        assert torch.equal(parts["confusion"], whole["confusion"])
        assert torch.equal(parts["boundary"], whole["boundary"])
        torch.testing.assert_close(parts["calibration"], whole["calibration"])


def test_measure_does_not_depend_on_shards():
    whole = metrics.measure(predict, Data(), "semantic", K)
    shards = [metrics.measure(predict, Data(), "semantic", K, 2, rank, 3) for rank in range(3)]
    for rank, shard in enumerate(shards):
        assert torch.equal(shard["confusion"], whole["confusion"][rank::3])
    for key in ("boundary", "calibration"):
        torch.testing.assert_close(sum(s[key] for s in shards), whole[key])


class First(Data):
    """Its first images alone."""

    def __init__(self, n):
        super().__init__()
        self.images, self.labels = self.images[:n], self.labels[:n]

    def __len__(self):
        return len(self.images)


REWARD = build(["f1"], "abcd")[0]
JUDGED = {"number": REWARD, "sums": REWARD.sums, "none": None}  # rows of one number, of many, no rows


def measure_as(rank, world, meeting, out):
    """One process of `world`: what it measures of one image, of two and of seven, into a file."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    found = {
        (n, name): metrics.measure(predict, First(n), "semantic", K, 2, rank, world, reward)
        for n in (1, 2, 7)
        for name, reward in JUDGED.items()
    }
    torch.save(found, f"{out}.{rank}")
    torch.distributed.destroy_process_group()


def test_processes_without_an_image_count_nothing(tmp_path):
    out = tmp_path / "found"
    args = (3, tmp_path / "meeting", out)
    torch.multiprocessing.start_processes(measure_as, args, nprocs=3, start_method="fork")
    for rank in range(3):
        for (n, name), found in torch.load(f"{out}.{rank}").items():
            whole = metrics.measure(predict, First(n), "semantic", K, reward=JUDGED[name])
            assert found.keys() == whole.keys() and ("reward" in found) == (name != "none")
            for key in whole:
                torch.testing.assert_close(found[key], whole[key], msg=f"{key} of {n} images, rank {rank}")


def test_summary_and_table_with_an_absent_class():
    counts = metrics.measure(predict, Data(), "semantic", K)
    result = metrics.summary(counts, ["background", "skin", "hair", "hat"])
    assert result["per_class"]["hat"] == {"f1": None, "iou": None, "support": 0}
    assert result["n_images"] == 7
    scored = [result["per_class"][name]["f1"] for name in ("skin", "hair")]
    assert result["mean_f1"] == pytest.approx(sum(scored) / 2, abs=1e-6)
    lines = metrics.table(result).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["background", "skin", "hair", "hat"]
    assert lines[-1].split() == ["hat", "-", "-", "0"]
    flat = metrics.scalars("val", result)
    assert flat["val/f1/skin"] == scored[0] and "val/f1/hat" not in flat
    assert flat["val/mean_f1"] == result["mean_f1"]


def test_summary_with_nothing_labelled():
    data = Data()
    data.labels[:] = IGNORE
    result = metrics.summary(metrics.measure(predict, data, "semantic", K), list("abcd"))
    assert result["mean_f1"] is None and result["ece"] is None
    assert "mean_f1 -" in metrics.table(result)


# ---- rewards


@pytest.mark.parametrize("name", REWARDS)
def test_reward_is_one_number_for_each_image(name):
    reward = build([name], "abcd")[0]
    preds, labels = masks()
    values = reward(preds, labels)
    assert values.shape == (6,) and len(values.unique()) > 1
    for i in range(6):
        f1, iou, accuracy = by_hand(preds[i], labels[i])
        expected = {
            "f1": mean(f1[1:]),
            "dice": mean(f1),
            "miou": mean(iou),
            "accuracy": accuracy,
            "worst_f1": min(x for x in f1[1:] if x == x),
            "boundary_f1": metrics.boundary_f1(
                metrics.boundary_counts(preds[i : i + 1], labels[i : i + 1], K)
            ).item(),
        }[name]
        assert values[i].item() == pytest.approx(expected)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(reward(preds[order], labels[order]), values[order])


@pytest.mark.parametrize("name", REWARDS)
def test_ignored_pixels_never_count(name):
    reward = build([name], "abcd")[0]
    preds, labels = masks()
    values = reward(preds, labels)
    other = torch.where(labels == IGNORE, (preds + 1) % K, preds)
    assert torch.equal(reward(other, labels), values)
    assert torch.equal(metrics.boundary_counts(other, labels, K), metrics.boundary_counts(preds, labels, K))
    nothing = torch.full_like(labels, IGNORE)
    assert torch.equal(reward(preds, nothing), torch.zeros(6, dtype=torch.double))
    valid = torch.where(labels == IGNORE, 0, labels)
    assert torch.equal(reward(valid, labels), torch.ones(6, dtype=torch.double))
