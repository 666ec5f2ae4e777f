"""A segmentation network as a policy: each pixel draws its class by itself.

logits (B, K, H, W) float32; masks and labels (B, H, W) long; pixels labelled 255 never count.
"""

import math

import torch
import torch.nn.functional as F

from utils.metrics import IGNORE_INDEX


def sample(logits, u):
    """One mask from the policy, (B, H, W) long, by inverting the distribution function.

    u: (B, H, W) uniform in [0, 1): the same numbers give the same mask.
    """
    cdf = logits.softmax(1).cumsum(1)[:, :-1]  # the last class takes what rounding leaves
    return (u[:, None] >= cdf).sum(1)


def credit(advantage, mask, num_classes):
    """(B, K, H, W) in the type of `advantage`, (B, 1, 1) or (B, H, W), which goes to the class that each
    pixel of the mask was given."""
    empty = advantage.new_zeros(len(mask), num_classes, *mask.shape[1:])
    return empty.scatter(1, mask[:, None], advantage.expand(mask.shape)[:, None])


def credit_each(advantages, masks, num_classes):
    """advantages (B, S, C), C = 1 or K; S masks (B, H, W) -> (B, K, H, W): the mean over masks, each to the
    class that a pixel was drawn as. With C = K, a pixel hears of its own class alone."""
    advantages = advantages.float().expand(-1, -1, num_classes)
    weights = advantages.new_zeros(len(masks[0]), num_classes, *masks[0].shape[1:])
    for mask, advantage in zip(masks, advantages.unbind(1), strict=True):
        each = advantage.gather(1, mask.flatten(1)).view(mask.shape)
        weights.scatter_add_(1, mask[:, None], each[:, None])
    return weights / len(masks)


def leave_one_out(scores, standardise):
    """(B, S, C): each score minus the mean of the other S - 1, or, standardised, minus the mean of all and
    divided by their deviation; 0 where a class was not scored."""
    centred = scores - scores.nanmean(1, keepdim=True)
    scale = scores.std(1, keepdim=True) + 1e-8 if standardise else (scores.shape[1] - 1) / scores.shape[1]
    return (centred / scale).nan_to_num(0.0)


def policy_loss(logits, weights, labels):
    """(B,): minus the weighted log-probabilities, summed over the pixels that count."""
    per_pixel = (weights.to(logits) * logits.log_softmax(1)).sum(1)
    return -(per_pixel * (labels != IGNORE_INDEX)).sum((1, 2))


def divergence(logits, start, labels):
    """(sum, count): exact KL(policy || starting policy) over the pixels that count, in nats."""
    log_p = logits.log_softmax(1)
    log_q = start.log_softmax(1)
    per_pixel = (log_p.exp() * (log_p - log_q)).sum(1)
    valid = labels != IGNORE_INDEX
    return (per_pixel * valid).sum(), valid.sum()


def entropy(logits, labels):
    """(sum, count): entropy over the pixels that count, in nats; log K each where nothing is known."""
    log_p = logits.log_softmax(1)
    valid = labels != IGNORE_INDEX
    return -((log_p.exp() * log_p).sum(1) * valid).sum(), valid.sum()


def gradient_cosine(losses, params):
    """Cosine between the gradients of the two halves of a batch: near 1, one step sees what the next
    will see; near 0, it sees noise. losses: (B,)."""
    half = len(losses) // 2
    if not half:
        return math.nan
    pieces = (losses[:half].mean(), losses[half:].mean())
    grads = [torch.autograd.grad(x, params, retain_graph=True, allow_unused=True) for x in pieces]
    one, two = (torch.cat([g.flatten().double() for g in grad if g is not None]) for grad in grads)
    return F.cosine_similarity(one, two, dim=0)
