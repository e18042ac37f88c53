"""From radio-frequency ultrasound to the picture on the screen, and speckle for simulations."""

from __future__ import annotations

import torch
from torch import Tensor


def envelope(rf: Tensor, dim: int = -2) -> Tensor:
    """Magnitude of the analytic signal along the depth, the envelope of radio-frequency images.

    :param rf: real images (..., Z, X).
    :param dim: axis of the depth.
    :return: of the shape of ``rf``, at least 0.
    """
    if rf.is_complex() or not rf.is_floating_point():
        raise ValueError(f"rf: expected a real floating-point tensor, got {rf.dtype}")
    if not torch.isfinite(rf).all():
        raise ValueError("rf: expected finite values, got NaN or infinity")
    count = rf.shape[dim]
    one_sided = torch.zeros(count, dtype=rf.dtype, device=rf.device)
    one_sided[0] = 1
    one_sided[1 : (count + 1) // 2] = 2
    if count % 2 == 0:
        one_sided[count // 2] = 1
    spectrum = torch.fft.fft(rf.movedim(dim, -1)) * one_sided
    return torch.fft.ifft(spectrum).abs().movedim(-1, dim)


def log_compress(envelope: Tensor, dynamic_range: float = 60.0) -> Tensor:
    """Decibels below each image's maximum, of which 0 becomes 1 and ``-dynamic_range`` and less becomes 0.

    :param envelope: images (B, 1, Z, X), at least 0.
    :param dynamic_range: in dB.
    """
    if not dynamic_range > 0:
        raise ValueError(f"dynamic_range: expected a positive number of dB, got {dynamic_range}")
    if not (envelope >= 0).all() or torch.isinf(envelope).any():
        raise ValueError("envelope: expected finite values of at least 0; radio-frequency images have an envelope")
    largest = envelope.flatten(1).amax(1).reshape(-1, *[1] * (envelope.ndim - 1))
    decibels = 20 * torch.log10((envelope / largest.clamp_min(1e-30)).clamp_min(1e-30))
    return (1 + decibels / dynamic_range).clamp(0, 1)


def bmode(rf: Tensor, dynamic_range: float = 60.0) -> Tensor:
    """B-mode images in [0, 1] of radio-frequency images (B, 1, Z, X), depth along Z."""
    return log_compress(envelope(rf), dynamic_range)


def speckle(echogenicity: Tensor, density: float | None = None, seed: int | None = None) -> Tensor:
    """Random scatterers whose mean power is given: the reflectivity that an ultrasound operator is applied to.

    :param echogenicity: mean power of the scatterers in each pixel (B, 1, Z, X), at least 0.
    :param density: mean number of scatterers in a pixel, which is Poisson distributed; None for so many that the
        reflectivity is Gaussian (fully developed speckle: Wagner et al., IEEE Trans Sonics Ultrason 1983).
    :param seed: seed of the random numbers.
    :return: reflectivity of zero mean, of the shape of ``echogenicity``.
    """
    if (echogenicity < 0).any() or not torch.isfinite(echogenicity).all():
        raise ValueError("echogenicity: expected finite values of at least 0")
    if density is not None and not density > 0:
        raise ValueError(f"density: expected a positive number or None, got {density}")
    rng = torch.Generator(echogenicity.device)
    rng.manual_seed(seed) if seed is not None else rng.seed()
    power = echogenicity
    if density is not None:
        power = power * torch.poisson(torch.full_like(power, density), generator=rng) / density
    normal = torch.randn(power.shape, generator=rng, device=power.device, dtype=power.dtype)
    return power.sqrt() * normal
