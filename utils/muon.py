"""Muon, an optimizer that takes fewer steps from scratch than AdamW does."""

import math

import torch

MOMENTUM = 0.95
ITERATIONS = 5


def orthogonal(matrix):
    """(m, n) -> (m, n) bfloat16 with the singular vectors of `matrix`, and singular values of about 1 (.7 to
    1.2; those that are next to 0 less). Newton-Schulz iteration: Jordan et al., "Muon: An optimizer for
    hidden layers in neural networks", 2024, kellerjordan.github.io/posts/muon."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (wide / wide.norm().clamp_min(1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """Convolutions and matrices move by `orthogonal` of their Nesterov momentum, all else by AdamW.

    A kernel (out, in, h, w) is a matrix (out, in h w). Its step is lr * .2 * sqrt(max(out, in h w)) long, so
    that its root mean square is that of AdamW's, which can have the same rate (Liu et al., "Muon is Scalable
    for LLM Training", 2502.16982, equation 4). Depthwise kernels, which are no matrix, are left to AdamW.

    groups: dicts with `params`, as of every optimizer; each is split in two.
    """

    def __init__(self, groups, lr, weight_decay):
        split = []
        for group in groups:
            matrices = [p for p in group["params"] if p.ndim > 1 and p.shape[1] > 1]
            chosen = {id(p) for p in matrices}
            others = [p for p in group["params"] if id(p) not in chosen]
            for params, is_matrix in ((matrices, True), (others, False)):
                split += [{**group, "params": params, "matrices": is_matrix}] if params else []
        super().__init__(split, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        for group in groups:
            if group["matrices"]:
                for p in group["params"]:
                    self.turn(p, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if not group["matrices"]]
        super().step()
        self.param_groups = groups

    def turn(self, p, lr, weight_decay):
        """One step of one matrix, p."""
        if p.grad is None:
            return
        state = self.state[p]
        if not state:  # AdamW looks for a step when it loads a state
            state.update({"step": torch.zeros(()), "momentum": torch.zeros_like(p)})
        momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        matrix = p.grad.lerp(momentum, MOMENTUM).flatten(1)
        length = lr * 0.2 * math.sqrt(max(matrix.shape))
        p.mul_(1 - lr * weight_decay).add_(orthogonal(matrix).view_as(p), alpha=-length)
