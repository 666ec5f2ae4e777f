"""Panoptic quality: of segments, which are the instances of things and, of every other class, all its pixels.

Kirillov et al., "Panoptic Segmentation", 2019 (1801.00868). A predicted segment and a true one of the same
category are a match where their intersection over union is above 0.5, so that neither has a second one. SQ is
the mean IoU of matches, RQ = matches / (matches + half of the missed + half of the invented), PQ = SQ * RQ.
Void pixels are in no union, and a segment without a match that lies in them by more than half is not
invented. All values but counts are in [0, 1].
"""

import math

import torch

from utils import dist, metrics
from utils.instances import called, segments
from utils.metrics import BACKGROUND, IGNORE_INDEX


def stuff_of(classes, things):
    """Ids of the classes that are in no thing, but for class 0 where that is background: by its name, or
    because all other classes are of things."""
    counted = {k for ids in things.values() for k in ids}
    stuff = [k for k in range(len(classes)) if k not in counted]
    no_background = stuff != [0] and classes[0].lower() not in BACKGROUND
    return [k for k in stuff if k or no_background]


def matches(truth, preds, void, true_kinds, kinds):
    """Which segments of a truth and of a prediction are the same.

    truth, preds: (H, W) int64, numbers of segments, 0 where there is none. void: (H, W) bool, pixels that
    nobody knows. true_kinds (n,), kinds (m,): category of each number; those of number 0 are not used.
    -> (n, m) float64, the IoU of matches and 0 elsewhere; (n,) and (m,) bool, which segments are to be found,
    and which would be invented without a match.
    """
    n, m = len(true_kinds), len(kinds)
    both = torch.bincount((truth * m + preds)[~void], minlength=n * m).view(n, m).double()
    true_areas, areas = both.sum(1), both.sum(0)
    whole = torch.bincount(preds.flatten(), minlength=m)  # with the part that is void
    iou = both / (true_areas[:, None] + areas - both).clamp_min(1)
    same = true_kinds[:, None] == kinds
    same[0] = False
    same[:, 0] = False
    asked = true_areas > 0
    claimed = (whole > 0) & (2 * areas >= whole)
    asked[0] = claimed[0] = False
    return iou.where(same & (iou > 0.5), 0.0), asked, claimed


def tally(iou, asked, claimed, true_kinds, kinds, count):
    """What `matches` found -> (count, 4) float64, for each category the sum of IoU, how many segments were
    found, missed and invented."""
    found = iou > 0
    counts = torch.zeros(count, 4, dtype=torch.double)
    counts[:, 0].index_add_(0, true_kinds, iou.sum(1))
    counts[:, 1].index_add_(0, true_kinds, found.any(1).double())
    counts[:, 2].index_add_(0, true_kinds, (asked & ~found.any(1)).double())
    counts[:, 3].index_add_(0, kinds, (claimed & ~found.any(0)).double())
    return counts


def true_instances(semantic, instance, things):
    """(H, W) uint8 each -> ((H, W) int64 numbers of instances, 0 where there is none, (n,) int64 positions in
    `things`, of the most frequent class of each; the first entry is of no instance)."""
    ids, numbers = instance.where(instance != IGNORE_INDEX, 0).unique(return_inverse=True)
    if ids[0] > 0:  # no pixel without an instance
        numbers = numbers + 1
    n = int(numbers.max()) + 1
    thing_of = torch.full((256,), len(things))
    for i, classes in enumerate(things.values()):
        thing_of[classes] = i
    width = len(things) + 1
    votes = torch.bincount((numbers * width + thing_of[semantic.long()]).flatten(), minlength=n * width)
    return numbers, votes.view(n, width)[:, :-1].argmax(1)


def score_image(probs, center, offset, semantic, instance, classes, things):
    """Counts of one image, all on the CPU.

    probs (K, H, W), center (1, H, W), offset (2, H, W) float; semantic, instance (H, W) uint8.
    -> (categories, 4) as `tally`, things first, then `stuff_of`; (K, K) confusion of the parts given the
    right instance: a pixel of a true instance whose prediction is in no match of it counts as class 0.
    """
    stuff = stuff_of(classes, things)
    count = len(things) + len(stuff)
    names = list(things)
    preds = probs.argmax(0)
    ids, found = segments(probs, center, offset, things)
    kinds = torch.tensor([0, *(names.index(each["thing"]) for each in found)])
    unknown = semantic == IGNORE_INDEX
    void = unknown | (instance == IGNORE_INDEX)
    truth, true_kinds = true_instances(semantic, instance, things)
    iou, *claims = matches(truth, ids, void, true_kinds, kinds)
    counts = tally(iou, *claims, true_kinds, kinds, count)

    number_of = torch.zeros(256, dtype=torch.long)  # the segment of each class, 0 where it has none
    number_of[stuff] = torch.arange(1, len(stuff) + 1)
    categories = torch.arange(len(things) - 1, count)  # of each segment; segment 0 has none, and adds nothing
    of_stuff = matches(number_of[semantic.long()], number_of[preds], unknown, categories, categories)
    counts += tally(*of_stuff, categories, categories, count)

    elsewhere = (truth > 0) & ~(iou > 0)[truth, ids]
    labels = semantic.where(~void, IGNORE_INDEX)
    parts = metrics.confusion(preds.where(~elsewhere, 0)[None], labels[None], len(classes))[0]
    return counts, parts


