"""Diffusion samplers: the loop of the splittings, with noise added back before each call of the denoiser.

In all of them x is the estimate of the image, and z = x + sigma e what a diffusion would have reached at the level
sigma (in its variance-exploding form). They differ in how x is made to fit the measurements, and in which noise e is
added: that which z held, or fresh one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pnp.problem import Problem
from pnp.splitting import HQS, State


@dataclass(frozen=True)
class DiffPIR(HQS):
    """Denoising diffusion for plug-and-play restoration (Zhu et al., CVPR Workshops 2023).

    In few iterations, fresh noise alone reaches far more than what z held, and the spread of the samples is about half
    of their error.

    Levels and data weights as in :class:`HQS`.

    :param renewal: share zeta of fresh noise in what is added back.
    """

    iterations: int = 20
    weight: float = 1.0
    renewal: float = 1.0
    first: float = 1.0

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        x, e = state if len(state) > 1 else (*state, problem.white())
        z = x + sigma * ((1 - self.renewal) ** 0.5 * e + self.renewal**0.5 * problem.white())
        x = self.consistent(problem, problem.denoise(z, sigma), rho)
        return x, (z - x) / sigma

    def consistent(self, problem: Problem, d: Tensor, rho: Tensor) -> Tensor:
        """The denoised image, made to fit the measurements."""
        return self.data_step(problem, d, rho)


@dataclass(frozen=True)
class DDS(DiffPIR):
    """Decomposed diffusion sampler (Chung, Lee & Ye, ICLR 2024): a few conjugate-gradient iterations, always alike.

    :param gamma: weight of the measurements; the data step has rho = 1/gamma.
    """

    renewal: float = 0.72  # their eta = 0.85
    gamma: float = 5.0
    cg_iterations: int = 5
    cg_tolerance: float = 0.0

    def consistent(self, problem: Problem, d: Tensor, rho: Tensor) -> Tensor:
        return self.data_step(problem, d, torch.full_like(rho, 1 / self.gamma))
