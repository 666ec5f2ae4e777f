"""Segmentation metrics from int64 counts summed over images; the same functions score one mask.

A class with no pixel in either the labels or the predictions is not scored (NaN). F1 means are over
classes without background (class 0); IoU means include it. All values are in [0, 1].
"""

import math

import numpy as np
import torch

from utils import dist
from utils.errors import UserError

BINS = 15  # of confidence, Guo et al. 2017
IGNORE_INDEX = 255  # the label of a pixel that never counts
BACKGROUND = ("background", "_background_", "__background__")  # what tools call class 0, in lower case


def confusion(preds, labels, num_classes):
    """preds, labels (B, H, W) integer -> (B, K, K) int64, rows are labels; ignored pixels never count."""
    batch = len(preds)
    k = num_classes
    valid = labels != IGNORE_INDEX
    image = torch.arange(batch, device=preds.device).view(-1, 1, 1)
    cells = (image * k + labels.long()) * k + preds.long()
    return torch.bincount(cells[valid], minlength=batch * k * k).view(batch, k, k)


def f1_of(right, predicted, labelled):
    """Pixels of a class, float64 of one shape -> F1, NaN where it is neither predicted nor labelled."""
    return 2 * right / (predicted + labelled)


def iou_of(right, predicted, labelled):
    """The same -> intersection over union."""
    return right / (predicted + labelled - right)


def areas(counts):
    """(..., K, K) -> right, predicted and labelled pixels of each class, (..., K) float64."""
    counts = counts.double()
    return counts.diagonal(dim1=-2, dim2=-1), counts.sum(-2), counts.sum(-1)


def f1_per_class(counts):
    """(..., K, K) -> (..., K) float64: 2 TP / (labelled + predicted), NaN where both are none."""
    return f1_of(*areas(counts))


def iou_per_class(counts):
    """(..., K, K) -> (..., K) float64: TP / (labelled + predicted - TP), NaN where both are none."""
    return iou_of(*areas(counts))


def mean_f1(counts):
    """(..., K, K) -> (...): mean over scored classes, without background; NaN where there are none."""
    return f1_per_class(counts)[..., 1:].nanmean(-1)


def miou(counts):
    """(..., K, K) -> (...): mean IoU over scored classes, background included."""
    return iou_per_class(counts).nanmean(-1)


def pixel_accuracy(counts):
    """(..., K, K) -> (...): share of valid pixels that are right."""
    counts = counts.double()
    return counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1))


def one_hot(ids, valid, num_classes):
    """ids (B, H, W), valid (B, H, W) bool -> (B, K, H, W) bool, nothing where not valid."""
    classes = torch.arange(num_classes, device=ids.device).view(-1, 1, 1)
    return (ids[:, None] == classes) & valid[:, None]


def count(maps):
    """(..., H, W) bool -> (...) int64: how many are true. On a CPU several times as fast as `sum` alone: up
    to 255 rows are added up in bytes."""
    return sum(rows.sum(-2, dtype=torch.uint8).sum(-1) for rows in maps.split(255, -2))


def _around(masks, reach, join):
    """(..., H, W) bool: each pixel joined (&= or |=) with those up to `reach` away, rows then columns."""
    for axis in (-2, -1):
        size = masks.shape[axis]
        before = masks
        masks = masks.clone()
        for d in range(1, min(reach, size - 1) + 1):
            join(masks.narrow(axis, d, size - d), before.narrow(axis, 0, size - d))
            join(masks.narrow(axis, 0, size - d), before.narrow(axis, d, size - d))
    return masks


def boundary_maps(preds, labels, num_classes, tolerance=1):
    """(B, H, W) each -> (B, 4, K, H, W) bool: predicted boundary pixels near a true one, predicted, true
    ones near a predicted one, true (Csurka et al., BMVC 2013, with a square neighbourhood). A pixel's
    label reaches 1 + tolerance pixels far."""

    def boundary(ids):
        mask = one_hot(ids, labels != IGNORE_INDEX, num_classes)
        return mask & ~_around(mask, 1, torch.Tensor.logical_and_)

    p = boundary(preds)
    t = boundary(labels)
    near_p, near_t = (_around(edges, tolerance, torch.Tensor.logical_or_) for edges in (p, t))
    return torch.stack([p & near_t, p, t & near_p, t], 1)


def boundary_counts(preds, labels, num_classes, tolerance=1):
    """(B, H, W) each -> (B, K, 4) int64: how many pixels each of `boundary_maps` has."""
    return count(boundary_maps(preds, labels, num_classes, tolerance)).mT


def boundary_f1_of(hit_p, p, hit_t, t):
    """Boundary pixels of a class, float64 of one shape -> F1, NaN where there are none at all."""
    precision = hit_p / p.clamp_min(1)
    recall = hit_t / t.clamp_min(1)
    f1 = 2 * precision * recall / (precision + recall).clamp_min(1e-12)
    return f1.where(p + t > 0, torch.nan)


def boundary_f1(counts):
    """(..., K, 4) -> (...): mean over classes without background of the boundaries' F1."""
    return boundary_f1_of(*counts.double().unbind(-1))[..., 1:].nanmean(-1)


def calibration_counts(probs, labels):
    """probs (B, K, H, W), labels (B, H, W) -> (BINS, 3) float64: pixels, sum of confidence, right."""
    confidence, preds = probs.float().max(1)
    valid = labels != IGNORE_INDEX
    return binned(confidence[valid], (preds == labels)[valid])


