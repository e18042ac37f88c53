"""The noise level of an image, from the image alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def estimate_noise(x: Tensor) -> Tensor:
    """Standard deviation of white Gaussian noise in images.

    From the median absolute deviation (Donoho & Johnstone, 1994) of fourth differences along rows and columns, in which
    smooth structure drops out. Fine texture is taken for noise: faint noise is overestimated by up to about 1.5/255 of
    the image's range.

    :param x: images (B, C, H, W), at least 9 pixels a side.
    :return: the standard deviation of each image in its units, (B,).
    :raises ValueError: for another shape.
    """
    if x.ndim != 4 or min(x.shape[-2:]) < 9 or x.is_complex():
        raise ValueError(
            f"x: expected real images (B, C, H, W) of at least 9 x 9 pixels, got {tuple(x.shape)} {x.dtype}"
        )
    return torch.stack([high_differences(image, axes=(-2, -1), order=4) for image in x])


def coloured(white: Tensor, spread: float, generator: torch.Generator | None = None) -> Tensor:
    """Noise of standard deviation 1 whose power differs between frequencies and directions, of each image otherwise.

    The power is :math:`f^a` times :math:`exp(b cos(2 (phi - phi_0)))` at the frequency f and the direction phi, with
    random a, b and phi_0: a up to ``spread`` either way, b up to ``spread``.

    :param white: white noise (B, C, H, W).
    """
    height, width = white.shape[-2:]
    v = torch.fft.fftfreq(height, device=white.device)[:, None]
    u = torch.fft.rfftfreq(width, device=white.device)[None]
    frequency = (u**2 + v**2).sqrt().clamp_min(1 / max(height, width))
    a, b, turn = torch.rand(3, len(white), 1, 1, 1, generator=generator, device=white.device)
    power = spread * ((2 * a - 1) * frequency.log() + b * torch.cos(2 * torch.atan2(v, u) - 2 * math.pi * turn))
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * (power / 2).exp(), s=(height, width))
    return noise / noise.square().mean((1, 2, 3), keepdim=True).sqrt()


def high_differences(y: Tensor, axes: tuple[int, ...], order: int, measured: Tensor | None = None) -> Tensor:
    """Median absolute deviation of differences so high that smooth structure drops out, scaled for white noise.

    :param measured: where y holds values, in its shape; differences that take in others are left out, and the result is
        NaN where fewer than 1500 are left.
    """
    norm = math.sqrt(math.comb(2 * order, order)) ** len(axes)  # of the binomial stencil
    for axis in axes:
        y = torch.diff(y, order, axis)
        for _ in range(order if measured is not None else 0):
            n = measured.shape[axis] - 1
            measured = measured.narrow(axis, 0, n) & measured.narrow(axis, 1, n)
    if measured is not None:
        y = y[measured]
        if len(y) < 1500:
            return y.new_full((), torch.nan)
    return y.abs().median() / (0.6745 * norm)
