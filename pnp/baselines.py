"""What users compare with: direct reconstruction, least squares, total variation and wavelets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from deepinv.models import TVDenoiser
from torch import Tensor

import denoisers
from pnp.data_step import conjugate_gradients
from pnp.problem import Problem
from pnp.splitting import FISTA, Schedule, State


@dataclass(frozen=True)
class Direct:
    """What the scanner would show: filtered back-projection or density-compensated gridding where the operator has
    them, else its adjoint scaled by the norm."""

    iterations: int = 1
    uses_denoiser = False

    def schedule(self, problem: Problem) -> Schedule:
        return [(torch.zeros_like(problem.norm), torch.zeros_like(problem.norm))]

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        op, y = problem.measured.op, problem.measured.given  # not whitened
        if hasattr(op, "fbp"):
            return (op.fbp(y) / problem.scale,)
        if hasattr(op, "density_compensation"):
            return (op.A_adjoint(y * op.density_compensation().to(y)) / problem.scale,)
        return (problem.adjoint_y,)


@dataclass(frozen=True)
class ConjugateGradients:
    """Least squares by a few conjugate-gradient iterations from 0; for multi-coil MRI this is CG-SENSE.

    Pruessmann et al., *Advances in sensitivity encoding with arbitrary k-space trajectories*, Magn Reson Med 2001.
    Stopping early is what keeps the noise down, besides ``rho``.

    :param iterations: number of conjugate-gradient iterations.
    :param rho: weight of |u|^2 relative to the operator's norm.
    """

    iterations: int = 10
    rho: float = 0.0
    uses_denoiser = False

    def schedule(self, problem: Problem) -> Schedule:
        return [(torch.zeros_like(problem.norm), torch.full_like(problem.norm, self.rho))]

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        x = conjugate_gradients(problem.normal, problem.adjoint_y, rho, self.iterations, tolerance=1e-6)
        return (x,)


@dataclass(frozen=True)
class TotalVariation:
    r"""The minimiser of :math:`f(x) + \lambda\, \mathrm{TV}(x)`, the usual one before learned priors.

    Rudin, Osher & Fatemi, 1992; by the primal-dual splitting of Condat (JOTA 2013), which takes one normal product an
    iteration. Isotropic; edges of real and imaginary part count together.

    :param iterations: number of iterations.
    :param threshold: lambda in units of the standard deviation of A'n for noise n.
    :param least: least lambda in units of the image's range, for measurements all but free of noise.
    """

    iterations: int = 200
    threshold: float = 0.8
    least: float = 3e-4
    uses_denoiser = False

    def schedule(self, problem: Problem) -> Schedule:
        passed = (problem.ritz_weights * problem.ritz_values).sum(1).sqrt().reshape(problem.noise.shape)
        weight = (self.threshold * passed * problem.noise).clamp_min(self.least)
        return [(weight, torch.ones_like(weight))] * self.iterations

    def step(self, problem: Problem, state: State, weight: Tensor, rho: Tensor) -> State:
        before, u = state if len(state) > 1 else (*state, TVDenoiser.nabla(0 * state[0]))
        x = before - problem.gradient(before) - TVDenoiser.nabla_adjoint(u)
        axes = x.ndim - 2  # with norms 1 of A'A and 4 axes of the gradient's, a dual step of (1 - 1/2) / (4 axes)
        u = u + TVDenoiser.nabla(2 * x - before) / (8 * axes)
        return x, u / (torch.linalg.vector_norm(u, dim=(1, -1), keepdim=True) / weight[..., None]).clamp_min(1)


@dataclass(frozen=True)
class Wavelets(FISTA):
    r"""The minimiser of :math:`f(x) + \lambda |Wx|_1` for wavelet coefficients Wx, as in compressed-sensing MRI.

    Lustig, Donoho & Pauly, *Sparse MRI*, Magn Reson Med 2007; by :class:`FISTA` with thresholds as in
    ``denoisers.load("wavelet")``.

    :param threshold: lambda in units of the standard deviation of A'n for noise n.
    :param least: least lambda in units of the image's range, for measurements all but free of noise.
    """

    threshold: float = 1.0
    least: float = 3e-4
    uses_denoiser = False

    @property
    def denoiser(self):
        return denoisers.classical.Wavelet(weight=1.0)

    def schedule(self, problem: Problem) -> Schedule:
        problem.varying = False  # the minimiser is one of all slices
        return TotalVariation.schedule(self, problem)
