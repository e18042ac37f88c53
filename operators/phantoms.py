"""Phantoms of ellipses, whose projections are known exactly: to test CT operators view by view."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# (x, y, first half axis, second half axis, turn, value): lengths in units of half the image's smaller side, x to the
# right, y upwards; the turn in radians, counter-clockwise
PHANTOMS = {
    "disk": [(0, 0, 0.6, 0.6, 0, 1.0)],
    "off-centre disks": [
        (0.45, -0.4, 0.45, 0.45, 0, 1.0),
        (-0.6, 0.2, 0.28, 0.28, 0, 0.7),
        (0.15, 0.6, 0.1, 0.1, 0, 1.5),
    ],
    "ellipses": [(0.1, 0.12, 0.8, 0.4, 0.4, 1.0), (-0.3, -0.2, 0.2, 0.1, 1.2, -0.5)],
    "corner disk": [(0.8, 0.78, 0.15, 0.15, 0, 1.0)],
    "thin bar": [(0.15, -0.1, 0.7, 0.03, 0.9, 1.0)],
    "crossed bars": [(0, 0, 0.75, 0.05, 0.1, 1.0), (-0.1, 0.2, 0.6, 0.04, 1.75, 0.8)],
    "head": [  # Shepp & Logan, IEEE Trans Nucl Sci 1974, in the higher contrast of Toft 1996
        (0, 0, 0.92, 0.69, math.pi / 2, 1.0),
        (0, -0.0184, 0.874, 0.6624, math.pi / 2, -0.8),
        (0.22, 0, 0.31, 0.11, math.radians(72), -0.2),
        (-0.22, 0, 0.41, 0.16, math.radians(108), -0.2),
        (0, 0.35, 0.25, 0.21, math.pi / 2, 0.1),
        (0, 0.1, 0.046, 0.046, 0, 0.1),
        (0, -0.1, 0.046, 0.046, 0, 0.1),
        (-0.08, -0.605, 0.046, 0.023, 0, 0.1),
        (0, -0.605, 0.023, 0.023, 0, 0.1),
        (0.06, -0.605, 0.046, 0.023, math.pi / 2, 0.1),
    ],
}


def image(name: str, shape: tuple[int, int], finer: int = 8, centre: tuple[float, float] = (0, 0)) -> Tensor:
    """A phantom's averages over pixels, (H, W).

    :param name: one of ``PHANTOMS``.
    :param shape: (H, W).
    :param finer: points along each side of a pixel that the average is taken over.
    :param centre: where the phantom's origin is, (x, y) in pixels from the image's middle. Software that turns images
        about a pixel instead has its own middle at (0.5, -0.5) in images of even size.
    """
    height, width = shape
    y, x = np.mgrid[0 : height * finer, 0 : width * finer]
    x, y = (x + 0.5) / finer - width / 2 - centre[0], height / 2 - (y + 0.5) / finer - centre[1]
    total = np.zeros(x.shape, np.float32)
    for cx, cy, a, b, turn, value in _in_pixels(name, shape):
        u = (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn)
        v = (y - cy) * math.cos(turn) - (x - cx) * math.sin(turn)
        total += value * ((u / a) ** 2 + (v / b) ** 2 <= 1)
    return torch.from_numpy(total.reshape(height, finer, width, finer).mean((1, 3)))


def projections(name: str, op, finer: int = 32) -> Tensor:
    """A phantom's exact projections, averaged over the detector's bins, (V, D).

    :param name: one of ``PHANTOMS``.
    :param op: a ``ParallelBeamCT`` or ``FanBeamCT``.
    :param finer: rays of each bin that the average is taken over.
    """
    u = ((np.arange(op.detectors * finer) + 0.5) / finer - op.detectors / 2) * op.spacing
    views = []
    for angle in op.angles.double().tolist():
        across, along = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        if hasattr(op, "source_distance"):
            start = -op.source_distance * along
            if op.detector == "curved":
                gamma = u / (op.source_distance + op.detector_distance)
                direction = np.cos(gamma)[:, None] * along + np.sin(gamma)[:, None] * across
            else:
                direction = op.detector_distance * along + u[:, None] * across - start
                direction = direction / np.linalg.norm(direction, axis=1, keepdims=True)
        else:
            start, direction = (u + op.offset)[:, None] * across, along
        rays = sum(_chords(start, direction, ellipse) for ellipse in _in_pixels(name, op.image_shape[1:]))
        views.append(rays.reshape(-1, finer).mean(1))
    return torch.from_numpy(np.array(views)).float()


def _chords(start, direction, ellipse) -> np.ndarray:
    """Integrals of an ellipse along lines: from where the unit circle that it is a map of is entered and left."""
    cx, cy, a, b, turn, value = ellipse
    to_circle = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]) / np.array([[a], [b]])
    p, d = (start - np.array([cx, cy])) @ to_circle.T, direction @ to_circle.T
    dd, pd = (d * d).sum(-1), (p * d).sum(-1)
    return 2 * value * np.sqrt(np.clip(pd**2 - dd * ((p * p).sum(-1) - 1), 0, None)) / dd


def _in_pixels(name: str, shape: tuple[int, int]) -> list[tuple]:
    if name not in PHANTOMS:
        raise ValueError(f"name: expected one of {', '.join(PHANTOMS)}, got {name!r}")
    unit = min(shape) / 2
    return [(*(unit * length for length in ellipse[:4]), *ellipse[4:]) for ellipse in PHANTOMS[name]]
