"""What a teacher says of photos, as targets for a student, and what is measured of it.

probs and logits are (B, K, ...), over classes along dimension 1: at a pixel, or of an image.
"""

import torch
import torch.nn.functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from utils import metrics
from utils.metrics import IGNORE_INDEX

UNSURE = 254  # a pseudo-label below its threshold: a pixel of the photo that teaches nothing
SURVEYED = 256  # photos that thresholds and statistics are measured on
BINS = 7  # of |yaw|, 0 to 90 degrees in steps of 15
VANISHED = 0.25  # share of a class's first share below which it counts as lost
NOTICED = 2e-3  # share of pixels below which a class may come and go
COUNTED = 10  # images, of those surveyed, up to which it may
FEW = 3  # photos of one |yaw| that say nothing about what is lost


def soften(probs, temperature):
    """Probabilities as a softmax at another temperature would give them: softmax(log probs / T)."""
    return (probs.clamp_min(1e-8).log() / temperature).softmax(1)


def distillation(logits, target, temperature):
    """T^2 KL(target || softmax(logits / T)) at each pixel, (B, ...): Hinton et al., 2015 (1503.02531),
    sec. 2; the factor keeps the gradient's size. target: `soften`ed at the same T; zeros where nothing is
    known."""
    log_p = (logits / temperature).log_softmax(1)
    return temperature**2 * (torch.xlogy(target, target) - target * log_p).sum(1)


def hard_labels(probs, thresholds):
    """(B, K, H, W), and (B, K) of each photo -> (B, H, W) uint8: the likeliest class, `UNSURE` where its
    probability is below its threshold. Of images, (B, K) -> shares of classes (B, K): 1 for the likeliest
    class, or zeros."""
    if probs.dim() == 2:
        return F.one_hot(probs.argmax(1), probs.shape[1]) * (probs >= thresholds).float()
    confidence, preds = probs.max(1)
    least = thresholds.gather(1, preds.view(len(preds), -1)).view_as(confidence)
    return preds.masked_fill(confidence < least, UNSURE).byte()


def targets_of(labels):
    """`hard_labels` as augmentation left them -> (targets of cross-entropy, where they count, where they
    teach): for maps ids (B, H, W), what is inside of the photo, and what of it is sure; for shares the shares
    (B, K), all images (B,), and those with any."""
    if labels.dim() == 2:
        teaches = labels.sum(1) > 0
        return labels, torch.ones_like(teaches), teaches
    labels = labels.long()
    inside = labels != IGNORE_INDEX
    sure = inside & (labels != UNSURE)
    return labels.masked_fill(~sure, IGNORE_INDEX), inside, sure


def yaw_bins(data, batch):
    """(B,) long: |yaw| of each photo in steps of 15 degrees, 0 where nobody knows it."""
    rows = batch["index"].tolist()
    yaws = batch["yaw"].cpu() if "yaw" in batch else torch.tensor([data.yaws[row] or 0.0 for row in rows])
    return (yaws.abs() / 15).round().long().clamp_max(BINS - 1)


