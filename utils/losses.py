"""Segmentation losses as sums and counts, so that the mean over all processes is that of one.

Each takes logits (B, K, H, W) float32 and labels (B, H, W) long and returns (sum, count), scalar tensors:
the loss is sum / count. Pixels of `IGNORE_INDEX` never count.
"""

import torch
import torch.nn.functional as F

from utils.metrics import IGNORE_INDEX


def ce(logits, labels):
    """Cross-entropy over pixels; of images, logits (B, K), with shares of classes (B, K) as labels."""
    if labels.dim() == 2:
        return F.cross_entropy(logits, labels, reduction="sum"), labels.new_tensor(len(labels))
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return total, (labels != IGNORE_INDEX).sum()


def ohem(logits, labels, keep=0.25):
    """Cross-entropy over each image's hardest quarter of pixels (Wu et al., 1605.06885, sec. 4)."""
    losses = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none").flatten(1)
    hardest = losses.sort(1, descending=True).values
    kept = ((labels != IGNORE_INDEX).flatten(1).sum(1, keepdim=True) * keep).ceil()
    mask = torch.arange(losses.shape[1], device=losses.device) < kept
    return (hardest * mask).sum(), mask.sum()


def overlap(logits, labels):
    """Soft intersection, predicted and labelled pixels of each image and class, (B, K) each."""
    valid = labels != IGNORE_INDEX
    probs = logits.softmax(1)
    index = labels.where(valid, 0).flatten(1)
    weight = valid.flatten(1).to(probs)
    right = probs.gather(1, labels.where(valid, 0)[:, None]).flatten(1) * weight
    empty = torch.zeros_like(probs[:, :, 0, 0])
    predicted = (probs * valid[:, None]).sum((2, 3))
    return empty.scatter_add(1, index, right), predicted, empty.scatter_add(1, index, weight)


def present_mean(losses, labelled):
    """(B, K) losses -> (sum, count) over images of the mean over the classes that an image has."""
    present = labelled > 0
    per_image = (losses * present).sum(1) / present.sum(1).clamp_min(1)
    return per_image.sum(), present.any(1).sum()


def dice(logits, labels):
    """1 - soft Dice of each image (Milletari et al., 1606.04797, with plain sums)."""
    inter, probs, truth = overlap(logits, labels)
    return present_mean(1 - 2 * inter / (probs + truth).clamp_min(1e-6), truth)


def jaccard(logits, labels):
    """1 - soft Jaccard of each image (Rahman and Wang, ISVC 2016)."""
    inter, probs, truth = overlap(logits, labels)
    return present_mean(1 - inter / (probs + truth - inter).clamp_min(1e-6), truth)


def lovasz(logits, labels):
    """Lovasz-softmax of each image (Berman et al., 1705.08790, eq. 9 and algorithm 1)."""
    valid = (labels != IGNORE_INDEX)[:, None]
    truth = F.one_hot(labels.where(valid[:, 0], 0), logits.shape[1]).movedim(-1, 1) * valid
    errors = (truth - logits.softmax(1)).abs() * valid  # ignored pixels: no error, sorted last
    errors, rank = errors.flatten(2).sort(2, descending=True)
    truth = truth.flatten(2).gather(2, rank).float()
    labelled = truth.sum(2, keepdim=True)
    inter = labelled - truth.cumsum(2)
    union = labelled + (1 - truth).cumsum(2)
    step = 1 - inter / union
    gradient = torch.cat([step[..., :1], step[..., 1:] - step[..., :-1]], 2)
    return present_mean((errors * gradient).sum(2), labelled[..., 0])


LOSSES = {"ce": ce, "dice": dice, "jaccard": jaccard, "lovasz": lovasz, "ohem": ohem}
