"""Estimators against enumeration: the mean gradient is that of the expected reward. `local` against
changing one pixel after the other."""

import functools
import itertools

import pytest
import torch

from train_reward import ESTIMATORS, block, local
from utils.errors import UserError
from utils.metrics import IGNORE_INDEX as IGNORE
from utils.rewards.policy_gradient import divergence, entropy, gradient_cosine, policy_loss, sample
from utils.rewards.rewards import REWARDS, Reward, build


def reward_of(num_classes, *words, **more):
    return build(words, [f"c{i}" for i in range(num_classes)], **more)[0]


def all_masks(num_classes, shape):
    """Every mask (N, H, W) there is."""
    masks = itertools.product(range(num_classes), repeat=shape[0] * shape[1])
    return torch.tensor(list(masks)).view(-1, *shape)


def log_prob(logits, masks):
    return logits.log_softmax(1).gather(1, masks[:, None])[:, 0].sum((1, 2))


def u_of(logits, masks):
    """Uniform numbers for which `sample` draws these very masks."""
    probs = logits.softmax(1)
    middle = probs.cumsum(1) - probs / 2
    u = middle.gather(1, masks[:, None])[:, 0]
    assert (sample(logits, u) == masks).all()
    return u


CASES = [
    (2, [[0, 1]]),  # two pixels, two classes
    (2, [[1, 1]]),
    (3, [[0, 2], [1, IGNORE]]),
    (2, [[1, IGNORE, 0]]),
]
MIXED = [[name] for name in REWARDS] + [["f1=1", "boundary_f1=0.5"], ["miou=0.3", "worst_f1"]]
NAMED = {**ESTIMATORS, "block of 1": functools.partial(block, side=1)}


@pytest.mark.parametrize("words", MIXED, ids=" ".join)
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("num_classes", "labels"), CASES)
def test_mean_gradient_is_exact(words, name, num_classes, labels):
    labels, reward = torch.tensor([labels]), reward_of(num_classes, *words)
    masks = all_masks(num_classes, labels.shape[1:])
    torch.manual_seed(0)
    logits = torch.randn(1, num_classes, *labels.shape[1:], dtype=torch.double, requires_grad=True)
    every = logits.expand(len(masks), -1, -1, -1)
    rewards = reward(masks, labels.expand(len(masks), -1, -1))
    assert rewards.shape == (len(masks),) and rewards.dtype == torch.double
    probs = log_prob(every, masks).exp()
    assert abs(probs.sum().item() - 1) < 1e-12
    exact = torch.autograd.grad(-(probs * rewards).sum(), logits, retain_graph=True)[0]

    drawn = 3 if name == "rloo" and len(masks) <= 8 else 2
    tuples = torch.cartesian_prod(*drawn * [torch.arange(len(masks))])
    many, truth = logits.expand(len(tuples), -1, -1, -1), labels.expand(len(tuples), -1, -1)
    u = torch.stack([u_of(many.detach(), masks[rows]) for rows in tuples.T], 1)
    weights, values = NAMED[name](many.detach(), truth, reward, u)
    assert torch.equal(values[:, 0], rewards[tuples[:, 0]])
    mean = (probs[tuples].prod(1).detach() * policy_loss(many, weights, truth)).sum()
    estimate = torch.autograd.grad(mean, logits)[0]
    assert torch.allclose(estimate, exact, atol=1e-12)
    assert exact.abs().max() > 1e-3 or rewards.std() < 1e-12
    assert estimate.permute(0, 2, 3, 1)[labels == IGNORE].abs().sum() == 0


@pytest.mark.parametrize("words", MIXED, ids=" ".join)
@pytest.mark.parametrize("shape", [(9, 11), (3, 2)])  # of no common measure with a window; smaller
@pytest.mark.parametrize("tolerance", [1, 2])
def test_local_is_brute_force(words, shape, tolerance):
    k, (height, width) = 4, shape
    weights = ["c2=0"] if words == ["worst_f1"] else ["c2=3", "c3=0.5"]
    reward = reward_of(k, *words, tolerance=tolerance, class_weights=weights)
    torch.manual_seed(1)
    logits = torch.randn(2, k, *shape, dtype=torch.double)
    labels, u = torch.randint(0, k, (2, *shape)), torch.rand(2, 2, *shape)
    labels[torch.rand(2, *shape) < 0.2] = IGNORE
    drawn, other = sample(logits, u[:, 0]), sample(logits, u[:, 1])
    start, probs = reward(drawn, labels), logits.softmax(1)
    expected = torch.zeros_like(logits)
    for y, x, c in itertools.product(range(height), range(width), range(k)):
        changed = drawn.clone()
        changed[:, y, x] = c
        change = reward(changed, labels) - start
        if reward.radius == 0:
            expected[:, c, y, x] = probs[:, c, y, x] * change
        else:  # the class of the second mask, and the drawn one with the opposite sign
            rows = torch.arange(2)[other[:, y, x] == c]
            expected[rows, c, y, x] += change[rows] / 2
            expected[rows, drawn[rows, y, x], y, x] -= change[rows] / 2
    weights, values = local(logits, labels, reward, u)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-9)
    assert torch.equal(values[:, 0], start) and (expected.abs().max() > 1e-3 or shape == (3, 2))


