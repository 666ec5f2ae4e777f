"""Randomness as a function: a uniform number from (seed, position, lane), with no state to save.

Counter-based, so any slice of a batch, on any device and in any worker, draws the numbers it would
have drawn alone. A killed run therefore resumes without replaying anything.
"""

import torch

MASK = 0xFFFFFFFF
PIECE = 2**18  # numbers made at once: their int64 steps then stay in a processor's cache


def _mix(x):
    """One round of a 32-bit integer hash on int64 tensors (constants: C. Wellons, "Prospecting for
    hash functions", 2018, `lowbias32`). int64 products wrap, so the low 32 bits stay exact."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def uniform(seed, positions, lanes, stream=0):
    """Uniform numbers in [0, 1).

    seed: int; positions: (B,) int64, any non-negative; lanes: how many numbers for each position.
    stream: keeps apart two uses of the same seed and positions. Returns (B, lanes) float32 on the
    device of `positions`, with 24 bits each.
    """
    key = _mix(torch.tensor((seed * 0x9E3779B9 + stream * 0x85EBCA6B + 1) & MASK))
    key = _mix(key.to(positions.device) ^ (positions & MASK)) ^ ((positions >> 32) & MASK)
    key = _mix(key)[:, None]
    u = torch.empty(len(positions), lanes, device=positions.device)
    width = max(1, PIECE // max(1, len(positions)))
    for first in range(0, lanes, width):
        lane = torch.arange(first, min(first + width, lanes), device=positions.device)
        u[:, first : first + width] = _mix(_mix(key ^ _mix(lane + 0x1000193))) >> 8
    return u.mul_(2**-24)


def cells(seed, positions, shape, side, stream=0):
    """Uniform numbers (B, *shape), the same within cells of side x side pixels. Masks drawn with large
    cells first and small ones later are the progressive scales of 2505.17905."""
    rows, columns = (-(-n // side) for n in shape)
    u = uniform(seed, positions, rows * columns, stream).view(-1, rows, columns)
    return u.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, : shape[0], : shape[1]]


def normal(seed, positions, lanes, stream=0):
    """Standard normal numbers (B, lanes), by Box and Muller (1958)."""
    u = uniform(seed, positions, 2 * lanes, stream)
    return (-2 * torch.log(1 - u[:, :lanes])).sqrt() * torch.cos(2 * torch.pi * u[:, lanes:])


def order(seed, epoch, n):
    """The order of n samples in one epoch: a permutation (n,) that depends on nothing else."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
