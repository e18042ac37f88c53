"""The optimiser of the denoisers: steps of equal size in every direction of a layer's weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon: momentum whose matrix is made orthogonal before each step (Jordan et al., 2024), for convolutions too.

    A kernel (outputs, inputs, h, w) is taken as the matrix (outputs, inputs h w). Steps are scaled to the usual root
    mean square of Adam's (Liu et al., *Muon is scalable for LLM training*, 2025), so that Adam's learning rates fit.
    Vectors and kernels with fewer than 16 inputs or outputs, such as those next to the image, are left to Adam; so are
    those with more than 512 of both, such as a transformer's, for which an orthogonal step costs more than the rest.

    :param parameters: parameters to optimise.
    :param lr: learning rate.
    :param momentum: share of the old momentum that each step keeps.
    :param betas: of Adam, for the remaining parameters.
    """

    def __init__(self, parameters, lr: float = 2e-3, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            matrices = {}  # weights of one shape step together
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if weight.ndim > 1 and 16 <= min(weight.shape[:2]) <= 512:
                    matrices.setdefault(weight.shape, []).append(weight)
                else:
                    weight.sub_(self._adam(weight, self.state[weight], group["betas"]), alpha=group["lr"])
            for weights in matrices.values():
                steps = orthogonal(torch.stack([self._nesterov(w, self.state[w], group["momentum"]) for w in weights]))
                for weight, step in zip(weights, 0.2 * math.sqrt(max(steps.shape[1:])) * steps):
                    weight.sub_(step.reshape(weight.shape), alpha=group["lr"])
        return loss

    @staticmethod
    def _nesterov(weight: Tensor, state: dict, momentum: float) -> Tensor:
        """The momentum, looked at ahead, as a matrix."""
        mean = state.setdefault("mean", torch.zeros_like(weight)).lerp_(weight.grad, 1 - momentum)
        # a dead unit's decays to denormal numbers, with which a processor multiplies up to 75 times slower
        mean.mul_(mean.abs() > 1e-10 * mean.abs().max())
        return weight.grad.lerp(mean, momentum).flatten(1)

    @staticmethod
    def _adam(weight: Tensor, state: dict, betas: tuple[float, float]) -> Tensor:
        state["steps"] = state.get("steps", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(weight)).lerp_(weight.grad, 1 - betas[0])
        square = state.setdefault("square", torch.zeros_like(weight)).lerp_(weight.grad.square(), 1 - betas[1])
        mean, square = (m / (1 - beta ** state["steps"]) for m, beta in zip((mean, square), betas))
        return mean / (square.sqrt() + 1e-8)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the orthogonal factors of matrices (..., m, n): their singular values brought to between 0.7 and 1.2
    (Newton-Schulz with the coefficients of Jordan, 2024)."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    gram = x @ x.mT
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)

    def factor(gram):
        return 3.4445 * identity - 4.7750 * gram + 2.0315 * gram @ gram

    total = last = factor(gram)
    for _ in range(iterations - 1):  # x <- factor x, but only the small matrices go through the iteration
        gram = last @ last @ gram
        last = factor(gram)
        total = last @ total
    x = total @ x
    return x.mT if tall else x