def spread(n):
    """Up to `SURVEYED` of n rows, evenly."""
    count = min(SURVEYED, n)
    return [i * n // count for i in range(count)]


def class_thresholds(confidence, preds, bins, num_classes, threshold, keep):
    """(BINS, K): from which probability on a class is sure at |yaw| 0, 15, ..., 90 degrees: min(threshold,
    what its surest share `keep` exceeds), so that small classes are not starved (Zou et al., 2018,
    1810.07911, eq. 8).

    confidence, preds (N, P), of N photos; bins (N,).
    """
    found = torch.full((BINS, num_classes), threshold)
    for b in range(BINS) if keep else []:
        seen = bins == b if (bins == b).any() else torch.ones_like(bins, dtype=torch.bool)  # else as of all
        for k in range(num_classes):
            own = confidence[seen][preds[seen] == k]
            if len(own):
                rank = min(len(own), int((1 - keep) * len(own)) + 1)
                found[b, k] = min(threshold, own.kthvalue(rank).values.item())
    return found


@torch.no_grad()
def survey(label, data, num_classes, batch_size, threshold, keep):
    """What the teacher says of up to `SURVEYED` photos: thresholds (BINS, K), see `class_thresholds`; photos
    (BINS,), how many there are at each |yaw|; shares (BINS, K) of their pixels that it gives to each class;
    kept (K,), the share of each class that is sure; confusion (BINS, K, K) with masks, where photos have
    them, which is shown and never used.

    label: (B, 3, H, W) -> (B, K, H, W), or (B, K) of images, which count as one pixel each; see `teach`.
    """
    rows = spread(len(data))
    found = []
    for i in range(0, len(rows), batch_size):
        batch = data[rows[i : i + batch_size]]
        confidence, preds = label(batch["image"]).max(1)
        counts = torch.zeros(len(preds), num_classes, num_classes, dtype=torch.long)
        if "semantic" in batch:
            counts = metrics.confusion(preds, batch["semantic"].to(preds.device), num_classes)
        step = max(1, preds[0].numel() // 2**14)  # enough pixels of each photo
        thinned = (values.reshape(len(values), -1)[:, ::step].cpu() for values in (confidence, preds))
        found.append((*thinned, yaw_bins(data, batch), counts.cpu()))
    confidence, preds, bins, counts = zip(*found, strict=True)
    confidence, preds, bins, counts = map(torch.cat, (confidence, preds, bins, counts))
    confusion = torch.zeros(BINS, num_classes, num_classes, dtype=torch.long).index_add(0, bins, counts)
    thresholds = class_thresholds(confidence, preds, bins, num_classes, threshold, keep)
    sure = confidence >= thresholds[bins].gather(1, preds)
    given = torch.stack([(preds == k).float().mean(1) for k in range(num_classes)], 1)  # (N, K)
    taken = torch.stack([(sure & (preds == k)).float().mean(1) for k in range(num_classes)], 1)
    shares = torch.zeros(BINS, num_classes).index_add(0, bins, given)
    photos = torch.bincount(bins, minlength=BINS)
    return {
        "thresholds": thresholds,
        "photos": photos,
        "shares": shares / photos[:, None],  # NaN where no photo is
        "kept": taken.sum(0) / given.sum(0),
        "confusion": confusion,
    }


def pseudo_scalars(found, classes):
    """What `survey` found as scalars: pseudo/share/<class> of all pixels, pseudo/kept/<class>,
    pseudo/threshold/<class>, the lowest of all |yaw|, and where photos have masks pseudo/f1/<class>, of all
    and at each |yaw| that there is."""
    confusion = found["confusion"]
    values = {
        "share": found["shares"].nanmean(0),
        "kept": found["kept"],
        "threshold": found["thresholds"].min(0).values,
        "f1": metrics.f1_per_class(confusion.sum(0)),
    }
    values |= {f"f1_at_{15 * b}": metrics.f1_per_class(confusion[b]) for b in range(BINS)}
    named = {
        f"pseudo/{what}/{name}": value.item()
        for what, row in values.items()
        for name, value in zip(classes, row, strict=True)
    }
    return named | {"pseudo/mean_f1": metrics.mean_f1(confusion.sum(0)).item()}


def vanished(shares, first, photos, pairs, classes, of="pixels"):
    """In words, which class has lost most of the pixels, or images, that it had at first; None if none has.

    shares, first (BINS, K), see `survey`; photos (BINS,) how many there are at each |yaw|: where they are
    `FEW`, nothing is judged. pairs: classes that differ in the side alone count together: in profile one eye
    may vanish. of: what was counted, "pixels" or "images".
    """
    noticed = NOTICED if of == "pixels" else COUNTED / photos[:, None]
    shares, first = shares.clone(), first.clone()
    for pair in pairs:
        for values in (shares, first):
            values[:, pair] = values[:, pair].sum(1, keepdim=True)
    lost = (shares < VANISHED * first) & (first > noticed) & (photos > FEW)[:, None]
    for b, k in lost.nonzero().tolist():
        where = f" at |yaw| {15 * b}" if (photos > 0).sum() > 1 else ""
        return f"{classes[k]}{where}: {first[b, k]:.2%} of the {of} at first, now {shares[b, k]:.2%}"
    return None


def described(found, classes, of="pixels"):
    """What `survey` found, in a line: how much is sure, which classes are nowhere, and F1 by the masks."""
    shares = found["shares"].nanmean(0)
    sure = (shares * found["kept"]).nansum()
    absent = [name for name, share in zip(classes, shares.tolist(), strict=True) if not share]
    f1 = metrics.mean_f1(found["confusion"].sum(0))
    by_masks = "" if f1.isnan() else f"; mean F1 by the masks, which train nothing, {f1:.3f}"
    return f"{sure:.0%} of the {of} are sure{by_masks}" + (
        f"; on none: {', '.join(absent)}" if absent else ""
    )


def norms_of(network):
    """Its BatchNorm layers, a list."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def measure_statistics(predict, network, data, batch_size):
    """BatchNorm's mean and variance of a network become those of photos as they are."""
    norms = norms_of(network)
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
        norm.train()
    rows = spread(len(data))
    for i in range(0, len(rows), batch_size):
        predict(data[rows[i : i + batch_size]]["image"], network)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