def binned(confidence, right):
    """Two of one shape (N,), float in 0 to 1 and bool -> (BINS, 3) as `calibration_counts`."""
    bins = (confidence * BINS).long().clamp_max(BINS - 1)
    weights = (torch.ones_like(confidence), confidence, right)
    return torch.stack([torch.bincount(bins, w.double(), minlength=BINS) for w in weights], 1)


def ece(counts):
    """(BINS, 3) -> expected calibration error (Guo et al., 2017, eq. 3)."""
    n, confidence, right = counts.unbind(-1)
    return ((confidence - right).abs().sum() / n.sum()).item()


def bootstrap(counts, groups, metric=mean_f1, rounds=1000, seed=0):
    """95 % interval [low, high] of `metric` when people are drawn again with replacement.

    counts: (N, K, K); groups: N names. None where there is one group only.
    """
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return None
    per_group = torch.zeros(len(names), *counts.shape[1:], dtype=torch.double)
    per_group.index_add_(0, torch.from_numpy(index), counts.double())
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), rounds)
    values = metric(torch.einsum("rg,gij->rij", torch.from_numpy(draws).double(), per_group))
    return [float(np.nanquantile(values, q)) for q in (0.025, 0.975)]


def check_finite(logits):
    """Raises UserError: logits that are not finite."""
    extremes = torch.stack([logits.amax(), logits.amin()])  # NaN where one is; a tenth of the time of all
    if not extremes.isfinite().all():
        raise UserError("the network gives values that are not finite; a lower --lr, or --amp off")


@torch.no_grad()
def measure(predict, data, key, num_classes, batch_size=16, rank=0, world=1, reward=None):
    """Counts over a whole data set, from which every figure follows; the same on all processes.

    predict: (B, 3, H, W) uint8 -> (B, K, H, W) float32 logits. data[[i, j]] -> {"image", key: labels}.
    Rank r reads images r, r + world, ...: none is padded, none counted twice.
    Returns {"confusion": (N, K, K), "boundary": (K, 4), "calibration": (BINS, 3)} on the CPU, and with
    a `reward`, (preds, labels) -> (B, ...) float64, {"reward": (N, ...)}. Raises UserError: logits that are
    not finite.
    """
    rows = range(rank, len(data), world)
    confusions = [torch.zeros(0, num_classes, num_classes, dtype=torch.long)]
    edges = torch.zeros(num_classes, 4, dtype=torch.long)
    bins = torch.zeros(BINS, 3, dtype=torch.double)
    rewards = []
    for start in range(0, len(rows), batch_size):
        batch = data[list(rows[start : start + batch_size])]
        logits = predict(batch["image"])
        check_finite(logits)
        labels = batch[key].to(logits.device)
        preds = logits.argmax(1)
        confusions.append(confusion(preds, labels, num_classes).cpu())
        edges += boundary_counts(preds, labels, num_classes).sum(0).cpu()
        bins += calibration_counts(logits.softmax(1), labels).cpu()
        rewards += [reward(preds, labels).double().cpu()] if reward else []
    if reward and not rewards:  # more processes than images: what the others' rows look like
        batch = data[[0]]
        logits = predict(batch["image"])
        like = reward(logits.argmax(1), batch[key].to(logits.device))
        rewards.append(like[:0].double().cpu())
    more = {"reward": dist.gather_rows(torch.cat(rewards), len(data))} if reward else {}
    return more | {
        "confusion": dist.gather_rows(torch.cat(confusions), len(data)),
        "boundary": dist.total(edges),
        "calibration": dist.total(bins),
    }


def summary(counts, classes):
    """What `measure` counted as plain floats: the headline figures and each class; NaN becomes None."""
    pooled = counts["confusion"].sum(0)

    def plain(x):
        return None if math.isnan(x) else round(float(x), 6)

    f1 = f1_per_class(pooled)
    iou = iou_per_class(pooled)
    support = pooled.sum(1)
    return {
        "mean_f1": plain(mean_f1(pooled)),
        "miou": plain(miou(pooled)),
        "pixel_accuracy": plain(pixel_accuracy(pooled)),
        "boundary_f1": plain(boundary_f1(counts["boundary"])),
        "ece": plain(ece(counts["calibration"])),
        "n_images": len(counts["confusion"]),
        "per_class": {
            name: {"f1": plain(f1[k]), "iou": plain(iou[k]), "support": int(support[k])}
            for k, name in enumerate(classes)
        },
    }


def scalars(prefix, result):
    """A `summary` as TensorBoard scalars: prefix/mean_f1, ..., prefix/f1/<class>."""
    flat = {f"{prefix}/{k}": v for k, v in result.items() if isinstance(v, float)}
    per_class = {f"{prefix}/f1/{name}": row["f1"] for name, row in result["per_class"].items()}
    return flat | {k: v for k, v in per_class.items() if v is not None}


def table(result):
    """A `summary` as lines of text, the best known figures first."""

    def show(x):
        return "   -  " if x is None else f"{x:6.3f}"

    heads = ("mean_f1", "miou", "pixel_accuracy", "boundary_f1", "ece")
    lines = ["  ".join(f"{h} {show(result[h]).strip()}" for h in heads), ""]
    lines.append(f"{'class':<16}{'F1':>6}{'IoU':>8}{'pixels':>12}")
    for name, row in result["per_class"].items():
        lines.append(f"{name:<16}{show(row['f1'])}  {show(row['iou'])}{row['support']:>12,}")
    return "\n".join(lines)


def before_and_after(before, after, keys):
    """Some figures of two summaries as lines of text, side by side."""
    rows = [f"{key:<16}{before[key]:8.4f}{after[key]:8.4f}" for key in keys]
    return "\n".join([f"{'validation':<16}{'before':>8}{'after':>8}", *rows])
