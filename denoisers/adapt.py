"""Adapters that put any denoiser on any image: complex, several channels, another range."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn


def adapt(
    denoiser: Callable,
    *,
    scale: float | Tensor = 1.0,
    offset: float | Tensor = 0.0,
    phase: Tensor | None = None,
    channels: bool | None = None,
) -> Denoiser:
    """Wrap a denoiser for images that it was not made for.

    The result maps (x, sigma) to ``scale * denoiser((x - offset) / scale, sigma / scale) + offset``, so that a network
    for [0, 1] works on any range.

    :param denoiser: callable ``denoiser(x, sigma)`` on images (B, C, H, W).
    :param scale: length of the range that is mapped to 1, a number or (B, 1, 1, 1).
    :param offset: value that is mapped to 0, a number or (B, 1, 1, 1).
    :param phase: for complex images (B, 2, H, W): unit complex numbers (B, H, W), usually a smooth estimate of the
        image's phase. It is taken off before and put on again after, so that the real part looks like a magnitude and
        the imaginary part is nearly noise; noise stays what it was.
    :param channels: True for a denoiser of one channel that is to see each channel as an image; None to find out.
    """
    return Adapted(denoiser, scale, offset, phase, channels)


class Adapted(Denoiser):
    """See :func:`adapt`."""

    def __init__(self, denoiser, scale=1.0, offset=0.0, phase=None, channels=None):
        super().__init__()
        self.denoiser, self.scale, self.offset, self.phase, self.channels = denoiser, scale, offset, phase, channels
        self.dtype = next((p.dtype for p in denoiser.parameters()), None) if isinstance(denoiser, nn.Module) else None

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        if self.phase is not None:
            x = _rotate(x, self.phase.conj())
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        level = (level / torch.as_tensor(self.scale, device=x.device).reshape(-1)).expand(len(x))
        out = self._run((x - self.offset) / self.scale, level) * self.scale + self.offset
        return out if self.phase is None else _rotate(out, self.phase)

    def _run(self, x: Tensor, level: Tensor) -> Tensor:
        if self.channels is None:
            self.channels = x.shape[1] > 1 and not accepts(self.denoiser, x.shape[1], x.device, self.dtype or x.dtype)
        images = x.flatten(0, 1)[:, None] if self.channels else x
        levels = level.repeat_interleave(x.shape[1]) if self.channels else level
        images = images.to(self.dtype or x.dtype)
        out = self.denoiser(images, levels)
        if not isinstance(out, Tensor) or out.shape != images.shape:
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"denoiser: expected it to return the shape {tuple(images.shape)} it was given, got {found}"
            )
        return out.reshape(x.shape).to(x.dtype)


def accepts(denoiser: Callable, channels: int, device=None, dtype=torch.float32) -> bool:
    """Whether a denoiser takes images of so many channels, by trying a small one."""
    probe = torch.full((1, channels, 32, 32), 0.5, device=device, dtype=dtype)
    try:
        out = denoiser(probe, torch.full((1,), 0.1, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
        return False
    return isinstance(out, Tensor) and out.shape == probe.shape


def _rotate(x: Tensor, phase: Tensor) -> Tensor:
    """Multiply complex images (B, 2, H, W) by complex numbers (B, H, W)."""
    real, imaginary = x[:, 0], x[:, 1]
    return torch.stack([real * phase.real - imaginary * phase.imag, real * phase.imag + imaginary * phase.real], 1)
