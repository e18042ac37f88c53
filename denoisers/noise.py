"""The noise level of an image, from the image alone."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def estimate_noise(x: Tensor, measured: Tensor | None = None) -> Tensor:
    """Standard deviation of white Gaussian noise in images.

    From the median absolute deviation (Donoho & Johnstone, 1994) of fourth differences along rows and columns, in which
    smooth structure drops out. Fine texture is taken for noise: faint noise is overestimated by up to about 2/255 of
    the image's range. Where more than a tenth of an image is exactly 0, as outside a mask, or one other value all
    around, as the padding of CT, these pixels do not count.

    :param x: images (B, C, H, W), or (B, C, D, H, W), of at least 9 pixels along the last two axes.
    :param measured: which pixels hold values, broadcastable to x; by default all, but for those above.
    :return: the standard deviation of each image in its units, (B,); NaN for one with too few pixels that count.
    :raises ValueError: for other shapes.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    if x.ndim not in (4, 5) or min(x.shape[-2:]) < 9 or x.is_complex():
        raise ValueError(
            f"x: expected real images (B, C, H, W) of at least 9 x 9 pixels, got {tuple(x.shape)} {x.dtype}"
        )
    x = x if x.is_floating_point() else x.float()
    try:
        masks = [None] * len(x) if measured is None else measured.bool().expand(x.shape)
    except RuntimeError:
        raise ValueError(f"measured: expected a mask of x {tuple(x.shape)}, got {tuple(measured.shape)}") from None
    return torch.stack([_of_image(image, mask) for image, mask in zip(x, masks)])


def _of_image(y: Tensor, mask: Tensor | None) -> Tensor:
    measured = _measured(y, mask)
    if measured is None:
        return high_differences(y, (-2, -1), 4)
    for axes, order in (((-2, -1), 4), *(((-2,), order) for order in (4, 3, 2, 1))):  # the first with enough
        turns = [axes] if len(axes) == 2 else [(-2,), (-1,)]
        found = torch.cat([differences(y, turn, order, measured) for turn in turns])
        if len(found) >= (3000 if order > 1 else 50):  # neighbouring ones are correlated
            return deviation(found)
    return y.new_full((), torch.nan)


def _measured(y: Tensor, mask: Tensor | None) -> Tensor | None:
    """Where an image holds values, by itself or by the mask that is given, or None for everywhere."""
    if not y.any():
        return None
    if (y == 0).sum() > 0.1 * y.numel():
        return y != 0
    if mask is not None:
        return mask
    planes = y.reshape(-1, 1, *y.shape[-2:]).float()
    flat = (F.max_pool2d(planes, 5, 1) == -F.max_pool2d(-planes, 5, 1)).flatten()
    if flat.sum() <= 0.05 * y.numel() or flat.all():
        return None
    value = planes[..., 2:-2, 2:-2].flatten()[flat].mode().values
    empty = y == value
    return ~empty if empty.sum() > 0.1 * y.numel() else None


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

    :param measured: where y holds values, in its shape; the result is NaN where fewer than 1500 differences are left.
    """
    found = differences(y, axes, order, measured)
    return deviation(found) if measured is None or len(found) >= 1500 else y.new_full((), torch.nan)


def differences(y: Tensor, axes: tuple[int, ...], order: int, measured: Tensor | None = None) -> Tensor:
    """All differences of an order along axes, as a vector; those of white noise have its standard deviation.

    :param measured: where y holds values, in its shape; differences that take in others are left out.
    """
    for axis in axes:
        y = torch.diff(y, order, axis) / math.sqrt(math.comb(2 * order, order))  # the norm of the binomial stencil
        for _ in range(order if measured is not None else 0):
            n = measured.shape[axis] - 1
            measured = measured.narrow(axis, 0, n) & measured.narrow(axis, 1, n)
    return y.flatten() if measured is None else y[measured]


def deviation(values: Tensor) -> Tensor:
    """Standard deviation of normal values around 0, from their median magnitude, which few outliers do not change."""
    return values.abs().median() / 0.6745