def test_batch_level_is_the_score_of_all_counts():
    """And one image's changes are those of the whole batch's score."""
    reward = reward_of(3, "f1")
    torch.manual_seed(2)
    preds, labels = torch.randint(0, 3, (2, 4, 5, 5))
    sums = reward.sums(preds, labels)
    together = reward.with_counts(sums.sum(0) - sums)
    joint = reward(torch.cat(list(preds))[None], torch.cat(list(labels))[None])
    assert torch.allclose(together(preds, labels), joint.expand(4)) and together(preds, labels).shape == (4,)
    change = together.changes(preds, labels)[2, 1, 3, 4]
    preds = preds.clone()
    preds[2, 3, 4] = 1
    assert torch.allclose(joint + change, reward(torch.cat(list(preds))[None], torch.cat(list(labels))[None]))


def test_an_image_never_touches_another():
    labels = torch.zeros(2, 1, 2, dtype=torch.long)
    logits = torch.zeros(2, 2, 1, 2)
    u = torch.tensor([[[[0.1, 0.9]], [[0.9, 0.1]]], [[[0.1, 0.9]], [[0.1, 0.1]]]])
    weights, values = ESTIMATORS["reinforce"](logits, labels, reward_of(2, "accuracy"), u)
    assert weights[0].abs().sum() == 0 and weights[1].abs().sum() > 0
    assert values.tolist() == [[0.5, 0.5], [0.5, 1.0]]


def test_classes_weigh():
    labels, preds = torch.tensor([[[1, 1, 2, 2]]]), torch.tensor([[[1, 1, 0, 0]]])
    assert reward_of(3, "f1")(preds, labels).item() == 0.5
    assert reward_of(3, "f1", class_weights=["c1=3"])(preds, labels).item() == 0.75
    assert reward_of(3, "worst_f1")(preds, labels).item() == 0.0
    assert reward_of(3, "worst_f1", class_weights=["c2=0"])(preds, labels).item() == 1.0
    assert reward_of(3, "dice")(preds, labels).item() == pytest.approx(1 / 3)  # background is predicted
    nothing = torch.full_like(labels, IGNORE)
    assert [reward_of(3, name)(preds, nothing).item() for name in REWARDS] == [0.0] * len(REWARDS)


def test_a_function_is_a_reward(tmp_path):
    code = "def right(preds, labels):\n    return (preds == labels).flatten(1).sum(1)\n"
    (tmp_path / "mine.py").write_text(code)
    labels, preds = torch.tensor([[[1, 1]], [[0, 0]]]), torch.tensor([[[1, 0]], [[0, 0]]])
    mine = reward_of(2, f"{tmp_path}/mine.py:right", "accuracy=2")
    assert not isinstance(mine, Reward) and mine(preds, labels).tolist() == [2.0, 4.0]
    with open(tmp_path / "mine.py", "a") as file:
        file.write("def one(preds, labels):\n    return (preds == labels).double().mean()[None]\n")
    with pytest.raises(UserError, match="one finite number for each"):  # one scalar for a batch
        reward_of(2, f"{tmp_path}/mine.py:one")(preds, labels)
    for words in (["f2"], ["f1=x"], [f"{tmp_path}/mine.py:wrong"], [f"{tmp_path}/none.py:f"]):
        with pytest.raises(UserError, match="reward "):
            reward_of(2, *words)
    with pytest.raises(UserError, match="class weights"):
        reward_of(2, "f1", class_weights=["nose=2"])


def test_samples_follow_the_policy():
    logits = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits, torch.rand(1, 200, 200, generator=generator))
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    assert torch.allclose(shares, logits[0, :, 0, 0].softmax(0), atol=0.01)
    assert sample(logits, torch.full((1, 200, 200), 1 - 2**-24)).max() <= 2


def test_divergence_and_entropy():
    torch.manual_seed(0)
    logits, start = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    labels = torch.zeros(2, 3, 3, dtype=torch.long)
    labels[0, 0] = IGNORE
    total, count = divergence(logits, start, labels)
    p, q = logits.softmax(1), start.softmax(1)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(p.movedim(1, -1)),
        torch.distributions.Categorical(q.movedim(1, -1)),
    )[labels != IGNORE]
    assert count == 15 and torch.allclose(total, expected.sum(), atol=1e-5)
    assert divergence(logits, logits, labels)[0].abs() < 1e-6
    total, count = entropy(torch.zeros(1, 4, 2, 2), labels[1:, :2, :2])
    assert count == 4 and torch.allclose(total / 4, torch.tensor(4.0).log())
    total = divergence(logits, start, labels)[0]
    logits[0, :, 0] += torch.randn(4, 3) * 9  # ignored pixels
    assert torch.allclose(divergence(logits, start, labels)[0], total)


def test_agreement_of_halves():
    w = torch.ones(3, requires_grad=True)
    rows = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 2, 0], [1, -1, 0]])
    assert gradient_cosine((rows[[0, 1, 0, 1]] * w).sum(1), [w]).item() == pytest.approx(1)
    assert gradient_cosine((rows * w).sum(1), [w]).item() == pytest.approx(0.5**0.5)
