"""The optimiser of the denoisers: steps of equal size in every direction of a layer's weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """Muon: momentum whose matrix is made orthogonal before each step (Jordan et al., 2024), for convolutions too.

    A kernel (outputs, inputs, h, w) is taken as the matrix (outputs, inputs h w). Steps are scaled to the usual root
    mean square of Adam's (Liu et al., *Muon is scalable for LLM training*, 2025), so that Adam's learning rates fit.
    Vectors and kernels with fewer than 16 inputs or outputs, such as those next to the image, are left to Adam.

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
            for weight in group["params"]:
                if weight.grad is not None:
                    step = self._muon if weight.ndim > 1 and min(weight.shape[:2]) >= 16 else self._adam
                    weight.sub_(step(weight, self.state[weight], **group), alpha=group["lr"])
        return loss

    @staticmethod
    def _muon(weight: Tensor, state: dict, momentum: float, **_) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(weight)).lerp_(weight.grad, 1 - momentum)
        matrix = weight.grad.lerp(mean, momentum).flatten(1)  # Nesterov's look ahead
        return 0.2 * math.sqrt(max(matrix.shape)) * orthogonal(matrix).reshape(weight.shape)

    @staticmethod
    def _adam(weight: Tensor, state: dict, betas: tuple[float, float], **_) -> Tensor:
        state["steps"] = state.get("steps", 0) + 1
        mean = state.setdefault("mean", torch.zeros_like(weight)).lerp_(weight.grad, 1 - betas[0])
        square = state.setdefault("square", torch.zeros_like(weight)).lerp_(weight.grad.square(), 1 - betas[1])
        mean, square = (m / (1 - beta ** state["steps"]) for m, beta in zip((mean, square), betas))
        return mean / (square.sqrt() + 1e-8)


def orthogonal(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearly the orthogonal factor of a matrix: its singular values brought to between 0.7 and 1.2 (Jordan, 2024)."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-12)
    for _ in range(iterations):  # Newton-Schulz, with Jordan's coefficients
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
