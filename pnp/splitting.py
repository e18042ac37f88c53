"""Splitting algorithms: a step for the data and a call of the denoiser in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def __post_init__(self):
        if (self.sigma is None) != (self.rho is None):
            raise ValueError("sigma, rho: expected both or neither")
        if self.sigma is not None:
            if len(self.sigma) != len(self.rho):
                raise ValueError(f"sigma, rho: expected equally many, got {len(self.sigma)} and {len(self.rho)}")
            object.__setattr__(self, "iterations", len(self.sigma))
            for name in ("sigma", "rho"):
                if not all(0 <= float(value) < float("inf") for value in getattr(self, name)):
                    raise ValueError(f"{name}: expected finite values of at least 0, got {getattr(self, name)}")
        for name, most in (("renewal", 1), ("reflection", 1), ("relaxation", 2)):
            if not 0 <= (getattr(self, name, None) or 0) <= most:
                raise ValueError(f"{name}: expected a number from 0 to {most} or None, got {getattr(self, name)}")
        if self.cg_iterations < 1 or not self.cg_tolerance >= 0:
            settings = f"{self.cg_iterations} and {self.cg_tolerance}"
            raise ValueError(f"cg_iterations, cg_tolerance: expected at least 1 and 0, got {settings}")
        for name in ("first", "last", "weight", "gamma", "contrast", "range"):
            if (value := getattr(self, name, None)) is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        weights = getattr(self, "weights", None)
        if weights is not None and not (
            isinstance(weights, Sequence) and len(weights) == 2 and 0 <= weights[0] <= weights[1] < float("inf")
        ):
            raise ValueError(f"weights: expected the least and the largest, finite and of at least 0, got {weights}")

    def schedule(self, problem: Problem) -> Schedule:
        if self.sigma is None:
            return self.rule(problem)  # may give further parameters of the step
        weight = problem.measured.mean_weight / problem.norm
        return [(s / problem.scale, r * weight) for s, r in zip(self.sigma, self.rho)]

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

    The momentum is k/(k + 4), with which the iterates converge, too, where the denoiser is a proximal map (Chambolle &
    Dossal, JOTA 2015, with a = 3).
    """

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        before, z, k = state if len(state) > 1 else (*state, *state, 0)
        x = problem.denoise(z - problem.gradient(z) / rho, sigma)
        return x, x + k / (k + 4) * (x - before), k + 1


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
class DouglasRachford(Splitting):
    r"""Annealed Douglas-Rachford splitting with shortened reflections and over-relaxation.

    With z the running point, v the data step at z and d the denoiser at :math:`v + r (v - z)`, the next point is
    :math:`d + r (z - v)`, and the way there is made longer by a factor (Eckstein & Bertsekas, *On the Douglas-Rachford
    splitting method*, Math Program 1992), which fills in fewer steps what the data leave open. For r = 1 this is
    Douglas-Rachford (Lions & Mercier, 1979; with denoisers, Buzzard et al., *Plug-and-play unplugged*, SIAM J Imaging
    Sci 2018), for r = 0 half-quadratic splitting. A reflection lets the denoiser see noise that the data step would
    have left to later steps, so that few steps go a long way.

    The data weight is chosen so that the measurements' noise is what the denoiser expects. Where the denoiser removes
    it, z settles at :math:`r (z - v)`, and an eigenvalue :math:`\theta` of A'A passes on noise of the power
    :math:`\theta\,\mathrm{noise}^2 / ((1 - r) \theta + \rho)^2`. With the eigenvalues in ``problem.ritz_values`` and
    their weights w, :math:`\lambda = \sum w \theta \rho / ((1 - r) \theta + \rho)^2` for
    :math:`\rho = \lambda\,\mathrm{noise}^2 / \sigma^2`. It is at most 1 and at least 0.17, for masks 0.17 + (r - 0.6),
    otherwise down to 0.05 where there is hardly any noise.

    What may be wrong in the first image is the noise, amplified where A is weak, 1.5 noise over the mean eigenvalue to
    the 3/4; and coarse structure that A leaves open, the more of it the lower its frequency k in radians per pixel,
    0.045 / k^2. The levels begin with the larger of them, from 0.1 to 0.7 of the range, for masks to 0.2, and fall as
    a fourth power. Fewer than ten iterations start lower, with masks most where 0.3 to 0.5 is left open, and not at
    all beyond 0.9, which is a longer way.

    A reflection also amplifies what A passes on weakly. Where that is little, as with masks in k-space or in the image,
    whose eigenvalues are 0 or near 1, r is 0.7 to 0.8, longer the more they leave open, and the factor 1.7 where that
    is most. Where the mean eigenvalue is far below 0.1, as in tomography, deconvolution and radial MRI, r is 0.6 and
    the factor 1.5; where structure is wrong rather than noise, up to 0.7 and 1.7, if there are iterations enough, from
    ten on in full. Both are there to fill in what is left open: where A hardly leaves a direction open, as in mild
    deconvolution, the factor falls to 1, and r to 0.3. The longer z is under way, the more it is smoothed: beyond 16
    iterations, in tomography beyond 9 where noise is all that is wrong, the factor falls, so that more of them go no
    further. Where A'A is a mask (of one coil, or of pixels) that leaves most open, the noise counts as 0.002 at least,
    since few steps do not tell more of that. Further parameters as in :class:`Splitting`.

    :param reflection: r, from 0 to 1; None for the rule.
    :param relaxation: factor of the step, from 0 to 2; 1 for none, None for the rule.
    :param first: first denoiser level, in units of the image's range; the last is the noise level. None for the rule.
    :param weights: range of lambda; None for the rule.
    """

    iterations: int = 12
    cg_iterations: int = 15
    cg_tolerance: float = 1e-3
    reflection: float | None = None
    relaxation: float | None = None
    first: float | None = None
    weights: tuple[float, float] | None = None

    def rule(self, problem: Problem) -> Schedule:
        def between(first: Tensor, last: Tensor, share: Tensor | float) -> Tensor:
            return (first**0.25 * (1 - share) + last**0.25 * share) ** 4

        theta, shape = problem.ritz_values.clamp_min(0), problem.noise.shape
        mean = (problem.ritz_weights * theta).sum(1).reshape(shape)
        left_open = (problem.ritz_weights * (1e-3 / (theta + 1e-3)) ** 2).sum(1).reshape(shape)
        strong, fill = (mean / 0.1).clamp(0, 1), (left_open / 0.3).clamp(0, 1)
        weak = 1 - (problem.ritz_weights * theta**2).sum(1).reshape(shape) / mean  # 0 for a mask
        mostly = ((left_open - 0.55) / 0.15).clamp(0, 1)
        noise = torch.maximum(problem.noise, 2e-3 * (1 - weak / 0.05).clamp(0, 1) * mostly)
        noisy, coarse = 1.5 * problem.noise / mean**0.75, 0.045 / problem.unseen
        structure = (coarse / noisy.clamp_min(0.1)).clamp(0, 1) * min(max(self.iterations / 5 - 1, 0), 1)
        r = 0.3 + (0.3 + 0.1 * structure) * (left_open / 0.45).clamp(0, 1)
        r = (1 - strong) * r + strong * (0.7 + 0.1 * left_open)
        r = r if self.reflection is None else torch.full_like(r, self.reflection)
        relaxation = self.relaxation
        if relaxation is None:
            done = (1 - strong) * ((noisy - 0.2) / 0.2).clamp(0, 1) * ((0.3 - coarse) / 0.15).clamp(0, 1)
            relaxation = 1 + (0.5 + 0.2 * (1 - strong) * structure) * fill + 0.2 * strong * mostly
            relaxation = relaxation * ((16 - 7 * done) / self.iterations).clamp_max(1)
        low = 0.05 + 0.12 * (noisy / 0.2).clamp(0, 1)
        low, high = self.weights or ((1 - strong**2) * low + strong**2 * (r - 0.43).clamp_min(0.17), 1.0)
        lower = 1 - strong * (1 - (fill * ((0.9 - left_open) / 0.4).clamp(0, 1)).clamp_max(0.8))
        skipped = lower * min(max(10 - self.iterations, 0) ** 2 / 80, 0.7)
        most = between(0.7 ** (1 - strong) * 0.2**strong, noise, skipped)
        first = torch.maximum(noisy, coarse).clamp_min(0.1).minimum(most)
        first = first if self.first is None else torch.full_like(noise, self.first)
        last = noise.minimum(first)
        for share in torch.linspace(0, 1, self.iterations).tolist():
            sigma = between(first, last, share)
            yield sigma, self._weight(problem, (noise / sigma) ** 2, r, low, high), r, relaxation

    def _weight(self, problem: Problem, ratio: Tensor, r: Tensor, low: Tensor | float, high: float) -> Tensor:
        """lambda times the ratio: the more it is, the less noise passes, so that bisection finds it."""
        theta, short = problem.ritz_values.clamp_min(0), 1 - r.reshape(-1, 1)
        low, high = torch.zeros_like(ratio) + low, torch.zeros_like(ratio) + high
        for _ in range(12):
            middle = (low + high) / 2
            seen = short * theta + (middle * ratio).reshape(-1, 1)
            passed = ratio * (problem.ritz_weights * theta / seen**2).sum(1).reshape(ratio.shape)
            low, high = torch.where(passed > 1, middle, low), torch.where(passed > 1, high, middle)
        return low * ratio

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor, r=None, relaxation=None) -> State:
        z = state[-1]
        if r is None:  # with an explicit schedule
            r = 0.6 if self.reflection is None else self.reflection
            relaxation = 1.5 if self.relaxation is None else self.relaxation
        v = self.data_step(problem, z, rho)
        d = problem.denoise(v + r * (v - z), sigma)
        return d, z + relaxation * (d + r * (z - v) - z)


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
