"""Filtered back-projection: ramp filters, and how much of the turn each view stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from operators.radon import fast_even

FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")


def ramp_filter(y: Tensor, spacing: float, filter: str = "ram-lak", equiangular: bool = False) -> Tensor:
    """Ramp-filter projections (..., D) along the detector, band-limited at the bins' Nyquist frequency.

    The ramp is transformed from its samples in space, without which its mean, and so the image's, would be wrong.

    :param spacing: width of a bin; in radians for an equiangular detector.
    :param equiangular: the filter of fan-beam projections at equal angles (Kak & Slaney 1988, section 3.4.1).
    """
    if filter not in FILTERS:
        raise ValueError(f"filter: expected one of {', '.join(FILTERS)}, got {filter!r}")
    count = y.shape[-1]
    period = fast_even(2 * count)
    n = torch.arange(period, device=y.device)
    n = torch.minimum(n, period - n).to(y.dtype)
    kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp_min(1)) ** 2, 0.0)
    kernel[0] = 0.25
    if equiangular:
        kernel = kernel / torch.special.sinc(n.clamp_max(count - 1) * (spacing / math.pi)) ** 2
    ramp = torch.fft.rfft(kernel).real / spacing
    w = torch.linspace(0, 1, len(ramp), device=y.device, dtype=y.dtype)  # in units of the Nyquist frequency
    window = {
        "ram-lak": torch.ones_like(w),
        "shepp-logan": torch.special.sinc(w / 2),
        "cosine": torch.cos(math.pi * w / 2),
        "hamming": 0.54 + 0.46 * torch.cos(math.pi * w),
        "hann": 0.5 + 0.5 * torch.cos(math.pi * w),
    }[filter]
    return torch.fft.irfft(torch.fft.rfft(y, n=period) * (ramp * window), n=period)[..., :count]


def view_weights(angles: Tensor, period: float) -> Tensor:
    """The angle in radians that each view stands for: half the gaps to its neighbours.

    :param angles: (V,) in radians.
    :param period: angle after which views are equal: pi for parallel rays, 2 pi for a fan.

    Missing wedges belong to no view: gaps of more than three times all but the widest tenth.
    """
    turned = torch.remainder(angles.double().cpu(), period)
    order = torch.argsort(turned)
    ordered = turned[order]
    gaps = torch.diff(ordered, append=ordered[:1] + period)
    if len(angles) > 2:
        distinct = gaps[gaps > 1e-5].sort().values  # opposite views leave none between them
        usual = distinct[-1 - max(len(distinct) // 10, 1) :][0]
        gaps = torch.where(gaps > 3 * usual, distinct.median(), gaps)
    weights = torch.empty_like(gaps)
    weights[order] = (gaps + gaps.roll(1)) / 2
    return weights.to(angles.device)
