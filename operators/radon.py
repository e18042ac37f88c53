"""Parallel projections of images by the Fourier slice theorem: the engine of the CT operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from operators.nufft import NUFFT


class Radon:
    r"""Line integrals :math:`p(\theta, s)` of an image, filtered along s, at equally spaced s.

    The image is the band-limited function through its pixels' values, up to the Nyquist frequency in all directions.
    The spectrum of p along s is the image's along a line through the origin, where a non-uniform FFT finds it.

    :param shape: (H, W) of the image.
    :param angles: (V,) in radians; ``s = x cos(angle) + y sin(angle)``, x to the right, y upwards, in pixels, with
        their origin in the middle of the image.
    :param count: number of positions s.
    :param spacing: distance between them in pixels.
    :param offset: middle of the positions.
    :param window: transfer function of the filter, of angular frequencies in radians per pixel.
    :param eps: relative error of the transforms.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        angles: Tensor,
        count: int,
        spacing: float,
        offset: float,
        window: Callable[[Tensor], Tensor],
        eps: float,
    ):
        height, width = shape
        self.views, self.count = len(angles), count
        # wide steps: more samples than positions, so that what is above the positions' Nyquist frequency is there
        self.finer = math.ceil(spacing)
        step = spacing / self.finer
        # periodic copies of the projection must not reach the positions
        reach = math.hypot(height, width) / 2 + count * spacing / 2 + abs(offset)
        self.period = fast_even(max(math.ceil(reach / step) + 8, count * self.finer))
        frequency = 2 * math.pi * torch.arange(self.period // 2 + 1, dtype=torch.float64) / (self.period * step)
        frequency = frequency[frequency <= math.pi + 1e-9]
        theta = angles.double().cpu()[:, None]
        across, down = frequency * torch.cos(theta), -frequency * torch.sin(theta)
        self.nufft = NUFFT(torch.stack([down, across], -1).reshape(-1, 2), (height, width), eps)

        # from the transform's origin, a pixel, to the middle of the image; and from there to the first position
        shift = down * (height // 2 - (height - 1) / 2) + across * (width // 2 - (width - 1) / 2)
        first = offset - (count - 1) / 2 * spacing
        self._transfer = window(frequency) * torch.exp(1j * (frequency * first - shift)) / step
        self._doubled = torch.full((len(frequency),), 2.0 / self.period, dtype=torch.float64)
        self._doubled[0] = 1 / self.period
        if len(frequency) == self.period // 2 + 1:
            self._doubled[-1] = 1 / self.period

    def tables(self, dtype: torch.dtype, device: torch.device) -> SimpleNamespace:
        """The filters of both directions in a precision and on a device."""
        to = {"dtype": torch.promote_types(dtype, torch.complex64), "device": device}
        return SimpleNamespace(
            forward=self._transfer.to(**to), adjoint=(self._transfer.conj() * self._doubled).to(**to)
        )

    def forward(self, x: Tensor, tables: SimpleNamespace) -> Tensor:
        """Projections (..., V, count) of images (..., H, W)."""
        lines = self.nufft.forward(torch.complex(x, torch.zeros_like(x)))
        lines = lines.unflatten(-1, tables.forward.shape) * tables.forward
        fine = torch.fft.irfft(lines, n=self.period)  # frequencies that are missing at the end count as 0
        return fine[..., : self.count * self.finer : self.finer]

    def adjoint(self, p: Tensor, tables: SimpleNamespace) -> Tensor:
        """Images (..., H, W) of projections (..., V, count), the exact adjoint."""
        fine = p.new_zeros(*p.shape[:-1], self.period)
        fine[..., : self.count * self.finer : self.finer] = p
        lines = torch.fft.rfft(fine)[..., : tables.adjoint.shape[-1]] * tables.adjoint
        return self.nufft.adjoint(lines.flatten(-2)).real.contiguous()


def fast_even(n: int) -> int:
    """The next even number whose only prime factors are 2, 3 and 5."""
    n += n % 2
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 2
