"""Adapters that put any denoiser on any image: complex, several channels, another range, volumes, large ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from deepinv.models import Denoiser
from torch import Tensor, nn

CACHED_PIXELS = 2**17  # whose features at full resolution stay in a CPU's cache


def adapt(
    denoiser: Callable,
    *,
    scale: float | Tensor = 1.0,
    offset: float | Tensor = 0.0,
    phase: Tensor | None = None,
    channels: bool | None = None,
    axes: tuple[int, ...] = (0, 1, 2),
    batch: int | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
) -> Denoiser:
    """Wrap a denoiser for images that it was not made for.

    The result maps (x, sigma) to ``scale * denoiser((x - offset) / scale, sigma / scale) + offset``, so that a network
    for [0, 1] works on any range.

    :param denoiser: callable ``denoiser(x, sigma)`` on images (B, C, H, W).
    :param scale: length of the range that is mapped to 1, a positive number or one for each image, (B, 1, ...).
    :param offset: value that is mapped to 0, a number or one for each image, (B, 1, ...).
    :param phase: for complex images (B, 2, H, W): unit complex numbers (B, H, W), usually a smooth estimate of the
        image's phase. It is taken off before and put on again after, so that the real part looks like a magnitude and
        the imaginary part is nearly noise; noise stays what it was.
    :param channels: True for a denoiser of one channel that is to see each channel as an image; None to find out.
    :param axes: of volumes (B, C, D, H, W), the axes 0, 1, 2 for D, H, W along which they are cut into slices; with
        several, the result is the mean.
    :param batch: most images or slices that the denoiser is given at a time; None for 16, on a CPU for as many as its
        cache has room for, with which a convolutional network takes two thirds of the time.
    :param tile: side in pixels of the tiles that larger images are denoised in; None for whole images.
    :param overlap: share of a tile that overlaps the next one; results are blended by Gaussian weights (MONAI).
    :raises ValueError: for a scale, offset, axes, a batch, a tile or an overlap out of range, and when called, for
        scales, offsets or noise levels that are not one or one for each image.
    :raises TypeError: when called with complex images; view them as two channels.
    """
    return Adapted(denoiser, scale, offset, phase, channels, axes, batch, tile, overlap)


class Adapted(Denoiser):
    """See :func:`adapt`."""

    def __init__(
        self,
        denoiser,
        scale=1.0,
        offset=0.0,
        phase=None,
        channels=None,
        axes=(0, 1, 2),
        batch=None,
        tile=None,
        overlap=0.25,
    ):
        super().__init__()
        if not (torch.as_tensor(scale) > 0).all() or not torch.isfinite(torch.as_tensor(scale)).all():
            raise ValueError(f"scale: expected positive finite values, got {scale}")
        if not torch.isfinite(torch.as_tensor(offset)).all():
            raise ValueError(f"offset: expected finite values, got {offset}")
        if not axes or not set(axes) <= {0, 1, 2}:
            raise ValueError(f"axes: expected some of 0, 1 and 2, got {axes}")
        if (batch is not None and batch < 1) or (tile is not None and tile < 1) or not 0 <= overlap < 1:
            raise ValueError(
                f"batch, tile, overlap: expected at least 1, at least 1 and [0, 1), got {batch}, {tile}, {overlap}"
            )
        self.denoiser, self.scale, self.offset, self.phase, self.channels = denoiser, scale, offset, phase, channels
        self.axes, self.batch, self.tile, self.overlap = axes, batch, tile, overlap
        self._accepted: dict[int, bool] = {}  # numbers of channels

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the denoiser's weights, if it has any."""
        return (
            next((p.dtype for p in self.denoiser.parameters()), None) if isinstance(self.denoiser, nn.Module) else None
        )

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        images, levels = self._inside(x, sigma)
        if x.ndim == 4:
            out = self._batches(self._tiles, images, levels)
        else:
            out = sum(self._slices(images, levels, axis) for axis in self.axes) / len(self.axes)
        out = out.reshape(x.shape).to(x.dtype if x.is_floating_point() else out.dtype)
        out = out * _each(self.scale, out) + _each(self.offset, out)
        return out if self.phase is None else _rotate(out, self.phase)

    def potential(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        r"""The function g with :math:`D = I - \nabla g` of a denoiser that has one, one value for each image, (B,).

        For volumes, the mean over ``axes``; tiles are not used.
        """
        images, levels = self._inside(x, sigma)
        stacks = [images] if x.ndim == 4 else [images.movedim(2 + axis, 1) for axis in self.axes]
        value = 0
        for stack in stacks:
            slices = stack if x.ndim == 4 else stack.flatten(0, 1)
            each = levels.repeat_interleave(len(slices) // len(levels))
            value = value + self._batches(self.denoiser.potential, slices, each).reshape(len(x), -1).sum(1)
        return value / len(stacks) * torch.as_tensor(self.scale, device=x.device).reshape(-1) ** 2

    def _inside(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """Images and levels as the denoiser is to see them."""
        if x.is_complex():
            raise TypeError(f"x: expected real images, complex ones as two channels, got {x.dtype}")
        x = x if x.is_floating_point() else x.float()
        if self.phase is not None:
            x = _rotate(x, self.phase.conj())
        level = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        for name, value in (("sigma", level), ("scale", self.scale), ("offset", self.offset)):
            if isinstance(value, Tensor) and value.numel() not in (1, len(x)):
                raise ValueError(f"{name}: expected one or {len(x)} values for {len(x)} images, got {value.numel()}")
        level = (level / torch.as_tensor(self.scale, device=x.device).reshape(-1)).expand(len(x))
        x = (x - _each(self.offset, x)) / _each(self.scale, x)
        single = self.channels
        if single is None:
            count = x.shape[1]
            single = not self._accepted[count] if count in self._accepted else not self._accepts(count, x)
        images = x.flatten(0, 1)[:, None] if single else x
        return images.to(self.dtype or x.dtype), level.repeat_interleave(x.shape[1]) if single else level

    def _accepts(self, count: int, x: Tensor) -> bool:
        """Whether the denoiser takes so many channels; kept, unless it takes no image of this size at all."""
        settings = (x.device, self.dtype or x.dtype, x.shape[-2:])
        accepted = count == 1 or accepts(self.denoiser, count, *settings)
        if accepted or accepts(self.denoiser, 1, *settings):
            self._accepted[count] = accepted
        return accepted

    def _slices(self, volumes: Tensor, levels: Tensor, axis: int) -> Tensor:
        """Volumes (B, C, D, H, W), slice by slice."""
        slices = volumes.movedim(2 + axis, 1)
        out = self._batches(self._tiles, slices.flatten(0, 1), levels.repeat_interleave(slices.shape[1]))
        return out.reshape(slices.shape).movedim(1, 2 + axis)

    def _batches(self, function: Callable, images: Tensor, levels: Tensor) -> Tensor:
        most = self.batch or _suitable_batch(images.shape[-2:], images.device)
        parts = zip(images.split(most), levels.split(most))
        return torch.cat([function(*part) for part in parts])

    def _tiles(self, images: Tensor, levels: Tensor) -> Tensor:
        if self.tile is None or max(images.shape[-2:]) <= self.tile:
            return self._checked(images, levels)
        from monai.inferers import sliding_window_inference

        size = [min(self.tile, n) for n in images.shape[-2:]]
        most = self.batch or _suitable_batch(size, images.device)
        whole = [
            sliding_window_inference(
                image, size, most, lambda tiles, level=level: self._checked(tiles, level.expand(len(tiles))),
                overlap=self.overlap, mode="gaussian",
            )
            for image, level in zip(images.split(1), levels.split(1))
        ]  # fmt: skip
        return torch.cat(whole)

    def _checked(self, images: Tensor, levels: Tensor) -> Tensor:
        out = self.denoiser(images, levels)
        if not isinstance(out, Tensor) or out.shape != images.shape:
            found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"denoiser: expected it to return the shape {tuple(images.shape)} it was given, got {found}"
            )
        return out


def _suitable_batch(size: Sequence[int], device: torch.device) -> int:
    return max(CACHED_PIXELS // (size[0] * size[1]), 1) if device.type == "cpu" else 16


def accepts(denoiser: Callable, channels: int, device=None, dtype=torch.float32, size=(32, 32)) -> bool:
    """Whether a denoiser takes images of so many channels: by trying a small one, then one of the given size."""
    small = min(size[0], 32), min(size[1], 32)
    return any(_takes(denoiser, channels, each, device, dtype) for each in dict.fromkeys((small, tuple(size))))


def _takes(denoiser: Callable, channels: int, size: tuple[int, int], device, dtype) -> bool:
    probe = torch.full((1, channels, *size), 0.5, device=device, dtype=dtype)
    try:
        out = denoiser(probe, torch.full((1,), 0.1, device=device))
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError):
        return False
    return isinstance(out, Tensor) and out.shape == probe.shape


def _each(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A number, or one for each image (B, ...), broadcastable to images x."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


def _rotate(x: Tensor, phase: Tensor) -> Tensor:
    """Multiply complex images (B, 2, H, W) by complex numbers (B, H, W)."""
    real, imaginary = x[:, 0], x[:, 1]
    return torch.stack([real * phase.real - imaginary * phase.imag, real * phase.imag + imaginary * phase.real], 1)
