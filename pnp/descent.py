"""Plug-and-play as descent on an explicit objective."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pnp.data_step import dot
from pnp.problem import Problem
from pnp.schedules import log_spaced
from pnp.splitting import HQS, Schedule, State


@dataclass(frozen=True)
class GradientStep:
    r"""Descent on :math:`f(x) + \rho\, g(x)`, for denoisers :math:`D = I - \nabla g` whose g has a value.

    Hurault, Leclaire & Papadakis, *Gradient step denoiser for convergent plug-and-play*, ICLR 2022. Needs a denoiser
    with a ``potential``, such as ``denoisers.load("gradient-step")``. The start comes from a few iterations of
    half-quadratic splitting, whose level falls to sigma. Then the step size is halved until the objective decreases as
    it must; its value is in the history.

    :param iterations: number of iterations.
    :param weight: rho = weight noise^2 / sigma^2.
    :param level: sigma in units of the noise.
    :param start: iterations of half-quadratic splitting before.
    :param proximal: True for a gradient step on g and a data step, False for a gradient step on both.
    :param armijo: share of the decrease that a step of its length promises which must be reached.
    :param cg_iterations: most conjugate-gradient iterations in a data step that has no closed form.
    """

    iterations: int = 60
    weight: float = 0.23
    level: float = 1.0
    start: int = 10
    proximal: bool = True
    armijo: float = 0.1
    cg_iterations: int = 30

    def schedule(self, problem: Problem) -> Schedule:
        sigma = (self.level * problem.noise).clamp_max(HQS.first)
        return [(sigma, self.weight * (problem.noise / sigma) ** 2)] * self.iterations

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        problem.varying = False  # the objective is one of all slices
        x, value, tau = state if len(state) > 1 else self._begin(problem, *state, sigma, rho)
        slope = rho * (x - problem.denoise(x, sigma))
        if not self.proximal:
            slope = slope + problem.gradient(x)
        found, lower, improved = x, value, torch.zeros_like(value, dtype=torch.bool)
        for _ in range(20):
            tried = x - tau * slope
            if self.proximal:
                tried = problem.data_step(tried, 1 / tau, self.cg_iterations, 1e-6)
            reached = self._value(problem, tried, sigma, rho)
            enough = value - reached >= self.armijo / tau * dot(tried - x, tried - x)
            accepted = enough & ~improved
            found, lower = torch.where(accepted, tried, found), torch.where(accepted, reached, lower)
            improved |= enough
            if improved.all():
                break
            tau = torch.where(improved, tau, 0.5 * tau)
        return found, lower, tau

    def objective(self, problem: Problem, state: State) -> Tensor:
        return state[1]

    def _begin(self, problem: Problem, x: Tensor, sigma: Tensor, rho: Tensor) -> State:
        down = log_spaced(HQS.first, sigma, self.start)
        for level in down:
            (x,) = HQS().step(problem, (x,), level, self.weight * (problem.noise / level) ** 2)
        return x, self._value(problem, x, sigma, rho), (1 / rho if self.proximal else 1 / (1 + rho))

    @staticmethod
    def _value(problem: Problem, x: Tensor, sigma: Tensor, rho: Tensor) -> Tensor:
        return problem.data_term(x) + rho * problem.potential(x, sigma)
