"""Muon, an optimizer that needs fewer steps than AdamW."""

import math

import torch

MOMENTUM = 0.95
ITERATIONS = 5


def newton_schulz(matrix):
    """(m, n) -> (m, n) bfloat16 with the singular vectors of `matrix`, and singular values of about 1 (.7 to
    1.2; those that are next to 0 less). Jordan et al., "Muon: An optimizer for hidden layers in neural
    networks", 2024, kellerjordan.github.io/posts/muon."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = (wide / wide.norm().clamp_min(1e-7)).bfloat16()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """Kernels and matrices move by `newton_schulz` of their Nesterov momentum, all else by AdamW.

    A kernel (out, in, h, w) is a matrix (out, in h w). Its step is .2 lr sqrt(max(out, in h w)) times that
    matrix, so that its root mean square is that of AdamW's, which can have the same rate (Liu et al., "Muon
    is Scalable for LLM Training", 2502.16982, equation 4). First and last layers are moved so, too, where
    Jordan et al. leave them to AdamW; kernels of one input channel, depthwise ones say, are no matrix.
    torch.optim.Muon takes (m, n) alone, and would be a second optimizer beside AdamW, with its own state.

    groups: dicts with `params`; each is split in two, which keep what else it has.
    """

    def __init__(self, groups, lr, weight_decay):
        split = []
        for group in groups:
            params = list(group["params"])
            matrices = [p for p in params if p.ndim > 1 and p.shape[1] > 1]
            chosen = {id(p) for p in matrices}
            others = [p for p in params if id(p) not in chosen]
            for part, is_matrix in ((matrices, True), (others, False)):
                split += [{**group, "params": part, "is_matrix": is_matrix}] if part else []
        super().__init__(split, lr=lr, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self):
        groups = self.param_groups
        for group in groups:
            if group["is_matrix"]:
                for p in group["params"]:
                    self.update(p, group["lr"], group["weight_decay"])
        try:
            self.param_groups = [group for group in groups if not group["is_matrix"]]
            super().step()
        finally:
            self.param_groups = groups

    def update(self, p, lr, weight_decay):
        """One step of one kernel or matrix."""
        if p.grad is None:
            return
        state = self.state[p]
        if not state:  # AdamW looks for a step when it loads a state
            state.update({"step": torch.zeros(()), "momentum": torch.zeros_like(p)})
        momentum = state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        matrix = p.grad.lerp(momentum, MOMENTUM).flatten(1)
        scale = 0.2 * lr * math.sqrt(max(matrix.shape))
        p.mul_(1 - lr * weight_decay).add_(newton_schulz(matrix).view_as(p), alpha=-scale)
