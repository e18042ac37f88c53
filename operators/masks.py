"""Sampling masks for Cartesian MRI, as float32 tensors (H, W) with the zero frequency at (H // 2, W // 2)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from operators.operator import sizes, whole


def cartesian(
    shape: tuple[int, int],
    acceleration: float,
    calibration: int | None = None,
    seed: int | None = None,
    pattern: str = "variable",
) -> Tensor:
    """Phase-encoding lines (columns) around a fully sampled calibration region.

    :param shape: (H, W); the lines run along H.
    :param acceleration: W divided by the number of lines, calibration included.
    :param calibration: number of fully sampled central lines; default 24, or three quarters of all lines where those
        are fewer.
    :param seed: seed of the random choice; None for another one each time.
    :param pattern: "variable" for random lines that are denser in the middle (Lustig et al., Magn Reson Med 2007),
        "random" for random lines of the same density everywhere, "equispaced" for equal steps from a random first line.
    :raises ValueError: where the calibration lines alone exceed the number of lines.
    """
    if pattern not in ("variable", "random", "equispaced"):
        raise ValueError(f"pattern: expected variable, random or equispaced, got {pattern!r}")
    height, width = _check(shape, acceleration, calibration)
    lines = round(width / acceleration)
    if lines < 1:
        raise ValueError(f"acceleration: expected at most {width}, the number of lines, got {acceleration}")
    calibration = min(24, -(-3 * lines // 4)) if calibration is None else min(calibration, width)
    if lines < calibration:
        raise ValueError(
            f"calibration: {calibration} lines are more than the {lines} that acceleration {acceleration} leaves"
        )
    centre = _central(width, calibration)
    outside = np.setdiff1d(np.arange(width), centre)
    rng = np.random.default_rng(seed)
    left = lines - calibration
    if not left:
        chosen = []
    elif pattern == "equispaced":
        chosen = outside[((np.arange(left) + rng.random()) * len(outside) / left).astype(int)]
    else:
        distance = np.abs(outside - width // 2) / (width / 2)
        density = (1 - distance).clip(0) ** 2 + 0.05 if pattern == "variable" else np.ones(len(outside))
        chosen = rng.choice(outside, left, replace=False, p=density / density.sum())
    mask = torch.zeros(height, width)
    mask[:, centre] = 1
    mask[:, chosen] = 1
    return mask


def poisson(
    shape: tuple[int, int], acceleration: float, calibration: int | None = None, seed: int | None = None
) -> Tensor:
    """Poisson-disc sampling in both directions, sparser outwards, around a calibration square.

    No two samples outside the square are closer than a radius that grows with the distance from the centre (variable
    density Poisson disc: Lustig & Pauly, Magn Reson Med 2010; dart throwing: Cook, ACM Trans Graph 1986). From an
    acceleration of 1.43, the corners of k-space, which carry no resolution common to all directions, stay empty.

    :param shape: (H, W), the two phase-encoding directions.
    :param acceleration: H W divided by the number of samples; met within 2 % from 64 x 64 pixels on.
    :param calibration: side of the fully sampled square; default 24, or what three quarters of all samples fill where
        those are fewer.
    :param seed: seed of the random choice; None for another one each time.
    :raises ValueError: where the calibration square alone exceeds the number of samples.
    """
    height, width = _check(shape, acceleration, calibration)
    wanted = round(height * width / acceleration)
    if wanted < 1:
        raise ValueError(f"acceleration: expected at most {height * width}, the number of samples, got {acceleration}")
    calibration = min(24, math.ceil(math.sqrt(0.75 * wanted))) if calibration is None else calibration
    rows, columns = _central(height, min(calibration, height)), _central(width, min(calibration, width))
    if len(rows) * len(columns) > wanted:
        raise ValueError(
            f"calibration: a square of {calibration} is more than the {wanted} samples of acceleration {acceleration}"
        )
    rng = np.random.default_rng(seed)
    v, u = np.meshgrid(
        (np.arange(height) - height // 2) / (height / 2), (np.arange(width) - width // 2) / (width / 2), indexing="ij"
    )
    distance = np.hypot(u, v)
    start = np.zeros((height, width), bool)
    start[np.ix_(rows, columns)] = True
    allowed = (distance <= 1) & ~start if wanted < 0.7 * height * width else ~start
    order = rng.permutation(np.flatnonzero(allowed))

    low, high = 0.0, 20.0
    for _ in range(14):  # bisection on the density: the disc's radius at the edge
        edge = (low + high) / 2
        mask = _throw_darts(start, order, 0.7 + edge * distance)
        excess = mask.sum() / wanted - 1
        if abs(excess) < 0.01:
            break
        low, high = (edge, high) if excess > 0 else (low, edge)
    return torch.from_numpy(mask.astype(np.float32))


def radial(shape: tuple[int, int], spokes: int) -> Tensor:
    """Lines through the centre at equal angles, on the Cartesian grid's nearest points.

    :param shape: (H, W).
    :param spokes: number of lines; the first runs along W.
    """
    height, width = _check(shape, 1, 0)
    spokes = whole("spokes", spokes)
    mask = torch.zeros(height, width)
    steps = torch.linspace(-1, 1, 4 * max(height, width) + 1, dtype=torch.float64)
    angles = torch.pi * torch.arange(spokes, dtype=torch.float64)[:, None] / spokes
    rows = (height // 2 + steps * height / 2 * torch.sin(angles)).round().long()
    columns = (width // 2 + steps * width / 2 * torch.cos(angles)).round().long()
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    mask[rows[inside], columns[inside]] = 1
    return mask


def _throw_darts(start: np.ndarray, order: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Accept the points of ``order`` one by one that keep their distance from all accepted before."""
    height, width = start.shape
    margin = int(radius.max()) + 1
    taken = np.pad(start, margin)
    v, u = np.mgrid[-margin : margin + 1, -margin : margin + 1]
    squares = u**2 + v**2
    radii, rows, columns = radius.flat[order], *np.unravel_index(order, start.shape)
    for r, row, column in zip(radii.tolist(), rows.tolist(), columns.tolist()):
        reach = int(r)
        window = taken[
            row + margin - reach : row + margin + reach + 1, column + margin - reach : column + margin + reach + 1
        ]
        near = squares[margin - reach : margin + reach + 1, margin - reach : margin + reach + 1] < r * r
        if not (window & near).any():
            taken[row + margin, column + margin] = True
    return taken[margin : margin + height, margin : margin + width]


def _central(n: int, count: int) -> np.ndarray:
    return np.arange(count) + n // 2 - count // 2


def _check(shape, acceleration, calibration) -> tuple[int, int]:
    if not isinstance(acceleration, (int, float, np.number)) or not 1 <= acceleration < math.inf:
        raise ValueError(f"acceleration: expected at least 1, got {acceleration!r}")
    if calibration is not None:
        whole("calibration", calibration, 0)
    return sizes("shape", shape)
