"""Noise level of measurements: told by the operator, or estimated from the measurements themselves."""

from __future__ import annotations

import math

import deepinv
import torch
from torch import Tensor

from denoisers.noise import high_differences
from operators import MRI, FanBeamCT, LowDose, ParallelBeamCT


def told(op, y, noise=None) -> float | Tensor | None:
    """Standard deviation of the noise in y, as the user or the operator tells it.

    :param noise: what the user gave: a number, a tensor broadcastable to y, or None for the operator's noise model,
        where it is Gaussian or :class:`operators.LowDose`.
    :return: a number, a tensor broadcastable to y, or None where nobody tells.
    :raises ValueError: where ``noise`` is negative, not finite or of a shape that does not fit y.
    """
    if noise is not None:
        return _checked(noise, y)
    if isinstance(op.noise_model, deepinv.physics.GaussianNoise):
        sigma = torch.as_tensor(op.noise_model.sigma, dtype=torch.float32)
        if sigma.numel() == 1 and sigma.item() > 0:
            return sigma.item()
        if sigma.numel() == len(y) and (sigma > 0).all():
            return sigma.reshape(-1, *[1] * (y.ndim - 1))
    if isinstance(op.noise_model, LowDose):
        return op.noise_model.std(y)
    return None


def estimate(op, y: Tensor, image: Tensor) -> float | None:
    """Estimate the standard deviation of white noise in measurements; for MRI, of each real component.

    MRI: from the outermost samples of k-space. Sinograms: from high differences along the detector. Measurements that
    are images: from high differences along both directions. All of them see a little signal, too, and overestimate
    faint noise.

    :param image: any image of the operator's domain.
    :return: the estimate, or None for measurements of another kind.
    """
    if isinstance(op, (MRI, deepinv.physics.MRI, deepinv.physics.MultiCoilMRI)):
        return _outer_kspace(y, op.mask, image.ndim - 2)
    if isinstance(op, (ParallelBeamCT, FanBeamCT)):
        return high_differences(y, axes=(-1,), order=6).item()
    if isinstance(op, deepinv.physics.Tomography):
        return high_differences(y, axes=(-2,), order=6).item()
    if isinstance(y, Tensor) and y.ndim == image.ndim == 4 and y.shape[1] == image.shape[1]:
        shrunk = [m / n for m, n in zip(y.shape[-2:], image.shape[-2:])]
        if 0.8 < shrunk[0] / shrunk[1] < 1.25 and min(y.shape[-2:]) > 8:
            return high_differences(y, axes=(-2, -1), order=4).item()
    return None


def _outer_kspace(y: Tensor, mask: Tensor, dimensions: int, share: float = 1 / 24) -> float:
    """Median of |y|^2 over the outermost share of the samples; for complex noise it is 2 ln 2 times the variance."""
    power = y.square().sum(1)  # (B, [N,] [D,] H, W)
    axes = [(torch.arange(n, device=y.device) - n // 2) / (n / 2) for n in y.shape[-dimensions:]]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    sampled = (mask[:, 0] != 0).expand(len(y), *radius.shape)
    sampled = sampled if power.ndim == sampled.ndim else sampled[:, None].expand_as(power)
    sampled = sampled & (power > 0)  # scanners fill what they did not measure with zeros
    radii = radius.expand_as(power)[sampled]
    if not len(radii):
        raise ValueError("y: expected samples other than 0, got only zeros")
    outer = radii >= torch.quantile(_thinned(radii), 1 - share)
    return math.sqrt(power[sampled][outer].median().item() / (2 * math.log(2)))


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """A part of the values that torch.quantile can take."""
    return values[:: max(len(values) // most, 1)]


def _checked(noise, y: Tensor) -> float | Tensor:
    value = torch.as_tensor(noise, dtype=torch.float32)
    if not torch.isfinite(value).all() or (value < 0).any():
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    if value.numel() == 1:
        return value.item()
    try:
        fits = torch.broadcast_shapes(value.shape, y.shape) == y.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"noise: expected a number or a tensor broadcastable to y {tuple(y.shape)}, got {tuple(value.shape)}"
        )
    if (value == 0).any():
        raise ValueError("noise: expected positive standard deviations for each measurement, got some of 0")
    return value.to(y.device)
