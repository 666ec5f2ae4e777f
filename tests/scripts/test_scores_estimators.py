"""Tuning on scores alone: what scores say about hidden masks, and the script that lives on it."""

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F

from train_scores import ESTIMATORS, posterior
from utils import draw, metrics, rng
from utils.rewards.policy_gradient import credit_each, leave_one_out, sample
from utils.rewards.rewards import build

K, SIDE = 3, 32


def hidden(seed=0, n=150):
    """A truth of blobs, probabilities that are wrong about one of them, masks drawn from these, and the
    scores of the masks: (truth, probs, masks, one number each, one number a class)."""
    truth = torch.zeros(SIDE, SIDE, dtype=torch.long)
    truth[4:20, 4:20], truth[18:30, 16:30] = 1, 2
    belief = torch.zeros(SIDE, SIDE, dtype=torch.long)
    belief[4:20, 10:26], belief[18:30, 16:30] = 1, 2
    probs = 0.6 * F.one_hot(belief, K).movedim(-1, 0) + 0.4 / K
    logits = probs.log()[None].expand(n, -1, -1, -1)
    masks = sample(logits, rng.uniform(seed, torch.arange(n), SIDE**2).view(n, SIDE, SIDE))
    f1 = metrics.f1_per_class(metrics.confusion(masks, truth.expand(n, -1, -1), K))
    f1[:, 0] = torch.nan
    return truth, probs, masks, f1.nanmean(1, keepdim=True), f1


def right(probs, truth):
    return metrics.mean_f1(metrics.confusion(probs.argmax(0)[None], truth[None], K)).item()


def test_scores_tell_where_the_truth_is():
    truth, probs, masks, one, each = hidden()
    start, told = right(probs, truth), right(posterior(probs, masks, one), truth)
    told_more = right(posterior(probs, masks, each), truth)
    assert told > start + 0.1 and told_more > start + 0.1, (start, told, told_more)


def test_scores_may_have_any_scale_and_sign_matters():
    truth, probs, masks, one, _ = hidden()
    told = posterior(probs, masks, one)
    assert torch.allclose(posterior(probs, masks, 7 * one - 3), told, atol=1e-3)
    assert right(posterior(probs, masks, -one), truth) < right(probs, truth)


def test_what_was_not_scored_says_nothing():
    _, probs, masks, one, each = hidden(n=10)
    assert torch.equal(posterior(probs, masks, torch.full_like(one, 0.3)), probs)
    told = posterior(probs, masks, torch.where(torch.arange(K) == 2, each, torch.nan))
    change = told - probs
    assert change[2].abs().max() > 0.1 and torch.allclose(change.sum(0), torch.zeros(SIDE, SIDE), atol=1e-6)


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
def test_steps_follow_the_gradient_of_the_score(name):
    """The mean over all draws is the gradient of the expected score, by enumeration."""
    labels, reward = torch.tensor([[[0, 1], [2, 1]]]), build(["f1"], "abc")[0]
    torch.manual_seed(0)
    logits = torch.randn(1, K, 2, 2, dtype=torch.double, requires_grad=True)
    masks = torch.tensor(list(itertools.product(range(K), repeat=4))).view(-1, 2, 2)
    n = len(masks)
    log_p = logits.log_softmax(1).expand(n, -1, -1, -1).gather(1, masks[:, None]).sum((1, 2, 3))
    rewards = reward(masks, labels.expand(n, -1, -1))
    exact = torch.autograd.grad((log_p.exp() * rewards).sum(), logits, retain_graph=True)[0]
    one, two = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    pair, ask = [masks[one], masks[two]], lambda m: reward(m, labels.expand(len(m), -1, -1))[:, None]
    many = logits.detach().expand(n * n, -1, -1, -1)
    weights, scores = ESTIMATORS[name](many, lambda k: pair[k], ask, 2, standardise=False)
    p = (log_p[one] + log_p[two]).exp().detach()
    mean = ((p[:, None, None, None] * weights).sum(0, keepdim=True) * logits.log_softmax(1)).sum()
    assert scores.shape == (n * n, 2, 1)
    assert torch.allclose(torch.autograd.grad(mean, logits)[0], exact, atol=1e-7)


def test_a_block_is_credited_with_its_own_change():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    first, second = torch.ones(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.long)
    second[0, :2, :2] = 0  # right, and so are these two, fewer
    second[0, 2, 2:] = 0
    asked = []

    def ask(masks):
        asked.append(masks)
        return (masks == labels).double().mean((1, 2))[:, None]

    deal = lambda k: (first, second)[k]  # noqa: E731
    logits = torch.zeros(1, 2, 4, 4)
    weights, scores = functools.partial(ESTIMATORS["block"], side=2)(logits, deal, ask, 3, False)
    assert scores[0, :, 0].tolist() == [0.0, 4 / 16, 2 / 16]
    expected = torch.tensor([[4.0, 4, 0, 0], [4, 4, 0, 0], [0, 0, 2, 2], [0, 0, 0, 0]]) / 32
    assert torch.equal(weights[0, 0], expected)
    # where both masks gave class 1, the credit cancels
    assert torch.equal(weights[0, 1] == 0, weights[0, 0] == 0)


def test_classes_hear_of_their_own_scores():
    masks = [torch.tensor([[[0, 1]]]), torch.tensor([[[1, 1]]])]
    scores = torch.tensor([[[torch.nan, 0.25], [torch.nan, 0.75]]])
    weights = credit_each(leave_one_out(scores, False), masks, 2)
    assert weights[0, 0].tolist() == [[0.0, 0.0]]  # class 0 was not scored
    assert weights[0, 1].tolist() == [[0.25, 0.0]]


def test_cells_are_drawn_together():
    u = rng.cells(0, torch.arange(2), (5, 7), 4, stream=1)
    assert u.shape == (2, 5, 7) and (u[:, :4, :4] == u[:, :1, :1]).all() and (u[:, 4, 0] != u[:, 0, 0]).all()
    assert not torch.equal(u, rng.cells(0, torch.arange(2), (5, 7), 4, stream=2))


class Photos:
    """Ten photos of 2 x 2 pixels, each of a grey of its own, and no masks."""

    def __len__(self):
        return 10

    def __getitem__(self, rows):
        grey = torch.tensor([20 * row for row in rows], dtype=torch.uint8)
        return {"image": grey.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)}


def test_the_picture_shows_what_tuning_changed():
    """Each of four photos beside the mask of the start, that of now, and what became class 1."""
    masks = {"start": torch.tensor([[0, 1], [0, 0]]), "now": torch.tensor([[0, 1], [1, 0]])}
    predict = lambda images, net: F.one_hot(masks[net], 2).movedim(-1, 0).expand(len(images), -1, -1, -1)
    colors, side = [[1, 2, 3], [200, 100, 50]], 256
    page = draw.progress(predict, ("start", "now"), Photos(), colors, ["background", "skin"], count=4)
    assert page.shape[1] == 2 * 4 * side + 6
    page, table = page[-2 * side - 6 :], torch.tensor(colors)  # below the legend: two rows of two
    for i, grey in enumerate((0, 40, 100, 140)):  # of photos 0, 2, 5 and 7, spread evenly
        top, left = i // 2 * (side + 6), i % 2 * (4 * side + 6)
        panels = page[top : top + side : 128, left : left + 4 * side : 128].reshape(2, 4, 2, 3)
        change = torch.full((2, 2, 3), grey // 4)
        change[1, 0] = table[1]
        expected = [torch.full((2, 2, 3), grey), table[masks["start"]], table[masks["now"]], change]
        assert panels.tolist() == torch.stack(expected, 1).tolist()