@torch.no_grad()
def measure(predict, data, classes, things, batch_size=16, rank=0, world=1):
    """Figures over a whole data set, the same on all processes.

    predict: (B, 3, H, W) uint8 -> {"semantic": (B, K, H, W), "center": (B, 1, H, W), "offset": (B, 2, H, W)}
    float32. data[[i, j]] -> {"image", "semantic", "instance"}. Rank r reads images r, r + world, ...: none is
    padded, none counted twice. classes: K names; things: {name: [class ids]}, one at least.
    Returns {"pq", "sq", "rq": means over the categories that are labelled or predicted, "per_category":
    {name: {"pq", "sq", "rq", "found", "missed", "invented"}}, "n_images"}, and where a thing has several
    classes "parts": {"mean_f1", "f1": {class: F1}}: F1 of the parts, given the right instance, as mean F1 of
    `metrics`. Not known is None. Raises UserError: outputs that are not finite.
    """
    rows = range(rank, len(data), world)
    names = [*things, *(classes[k] for k in stuff_of(classes, things))]
    counts = [torch.zeros(0, len(names), 4, dtype=torch.double)]
    parts = torch.zeros(len(classes), len(classes), dtype=torch.long)
    for start in range(0, len(rows), batch_size):
        batch = data[list(rows[start : start + batch_size])]
        outputs = predict(batch["image"])
        for key in ("semantic", "center", "offset"):
            metrics.check_finite(outputs[key])
        found = outputs["semantic"].softmax(1), outputs["center"], outputs["offset"]
        known = batch["semantic"], batch["instance"]
        for image in zip(*(maps.cpu() for maps in (*found, *known)), strict=True):
            of_image, of_parts = score_image(*image, classes, things)
            counts.append(of_image[None])
            parts += of_parts
    counts = dist.gather_rows(torch.cat(counts), len(data))
    result = summary(counts.sum(0), names) | {"n_images": len(counts)}
    if max(map(len, things.values())) > 1:
        parts = dist.total(parts)
        f1 = metrics.f1_per_class(parts).tolist()
        by_class = {name: plain(value) for name, value in zip(classes, f1, strict=True)}
        result["parts"] = {"mean_f1": plain(metrics.mean_f1(parts)), "f1": by_class}
    return result


def plain(x):
    """A figure as a float of six digits, None for NaN."""
    return None if math.isnan(x) else round(float(x), 6)


def summary(counts, names):
    """(C, 4) as `tally` -> figures of each of C categories, and their means. Without a match all are 0."""
    total, found, missed, invented = counts.unbind(1)
    sq = total / found.clamp_min(1)
    rq = found / (found + missed / 2 + invented / 2)  # NaN where nothing is labelled or predicted
    figures = {"pq": sq * rq, "sq": sq.where(~rq.isnan(), torch.nan), "rq": rq}
    rows = {}
    for i, name in enumerate(names):
        rows[name] = {key: plain(values[i]) for key, values in figures.items()}
        rows[name] |= {"found": int(found[i]), "missed": int(missed[i]), "invented": int(invented[i])}
    means = {key: plain(values.nanmean()) for key, values in figures.items()}
    return {**means, "per_category": rows}


def scalars(prefix, result):
    """What `measure` found as TensorBoard scalars: prefix/pq, prefix/sq, prefix/rq, prefix/pq/<category>, and
    prefix/parts_f1."""
    flat = {f"{prefix}/{key}": result[key] for key in ("pq", "sq", "rq")}
    flat |= {f"{prefix}/pq/{name}": row["pq"] for name, row in result["per_category"].items()}
    flat |= {f"{prefix}/parts_f1": result["parts"]["mean_f1"]} if "parts" in result else {}
    return {key: value for key, value in flat.items() if value is not None}


def table(result):
    """What `measure` found as lines of text."""

    def show(x):
        return "   -  " if x is None else f"{x:6.3f}"

    heads = {key: result[key] for key in ("pq", "sq", "rq")}
    right = f"parts, given the right {called(result['per_category'])}"
    heads |= {right: result["parts"]["mean_f1"]} if "parts" in result else {}
    lines = ["  ".join(f"{head} {show(value).strip()}" for head, value in heads.items()), ""]
    lines.append(f"{'':<16}{'PQ':>6}{'SQ':>8}{'RQ':>8}{'found':>9}{'missed':>9}{'invented':>9}")
    for name, row in result["per_category"].items():
        figures = "  ".join(show(row[key]) for key in ("pq", "sq", "rq"))
        numbers = "".join(f"{row[key]:>9,}" for key in ("found", "missed", "invented"))
        lines.append(f"{name:<16}{figures}{numbers}")
    return "\n".join(lines)
