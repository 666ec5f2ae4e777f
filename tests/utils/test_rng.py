"""Randomness is a function of seed, position and stream."""

import pytest
import torch
from scipy import stats

from utils import rng


def test_uniform_depends_on_seed_position_and_stream_alone():
    positions = torch.tensor([5, 0, 7, 2**33 + 7, 123456789])
    whole = rng.uniform(1, positions, 6, stream=2)
    assert whole.shape == (5, 6) and whole.dtype == torch.float32
    for rows in (slice(0, 2), slice(2, 5), [4], [3, 0]):
        assert torch.equal(rng.uniform(1, positions[rows], 6, stream=2), whole[rows])
    assert torch.equal(rng.uniform(1, positions, 3, stream=2), whole[:, :3])
    assert len(whole.unique()) == whole.numel()
    for other in (rng.uniform(2, positions, 6, 2), rng.uniform(1, positions, 6, 3)):
        assert (other != whole).all()


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_is_uniform_and_uncorrelated(seed):
    n = 20000
    u = rng.uniform(seed, torch.arange(n), 4, stream=1)
    assert 0 <= u.min() and u.max() < 1
    for lane in u.T:
        assert stats.kstest(lane.numpy(), "uniform").pvalue > 1e-4
    limit = 4.5 / n**0.5  # 4.5 standard errors of a correlation
    neighbours = torch.cat([u[:-1], u[1:]], 1)  # lanes of a position and of the next
    streams = torch.cat([u, rng.uniform(seed, torch.arange(n), 4, 2)], 1)
    seeds = torch.cat([u, rng.uniform(seed + 1, torch.arange(n), 4, 1)], 1)
    for columns in (neighbours, streams, seeds):
        assert (torch.corrcoef(columns.T) - torch.eye(8)).abs().max() < limit
    for k in range(1, 9):  # one position's numbers over many lanes
        lanes = rng.uniform(seed, torch.tensor([k]), n)[0]
        assert stats.kstest(lanes.numpy(), "uniform").pvalue > 1e-4


def test_normal_is_normal():
    draws = rng.normal(0, torch.arange(5000), 4)
    assert draws.shape == (5000, 4) and draws.isfinite().all()
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-4
    assert torch.equal(rng.normal(0, torch.arange(10, 20), 4), draws[10:20])


def test_order_is_a_permutation_for_each_epoch():
    orders = [rng.order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        assert order.sort().values.tolist() == list(range(50))
    assert len({tuple(order.tolist()) for order in orders}) == 6
    assert torch.equal(rng.order(1, 2, 50), orders[-1])
