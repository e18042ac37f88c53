"""The algorithms. Each is its parameters, a schedule, and a step that reads like its paper's.

To add one, write a dataclass with ``iterations``, ``schedule(problem)``, which gives the pairs (sigma, rho) of denoiser
level and data weight, and ``step(problem, state, sigma, rho)``, which returns the next state. States are tuples: the
image comes first, and the start is the image alone. Put its name into :data:`ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pnp.data_step import conjugate_gradients
from pnp.problem import Problem
from pnp.schedules import log_spaced

State = tuple[Tensor, ...]
Schedule = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class HQS:
    """Half-quadratic splitting with a denoiser.

    Zhang et al., *Plug-and-play image restoration with deep denoiser prior* (DPIR), TPAMI 2021. The denoiser's level
    falls geometrically from ``first`` to ``last`` times the noise level, and the data weight follows it.

    :param iterations: number of iterations, one denoiser call each.
    :param weight: rho = weight noise^2 / sigma^2.
    :param first: first denoiser level, in units of the image's range.
    :param last: last denoiser level, in units of the noise.
    :param sigma: explicit denoiser levels in the user's units of x, instead of the rule; with ``rho``.
    :param rho: explicit data weights in the user's units, in |Ax - y|^2 + rho |x - z|^2.
    :param cg_iterations: most conjugate-gradient iterations in a data step that has no closed form.
    :param cg_tolerance: residual at which they stop, relative to the first.
    """

    iterations: int = 24
    weight: float = 0.23
    first: float = 0.29
    last: float = 0.5
    sigma: Sequence[float] | None = None
    rho: Sequence[float] | None = None
    cg_iterations: int = 8
    cg_tolerance: float = 1e-2
    uses_denoiser = True

    def __post_init__(self):
        if (self.sigma is None) != (self.rho is None):
            raise ValueError("sigma, rho: expected both or neither")
        if self.sigma is not None:
            if len(self.sigma) != len(self.rho):
                raise ValueError(f"sigma, rho: expected equally many, got {len(self.sigma)} and {len(self.rho)}")
            object.__setattr__(self, "iterations", len(self.sigma))

    def schedule(self, problem: Problem) -> Schedule:
        if self.sigma is not None:
            return [(s / problem.scale, r / problem.norm) for s, r in zip(self.sigma, self.rho)]
        sigma = log_spaced(self.first, (self.last * problem.noise).clamp_max(self.first), self.iterations)
        return zip(sigma, self.weight * (problem.noise / sigma) ** 2)

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        (z,) = state
        x = problem.data_step(z, rho, self.cg_iterations, self.cg_tolerance)
        return (problem.denoise(x, sigma),)


@dataclass(frozen=True)
class DouglasRachford:
    r"""Annealed Douglas-Rachford splitting with relaxed reflections.

    With z the running point, v the data step at z and d the denoiser at :math:`v + r (v - z)`, the next point is
    :math:`d + r (z - v)`. For r = 1 this is Douglas-Rachford (Lions & Mercier, 1979; with denoisers, Buzzard et al.,
    *Plug-and-play unplugged*, SIAM J Imaging Sci 2018), for r = 0 half-quadratic splitting. A reflection lets the
    denoiser see noise that the data step would have left to later steps, so that few steps go a long way. The data
    weight is chosen so that the measurements' noise, as the reflection passes it on, is what the denoiser expects: with
    the eigenvalues of A'A in ``problem.ritz_values``, :math:`\lambda = (1 + r)^2 \sum w \theta \rho / (\theta +
    \rho)^2` for :math:`\rho = \lambda\,\mathrm{noise}^2 / \sigma^2`.

    :param iterations: number of iterations, one denoiser call each.
    :param reflection: r, from 0 to 1.
    :param first: first denoiser level, in units of the image's range; the last is the noise level.
    :param weights: range of lambda.
    :param cg_iterations: most conjugate-gradient iterations in a data step that has no closed form.
    :param cg_tolerance: residual at which they stop, relative to the first.
    """

    iterations: int = 10
    reflection: float = 0.6
    first: float = 0.294
    weights: tuple[float, float] = (0.23, 1.0)
    cg_iterations: int = 15
    cg_tolerance: float = 1e-3
    uses_denoiser = True

    def schedule(self, problem: Problem) -> Schedule:
        last = problem.noise.clamp_max(self.first)
        for t in torch.linspace(0, 1, self.iterations).tolist():
            sigma = (self.first**0.25 * (1 - t) + last**0.25 * t) ** 4
            yield sigma, self._weight(problem, sigma)

    def _weight(self, problem: Problem, sigma: Tensor) -> Tensor:
        ratio = (problem.noise / sigma) ** 2
        theta = problem.ritz_values.clamp_min(0)
        weight = torch.full_like(ratio, 0.35)
        for _ in range(8):
            rho = (weight * ratio).reshape(-1, 1)
            passed = (problem.ritz_weights * theta * rho / (theta + rho) ** 2).sum(1).reshape(ratio.shape)
            weight = 0.5 * weight + 0.5 * ((1 + self.reflection) ** 2 * passed).clamp(*self.weights)
        return weight * ratio

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        z, r = state[-1], self.reflection
        v = problem.data_step(z, rho, self.cg_iterations, self.cg_tolerance)
        d = problem.denoise(v + r * (v - z), sigma)
        return d, d + r * (z - v)


@dataclass(frozen=True)
class Direct:
    """What the scanner would show: the operator's filtered back-projection, else its adjoint scaled by the norm."""

    iterations: int = 1
    uses_denoiser = False

    def schedule(self, problem: Problem) -> Schedule:
        return [(torch.zeros_like(problem.norm), torch.zeros_like(problem.norm))]

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        op = problem.measured.op
        if hasattr(op, "fbp"):
            return (op.fbp(problem.measured.y) / problem.scale,)
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


ALGORITHMS = {"hqs": HQS, "drs": DouglasRachford, "direct": Direct, "cg": ConjugateGradients}
RECOMMENDED = "hqs"


def find(algorithm, iterations: int | None):
    """The algorithm of a name (None: the recommended one), or the given one, with ``iterations`` if they are given."""
    name = RECOMMENDED if algorithm is None else algorithm
    if isinstance(name, str):
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)} or an algorithm, got {name!r}")
        algorithm = ALGORITHMS[name]()
    elif not hasattr(algorithm, "step") or not hasattr(algorithm, "schedule"):
        raise TypeError(f"algorithm: expected a name or an algorithm, got {type(algorithm).__name__}")
    if iterations is not None:
        if iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {iterations}")
        algorithm = replace(algorithm, iterations=iterations)
    return algorithm
