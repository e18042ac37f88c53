"""Samples of what the image may be, given the measurements."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from pnp import algorithms
from pnp.problem import Problem
from pnp.solver import iterate


@dataclass(repr=False)
class Samples:
    """What :func:`sample` drew.

    :param x: samples (n, B, C, H, W).
    :param noise: standard deviation of the noise in y that was told or estimated.
    :param calls: how often operator and denoiser were called, for all samples together.
    :param seconds: wall time.
    """

    x: Tensor
    noise: float | Tensor
    calls: dict[str, int]
    seconds: float

    @property
    def mean(self) -> Tensor:
        """(B, C, H, W)."""
        return self.x.mean(0)

    @property
    def std(self) -> Tensor:
        """Standard deviation of the samples at each pixel, (B, C, H, W)."""
        return self.x.std(0)

    def __repr__(self) -> str:
        calls = ", ".join(f"{count} x {name}" for name, count in self.calls.items() if count)
        return f"Samples(x {tuple(self.x.shape)}, {calls}, {self.seconds:.2f} s)"


@torch.no_grad()
def sample(
    op: LinearPhysics,
    y: Tensor,
    denoiser: Callable,
    *,
    n: int = 8,
    steps: int = 10,
    algorithm="diffpir",
    noise: float | Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Samples:
    """Draw images from the posterior of y = A x + noise, with a denoiser as prior.

    Norm, range, noise level and start are found once; of a single image, all samples are drawn as one batch.

    :param n: number of samples.
    :param steps: denoiser calls for each.
    :param algorithm: "diffpir", "dds", or one with its own settings.
    :param op, y, denoiser, noise, seed, progress: as in :func:`pnp.solve`.
    :raises ValueError, TypeError: for input that does not fit, as in :func:`pnp.solve`.
    :raises DivergenceError: when the iteration diverges.
    """
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    if denoiser is None:
        raise TypeError("denoiser: expected a callable denoiser(x, sigma), got None")
    began = time.perf_counter()
    algorithm = algorithms.find(algorithm, steps)
    problem = Problem(op, y, denoiser, noise, seed)
    together = len(problem.first) == 1
    drawn = []
    for _ in range(1 if together else n):
        part = problem.repeated(n) if together else problem
        state, _, _ = iterate(part, algorithm, list(algorithm.schedule(part)), (part.first,), progress=progress)
        drawn.append(state[0] * part.scale)
    x = drawn[0][:, None] if together else torch.stack(drawn)
    return Samples(x, problem.measured_noise, problem.calls, time.perf_counter() - began)
