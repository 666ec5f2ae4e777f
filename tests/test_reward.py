"""Algorithm 2 against enumeration: its mean gradient is the gradient of the expected reward."""

import itertools

import pytest
import torch

from datasets.faces import IGNORE
from train_reward import divergence, entropy, log_prob, reinforce, sample
from utils.rewards import REWARDS, reward


def all_masks(num_classes, shape):
    """Every mask (N, H, W) there is."""
    pixels = shape[0] * shape[1]
    masks = itertools.product(range(num_classes), repeat=pixels)
    return torch.tensor(list(masks)).view(-1, *shape)


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(
    ("num_classes", "labels"),
    [
        (2, [[0, 1]]),  # two pixels, two classes
        (2, [[1, 1]]),
        (3, [[0, 2], [1, IGNORE]]),
        (2, [[1, IGNORE, 0]]),
    ],
)
def test_mean_gradient_is_exact(name, num_classes, labels):
    labels = torch.tensor([labels])
    masks = all_masks(num_classes, labels.shape[1:])
    n = len(masks)
    torch.manual_seed(0)
    logits = torch.randn(1, num_classes, *labels.shape[1:], dtype=torch.double, requires_grad=True)
    every = logits.expand(n, -1, -1, -1)
    rewards = reward(name, masks, labels.expand(n, -1, -1), num_classes)
    assert rewards.shape == (n,)
    # the probability of a whole mask: ignored pixels are drawn too, and must not matter
    probs = log_prob(every, masks, torch.zeros_like(masks)).exp()
    assert abs(probs.sum().item() - 1) < 1e-12
    exact = torch.autograd.grad(-(probs * rewards).sum(), logits, retain_graph=True)[0]

    first, second = torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    losses = reinforce(
        logits.expand(n * n, -1, -1, -1),
        masks[first],
        rewards[first] - rewards[second],
        labels.expand(n * n, -1, -1),
    )
    weights = (probs[first] * probs[second]).detach()
    estimate = torch.autograd.grad((weights * losses).sum(), logits)[0]
    assert torch.allclose(estimate, exact, atol=1e-12)
    assert exact.abs().max() > 1e-3 or rewards.std() < 1e-12
    assert estimate.permute(0, 2, 3, 1)[labels == IGNORE].abs().sum() == 0


def test_advantage_is_per_image():
    """Another image's reward never touches this one's gradient."""
    logits = torch.zeros(2, 2, 1, 2, requires_grad=True)
    mask, labels = torch.tensor([[[0, 1]], [[1, 1]]]), torch.zeros(2, 1, 2, dtype=torch.long)
    reinforce(logits, mask, torch.tensor([0.0, 1.0]), labels).sum().backward()
    assert logits.grad[0].abs().sum() == 0 and logits.grad[1].abs().sum() > 0


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
    assert torch.allclose(entropy(torch.zeros(1, 4, 2, 2), labels[1:, :2, :2]), torch.tensor(4.0).log())
    logits[0, :, 0] += torch.randn(4, 3) * 9  # ignored pixels
    assert torch.allclose(divergence(logits, start, labels)[0], total)
