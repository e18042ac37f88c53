"""Samples of what the image may be, given the measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from operators.operator import whole
from pnp import algorithms
from pnp.problem import Problem
from pnp.solver import iterate, solve


@dataclass(repr=False)
class Samples:
    """What :func:`sample` drew.

    :param x: samples (n, B, C, H, W).
    :param noise: standard deviation of the noise in y that was told or estimated.
    :param calls: how often operator and denoiser were called, for all samples together.
    :param seconds: wall time.
    """

    x: Tensor
    noise: float | Tensor | TensorList
    calls: dict[str, int]
    seconds: float

    @property
    def mean(self) -> Tensor:
        """(B, C, H, W)."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the samples at each pixel, (B, C, H, W); of at least two samples."""
        if len(self.x) < 2:
            raise ValueError("std: expected at least two samples, got one")
        return self.x.std(0)

    def __repr__(self) -> str:
        calls = ", ".join(f"{count} x {name}" for name, count in self.calls.items() if count)
        return f"Samples(x {tuple(self.x.shape)}, {calls}, {self.seconds:.2f} s)"


@torch.inference_mode(False)  # some denoisers and samplers are gradients
@torch.no_grad()
def sample(
    op: LinearPhysics,
    y: Tensor,
    denoiser: Callable,
    *,
    n: int = 8,
    steps: int | None = None,
    algorithm=None,
    noise: float | Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Samples:
    """Draw images from the posterior of y = A x + noise, with a denoiser as prior.

    By default, samples of :class:`pnp.algorithms.DiffPIR` are centred at the better point estimate of :func:`pnp.solve`
    with as many steps, and spread by a factor to the size of its errors, which few steps of diffusion fall short of:
    on real images, 90 % intervals from eight samples (Student's t) hold the truth in about nine pixels of ten. With the
    name of a diffusion sampler, they are that sampler's as they are.

    Of a single image, all samples are drawn as one batch.

    :param n: number of samples.
    :param steps: denoiser calls for each, and for the point estimate; default 10, or what a sampler with its own
        settings has.
    :param algorithm: None for calibrated samples; a diffusion sampler ("diffpir", "dds", "ddnm", "ddrm", "daps",
        "fire", "pigdm", "dps", "red-diff"), or one with its own settings.
    :param seed: seed of all that is random; None for other samples each time.
    :param op, y, denoiser, noise, progress: as in :func:`pnp.solve`.
    :raises ValueError, TypeError: for input that does not fit, as in :func:`pnp.solve`.
    :raises DivergenceError: when the iteration diverges.
    """
    n = whole("n", n)
    seed = torch.Generator().seed() % 2**31 if seed is None else seed
    if steps is None and (algorithm is None or isinstance(algorithm, str)):
        steps = 10
    if denoiser is None:
        raise TypeError("denoiser: expected a callable denoiser(x, sigma), got None")
    began = time.perf_counter()
    sampler = algorithms.find("diffpir" if algorithm is None else algorithm, steps)
    if not isinstance(sampler, algorithms.DiffPIR):
        raise ValueError(f'algorithm: expected a diffusion sampler, such as "diffpir" or "daps", got {algorithm!r}')
    problem = Problem(op, y, denoiser, noise, seed)
    drawn = _draw(problem, sampler, max(n, 2) if algorithm is None else n, progress)
    calls = problem.calls
    if algorithm is None:
        point = solve(op, y, denoiser, noise=problem.measured_noise, iterations=steps, seed=seed, progress=progress)
        drawn = point.x + _spread(problem) * (len(drawn) / (len(drawn) - 1)) ** 0.5 * (drawn - drawn.mean(0))
        calls = {name: count + point.calls[name] for name, count in calls.items()}
    return Samples(drawn[:n], problem.measured_noise, calls, time.perf_counter() - began)


def _spread(problem: Problem) -> Tensor:
    """By how much the point estimate's error is larger than the samples' deviations, for each item of a batch.

    On real images (Cartesian MRI, few views, limited angle, blur, inpainting) it is 1.2 to 2.8 times as large, the less
    the more of the image A determines: the share of the directions in which noise stays below a fifth of the range.
    """
    rho = (problem.noise / 0.2).square().flatten()[:, None]
    determined = (problem.ritz_weights * problem.ritz_values / (problem.ritz_values + rho)).sum(1)
    return (2.55 - 2 * determined).clamp_min(1).view(-1, *[1] * (problem.first.ndim - 1))


def _draw(problem: Problem, sampler, n: int, progress: bool) -> Tensor:
    """Samples (n, B, C, H, W)."""
    together = len(problem.first) == 1
    drawn = []
    for _ in range(1 if together else n):
        part = problem.repeated(n) if together else problem
        state, _, _ = iterate(part, sampler, list(sampler.schedule(part)), (part.first,), progress=progress)
        drawn.append(state[0] * part.scale)
    return drawn[0][:, None] if together else torch.stack(drawn)
