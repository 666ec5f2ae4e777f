"""Figures of image classification, from the probabilities and the label of each image.

A class with no image is not scored (None), but for F1 where it was guessed: then 0. The mean of F1 is over
classes that are labelled or guessed, that of average precision over labelled ones. All values are in [0, 1].
"""

import math

import torch

from utils import dist, metrics

FEW = 10  # as many classes are shown in full; of more, only so many


@torch.no_grad()
def measure(predict, data, keys, batch_size=16, rank=0, world=1):
    """Probabilities and labels of a data set, from which every figure follows; the same on all processes.

    predict: (B, 3, H, W) uint8 -> {key: (B, K) float32 logits}. data[[i, j]] -> {"image", key: (B,) int64}.
    Rank r reads images r, r + world, ...: none is padded, none counted twice.
    Returns {key: {"probs": (N, K) float64, "labels": (N,) int64}} on the CPU. Raises UserError: logits that
    are not finite.
    """
    rows = list(range(rank, len(data), world))
    parts = []
    for start in range(0, max(1, len(rows)), batch_size):
        # more processes than images: one image to see what the others' rows look like, cut off below
        batch = data[rows[start : start + batch_size] or [0]]
        outputs = predict(batch["image"])
        for key in keys:
            metrics.check_finite(outputs[key])
        probs = {key: outputs[key].double().softmax(1).cpu() for key in keys}
        parts.append({key: {"probs": probs[key], "labels": batch[key].cpu()} for key in keys})

    def whole(key, what):
        return dist.gather_rows(torch.cat([part[key][what] for part in parts])[: len(rows)], len(data))

    return {key: {what: whole(key, what) for what in ("probs", "labels")} for key in keys}


def average_precision(scores, relevant):
    """scores (N,), relevant (N,) bool -> the sum over thresholds of (R_n - R_n-1) P_n, with precision P and
    recall R of all that score at least so much: images of one score come in together, and nothing is
    interpolated. NaN where all are relevant or none is, and there is nothing to rank."""
    if relevant.all():
        return math.nan
    order = scores.argsort(descending=True)
    last = torch.ones(len(scores), dtype=torch.bool)  # of those with one score
    last[:-1] = scores[order].diff() != 0
    right = relevant[order].cumsum(0)[last].double()
    found = (torch.arange(len(scores)) + 1)[last]
    recall = right / right[-1]
    return (right / found * recall.diff(prepend=recall.new_zeros(1))).sum().item()


def interval(share, n):
    """95 % interval [low, high] of a share of n independent images (Wilson, 1927)."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return [round(max(0.0, middle - half), 6), round(min(1.0, middle + half), 6)]


def summary(measured, classes):
    """What `measure` found of one key as plain numbers: the headline figures, each class, and the confusion
    matrix, whose rows are labels. classes: K names."""
    probs, labels = measured["probs"], measured["labels"]
    n, k = probs.shape
    confidence, preds = probs.max(1)
    right = preds == labels
    counts = torch.bincount(labels * k + preds, minlength=k * k).view(k, k)
    f1 = metrics.f1_per_class(counts)
    ap = [average_precision(probs[:, i], labels == i) for i in range(k)]
    ap = torch.tensor(ap, dtype=torch.double)

    def plain(x):
        return None if math.isnan(x) else round(float(x), 6)

    def by_class(values):
        return dict(zip(classes, map(plain, values), strict=True))

    accuracy = right.double().mean().item()
    return {
        "accuracy": plain(accuracy),
        "macro_f1": plain(f1.nanmean()),
        "map": plain(ap.nanmean()),
        "ece": plain(metrics.ece(metrics.binned(confidence, right))),
        "n_images": n,
        "f1": by_class(f1),
        "ap": by_class(ap),
        "support": dict(zip(classes, counts.sum(1).tolist(), strict=True)),
        "confusion": counts.tolist(),
        "ci95": {"accuracy": interval(accuracy, n)},
    }


def scalars(prefix, result):
    """A `summary` as TensorBoard scalars: prefix/accuracy, ..., prefix/f1/<class>."""
    flat = {f"{prefix}/{k}": v for k, v in result.items() if isinstance(v, float)}
    return flat | {f"{prefix}/f1/{name}": v for name, v in result["f1"].items() if v is not None}


def table(result):
    """A `summary` as lines of text: of up to `FEW` classes each and the confusion matrix, of more the worst
    and what is confused most."""

    def show(x):
        return "   -  " if x is None else f"{x:6.3f}"

    heads = ("accuracy", "macro_f1", "map", "ece")
    names = list(result["f1"])
    wide = max(16, 2 + max(map(len, names)))
    scored = [name for name in names if result["f1"][name] is not None]
    worst = sorted(scored, key=lambda name: result["f1"][name])[:FEW]
    many = len(names) > FEW
    lines = ["  ".join(f"{head} {show(result[head]).strip()}" for head in heads), ""]
    lines += [f"the worst {len(worst)} of {len(names)} classes:"] * many
    lines.append(f"{'class':<{wide}}{'F1':>6}{'AP':>8}{'images':>12}")
    for name in worst if many else names:
        f1, ap = (show(result[key][name]) for key in ("f1", "ap"))
        lines.append(f"{name:<{wide}}{f1}  {ap}{result['support'][name]:>12,}")
    lines += ["", *(confused(result, names) if many else matrix(result, names, wide))]
    return "\n".join(lines).rstrip()


def matrix(result, names, wide):
    """The confusion matrix as lines of text: a row for each truth, a column for each guess, by number."""
    width = 3 + len(f"{result['n_images']:,}")
    rows = enumerate(zip(names, result["confusion"], strict=True))
    return [
        f"{'truth, guess':<{wide + 2}}" + "".join(f"{i:>{width}}" for i in range(len(names))),
        *(f"{i} {name:<{wide}}" + "".join(f"{n:>{width},}" for n in row) for i, (name, row) in rows),
    ]


def confused(result, names):
    """Lines of text about the pairs of classes that are confused most."""
    cells = [(row[j], i, j) for i, row in enumerate(result["confusion"]) for j in range(len(row)) if i != j]
    most = sorted(((n, i, j) for n, i, j in cells if n), key=lambda cell: -cell[0])[:FEW]
    return [f"{n:,} of {result['support'][names[i]]:,} {names[i]} taken for {names[j]}" for n, i, j in most]
