"""Muon against its formulas, and against AdamW where it is AdamW."""

import copy
import math

import pytest
import torch
from torch import nn

from utils.muon import Muon, newton_schulz

LR, DECAY = 1e-2, 0.1


def network():
    """A kernel, a depthwise kernel, norms, biases and a matrix."""
    torch.manual_seed(0)
    parts = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(72, 4),
    ]
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)


def backward(net, seed):
    images = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    net.zero_grad()
    net(images).square().sum().backward()


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (9, 9)])
def test_singular_vectors_stay_and_values_become_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ newton_schulz(1e-3 * matrix).float() @ v.T
    assert turned.diagonal().min() > 0.5 and turned.diagonal().max() < 1.3
    assert (turned - turned.diagonal().diag()).abs().max() < 0.05
    assert newton_schulz(0 * matrix).abs().max() == 0


def test_a_step_is_that_of_the_paper():
    net = network()
    kernel = net[0].weight
    optimizer = Muon([{"params": list(net.parameters())}], LR, DECAY)
    momentum = torch.zeros(8, 27)
    for step in range(3):
        backward(net, step)
        before, gradient = kernel.detach().clone(), kernel.grad.flatten(1)
        momentum = 0.95 * momentum + 0.05 * gradient
        moved = 0.2 * math.sqrt(27) * LR * newton_schulz(0.05 * gradient + 0.95 * momentum).float()
        optimizer.step()
        assert torch.allclose(kernel.flatten(1), (1 - LR * DECAY) * before.flatten(1) - moved, atol=1e-6)
    assert moved.square().mean().sqrt() == pytest.approx(0.2 * LR, rel=0.3), "as long as a step of AdamW"


def test_a_matrix_moves_as_by_torch():
    ours, theirs = (nn.Linear(24, 10, bias=False) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Muon([{"params": ours.parameters()}], LR, DECAY),
        torch.optim.Muon(theirs.parameters(), LR, DECAY, adjust_lr_fn="match_rms_adamw"),
    ]
    start = ours.weight.detach().clone()
    for step in range(3):
        gradient = torch.randn(10, 24, generator=torch.Generator().manual_seed(step))
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            net.weight.grad = gradient.clone()
            optimizer.step()
    assert (ours.weight - theirs.weight).norm() < 0.02 * (ours.weight - start).norm(), "rounding of bfloat16"


def test_what_is_no_matrix_moves_as_by_adamw():
    net, other = network(), network()
    groups = [{"params": list(net[:2].parameters())}, {"params": list(net[2:].parameters()), "scale": 0.5}]
    optimizer = Muon(groups, LR, DECAY)
    assert [group.get("scale") for group in optimizer.param_groups] == [None, None, 0.5, 0.5]
    matrices = {"0.weight", "4.weight"}
    rest = [p for name, p in other.named_parameters() if name not in matrices]
    adamw = torch.optim.AdamW(rest, LR, weight_decay=DECAY)
    for step in range(3):
        backward(net, step)
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            q.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) == (name not in matrices), name


def test_it_goes_on_from_its_state():
    straight = network()
    optimizer = Muon([{"params": list(straight.parameters())}], LR, DECAY)
    backward(straight, 0)
    optimizer.step()
    resumed, state = copy.deepcopy(straight), copy.deepcopy(optimizer.state_dict())
    again = Muon([{"params": list(resumed.parameters())}], LR, DECAY)
    again.load_state_dict(state)
    for net, one in ((straight, optimizer), (resumed, again)):
        backward(net, 1)
        one.step()
    assert all(torch.equal(*pair) for pair in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_gradient_that_overflows_moves_nothing():
    net = network()
    optimizer = Muon([{"params": list(net.parameters())}], LR, DECAY)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    backward(net, 0)
    net[4].weight.grad[0, 0] = math.inf
    before = copy.deepcopy(net.state_dict())
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    scaler.update()
    backward(net, 0)
    scaler.step(optimizer)
    assert not torch.equal(before["0.weight"], net[0].weight)
