"""The algorithms. Each is its parameters, a schedule, and a step that reads like its paper's.

To add one, write a dataclass with ``iterations``, ``schedule(problem)``, which gives the pairs (sigma, rho) of denoiser
level and data weight, and ``step(problem, state, sigma, rho)``, which returns the next state. States are tuples: the
image comes first, and the start is the image alone. An ``objective(problem, state)``, where there is one, goes into the
history. Put its name into :data:`ALGORITHMS`.

The data term is f(x) = |A x - y|^2 / 2 throughout, and D is the denoiser. ``rho`` is the inverse of what many papers
call the step size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from deepinv.models import TVDenoiser
from torch import Tensor

import denoisers
from pnp.data_step import conjugate_gradients, dot
from pnp.problem import Problem
from pnp.schedules import log_spaced

State = tuple
Schedule = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Splitting:
    """What the algorithms share whose iterations consist of a step for the data and a call of the denoiser.

    :param iterations: number of iterations, one denoiser call each.
    :param sigma: explicit denoiser levels in the user's units of x, instead of the rule; with ``rho``.
    :param rho: explicit data weights in the user's units, in |Ax - y|^2 + rho |x - z|^2.
    :param cg_iterations: most conjugate-gradient iterations in a data step that has no closed form.
    :param cg_tolerance: residual at which they stop, relative to the first.
    """

    iterations: int = 24
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
        if self.sigma is None:
            return self.rule(problem)
        return [(s / problem.scale, r / problem.norm) for s, r in zip(self.sigma, self.rho)]

    def data_step(self, problem: Problem, z: Tensor, rho: Tensor) -> Tensor:
        return problem.data_step(z, rho, self.cg_iterations, self.cg_tolerance)


@dataclass(frozen=True)
class HQS(Splitting):
    """Half-quadratic splitting with a denoiser.

    Zhang et al., *Plug-and-play image restoration with deep denoiser prior* (DPIR), TPAMI 2021. The denoiser's level
    falls geometrically from ``first`` to ``last`` times the noise level, and the data weight follows it. Further
    parameters as in :class:`Splitting`.

    :param weight: rho = weight noise^2 / sigma^2.
    :param first: first denoiser level, in units of the image's range.
    :param last: last denoiser level, in units of the noise.
    """

    weight: float = 0.23
    first: float = 0.29
    last: float = 0.5

    def rule(self, problem: Problem) -> Schedule:
        sigma = log_spaced(self.first, (self.last * problem.noise).clamp_max(self.first), self.iterations)
        return zip(sigma, self.weight * (problem.noise / sigma) ** 2)

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        (z,) = state
        return (problem.denoise(self.data_step(problem, z, rho), sigma),)


@dataclass(frozen=True)
class ADMM(HQS):
    """Alternating direction method of multipliers with a denoiser, from a zero dual.

    Venkatakrishnan, Bouman & Wohlberg, *Plug-and-play priors for model based reconstruction*, GlobalSIP 2013; with
    levels that fall, Chan, Wang & Elgendy, TCI 2017. Parameters as in :class:`HQS`.
    """

    weight: float = 0.5
    last: float = 0.7

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        x, u = state if len(state) > 1 else (*state, 0.0)
        v = self.data_step(problem, x - u, rho)
        x = problem.denoise(v + u, sigma)
        return x, u + v - x


@dataclass(frozen=True)
class PGD(HQS):
    """Proximal gradient descent (ISTA) with a denoiser: no systems to solve, but many iterations.

    Forward-backward splitting; with denoisers Kamilov, Mansour & Wohlberg, SPL 2017. The step is 1/rho, by default that
    of the operator's norm; where the level ends, the prior weighs as much as in :class:`HQS`.
    """

    iterations: int = 100

    def rule(self, problem: Problem) -> Schedule:
        sigma = log_spaced(self.first, (self.weight**0.5 * problem.noise).clamp_max(self.first), self.iterations)
        return zip(sigma, torch.ones_like(sigma))

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        (x,) = state
        return (problem.denoise(x - problem.gradient(x) / rho, sigma),)


@dataclass(frozen=True)
class FISTA(PGD):
    """Proximal gradient descent with Nesterov's momentum (Beck & Teboulle, SIAM J Imaging Sci 2009).

    The momentum is (k + 2)/(k + 3), with which the iterates converge, too (Chambolle & Dossal, JOTA 2015).
    """

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        before, z, k = state if len(state) > 1 else (*state, *state, 0)
        x = problem.denoise(z - problem.gradient(z) / rho, sigma)
        return x, x + (k + 2) / (k + 3) * (x - before), k + 1


@dataclass(frozen=True)
class PrimalDual(PGD):
    """Primal-dual splitting (Chambolle & Pock, J Math Imaging Vis 2011) with a denoiser.

    The dual variable u of the measurements is needed only as A'u, so that the normal product suffices. The primal step
    is 1/rho, the dual one rho.
    """

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        before, z, u = state if len(state) > 1 else (*state, *state, 0.0)
        u = (u + rho * problem.gradient(z)) / (1 + rho)
        x = problem.denoise(before - u / rho, sigma)
        return x, 2 * x - before, u


@dataclass(frozen=True)
class RED(HQS):
    """Regularisation by denoising: the image at which the pull of the data balances rho (x - D(x)).

    Romano, Elad & Milanfar, *The little engine that could*, SIAM J Imaging Sci 2017. Parameters as in :class:`HQS`.

    :param fixed_point: True for their fixed-point iteration, with a data step; False for gradient descent.
    """

    fixed_point: bool = True

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        (x,) = state
        d = problem.denoise(x, sigma)
        if self.fixed_point:
            return (self.data_step(problem, d, rho),)
        return (x - (problem.gradient(x) + rho * (x - d)) / (1 + rho),)


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
    uses_denoiser = True

    def schedule(self, problem: Problem) -> Schedule:
        sigma = (self.level * problem.noise).clamp_max(HQS.first)
        return [(sigma, self.weight * (problem.noise / sigma) ** 2)] * self.iterations

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
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


@dataclass(frozen=True)
class DouglasRachford(Splitting):
    r"""Annealed Douglas-Rachford splitting with relaxed reflections.

    With z the running point, v the data step at z and d the denoiser at :math:`v + r (v - z)`, the next point is
    :math:`d + r (z - v)`. For r = 1 this is Douglas-Rachford (Lions & Mercier, 1979; with denoisers, Buzzard et al.,
    *Plug-and-play unplugged*, SIAM J Imaging Sci 2018), for r = 0 half-quadratic splitting. A reflection lets the
    denoiser see noise that the data step would have left to later steps, so that few steps go a long way. The data
    weight is chosen so that the measurements' noise, as the reflection passes it on, is what the denoiser expects: with
    the eigenvalues of A'A in ``problem.ritz_values``, :math:`\lambda = (1 + r)^2 \sum w \theta \rho / (\theta +
    \rho)^2` for :math:`\rho = \lambda\,\mathrm{noise}^2 / \sigma^2`. Further parameters as in :class:`Splitting`.

    :param reflection: r, from 0 to 1.
    :param first: first denoiser level, in units of the image's range; the last is the noise level.
    :param weights: range of lambda.
    """

    iterations: int = 16
    cg_iterations: int = 15
    cg_tolerance: float = 1e-3
    reflection: float = 0.6
    first: float = 0.294
    weights: tuple[float, float] = (0.23, 1.0)

    def rule(self, problem: Problem) -> Schedule:
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
        v = self.data_step(problem, z, rho)
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
        u = u + TVDenoiser.nabla(2 * x - before) / 16  # 1/16 = (1 - 1/2)/8, with norms 1 of A'A and 8 of the gradient's
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
    schedule = TotalVariation.schedule

    @property
    def denoiser(self):
        return denoisers.classical.Wavelet(weight=1.0)


ALGORITHMS = {
    "hqs": HQS(),
    "admm": ADMM(),
    "pgd": PGD(),
    "fista": FISTA(),
    "drs": DouglasRachford(),
    "primal-dual": PrimalDual(),
    "red": RED(),
    "red-gradient": RED(iterations=100, fixed_point=False),
    "gradient-step": GradientStep(),
    "direct": Direct(),
    "cg": ConjugateGradients(),
    "tv": TotalVariation(),
    "wavelet": Wavelets(),
}
RECOMMENDED = "drs"


def find(algorithm, iterations: int | None):
    """The algorithm of a name (None: the recommended one), or the given one, with ``iterations`` if they are given."""
    name = RECOMMENDED if algorithm is None else algorithm
    if isinstance(name, str):
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)} or an algorithm, got {name!r}")
        algorithm = ALGORITHMS[name]
    elif not hasattr(algorithm, "step") or not hasattr(algorithm, "schedule"):
        raise TypeError(f"algorithm: expected a name or an algorithm, got {type(algorithm).__name__}")
    if iterations is not None:
        if iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {iterations}")
        algorithm = replace(algorithm, iterations=iterations)
    return algorithm
