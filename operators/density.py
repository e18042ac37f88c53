"""Density compensation of non-Cartesian samples: how much of k-space each of them stands for."""

from __future__ import annotations

import finufft
import numpy as np


def pipe_menon(points: np.ndarray, shape: tuple[int, ...], iterations: int = 30) -> np.ndarray:
    """Weights that a kernel as wide as the image's spectrum smooths to 1 (Pipe & Menon, Magn Reson Med 1999).

    :param points: (M, d) in radians per pixel, d = 2 or 3.
    :param shape: the image's d axes.
    :return: (M,), in units of the Cartesian grid's cells.
    """
    finer = 2
    grid = tuple(finer * n for n in shape)
    axes = [np.ascontiguousarray(axis) for axis in points.T]
    options = {"eps": 1e-3, "spreadinterponly": 1, "upsampfac": 2.0}
    spread, gather = (finufft.Plan(kind, grid, **options) for kind in (1, 2))
    spread.setpts(*axes)
    gather.setpts(*axes)
    one = finufft.Plan(1, grid, **options)
    one.setpts(*(axis[:1].copy() for axis in axes))
    mass = one.execute(np.ones(1, np.complex128)).real.sum() ** 2 / finer ** len(shape)
    weights = np.ones(len(points), np.complex128)
    for _ in range(iterations):
        weights /= gather.execute(spread.execute(weights)) / mass
    return weights.real
