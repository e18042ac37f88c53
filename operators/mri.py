"""Cartesian MRI, single-coil and multi-coil (SENSE), without a single fftshift."""

from __future__ import annotations

import math

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor


class MRI(LinearPhysics):
    r"""Cartesian MRI, :math:`y_n = M F S_n x`: mask :math:`M`, centred unitary FFT :math:`F`, coil maps :math:`S_n`.

    Same conventions and numbers as ``deepinv.physics.MRI`` and ``MultiCoilMRI`` (SENSE model: Pruessmann et al., Magn
    Reson Med 1999). The shifts of the centred FFT are phase factors that are multiplied into mask and maps once; in the
    normal product :math:`A^H A` they cancel, and an axis along which the mask is constant is not transformed at all.

    :param mask: sampling mask (H, W), or (B, 1, H, W) with one for each image; 1 where k-space is sampled, else 0,
        zero frequency at (H // 2, W // 2).
    :param maps: complex coil sensitivities (N, H, W) or (B, N, H, W); None for a single coil of uniform sensitivity.
    :param noise_model: deepinv noise model that ``op(x)`` applies, in k-space where the mask samples it.
    :param device: device of the operator, default the mask's.

    Images are (B, 2, H, W), real and imaginary part; measurements (B, 2, N, H, W), or (B, 2, H, W) without maps.
    """

    def __init__(self, mask: Tensor, maps: Tensor | None = None, *, noise_model=None, device=None):
        mask = _check_mask(mask)
        device = mask.device if device is None else device
        arguments = {} if noise_model is None else {"noise_model": noise_model}
        super().__init__(device=device, solver="CG", **arguments)
        for name in ("mask", "maps", "_mask", "_maps", "_density"):
            self.register_buffer(name, None, persistent=name in ("mask", "maps"))
        self._set(mask.to(device), None if maps is None else torch.as_tensor(maps).to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Measurements of images (B, 2, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        k = self._mask * torch.fft.fft2(self._maps * to_complex(x)[:, None], norm="ortho")
        return from_complex(k if self.maps is not None else k[:, 0])

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Adjoint: images (B, 2, H, W) of measurements (B, 2, [N,] H, W)."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape)
        k = to_complex(y) if self.maps is not None else to_complex(y)[:, None]
        coils = torch.fft.ifft2(self._mask.conj() * k, norm="ortho")
        return from_complex((self._maps.conj() * coils).sum(1))

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        """Normal product of images (B, 2, H, W), transforming only the axes along which the mask varies."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        if not self._axes:
            return from_complex(self._density[:, 0] * self._energy() * to_complex(x))
        coils = self._maps * to_complex(x)[:, None]
        k = torch.fft.fftn(coils, dim=self._axes, norm="ortho").mul_(self._density)
        coils = torch.fft.ifftn(k, dim=self._axes, norm="ortho")
        return from_complex(coils.mul_(self._maps.conj()).sum(1))

    def normal_inverse(self) -> callable | None:
        r"""The map :math:`(b, \rho) \mapsto (A^H A + \rho I)^{-1} b` in closed form, or None where there is none."""
        if self.maps is not None:
            return None

        def inverse(b: Tensor, rho: float | Tensor) -> Tensor:
            k = torch.fft.fft2(self._maps * to_complex(b)[:, None], norm="ortho") / (self.mask**2 + rho)
            return from_complex((self._maps.conj() * torch.fft.ifft2(k, norm="ortho"))[:, 0])

        return inverse

    def noise(self, x: Tensor, **kwargs) -> Tensor:
        """Apply the noise model where the mask samples."""
        mask = self.mask if self.maps is None else self.mask[:, :, None]
        return self.noise_model(x, **kwargs) * (mask != 0)

    def update_parameters(self, mask: Tensor | None = None, maps: Tensor | None = None, **kwargs) -> None:
        """Replace mask, maps or both; of another size only together."""
        if mask is not None or maps is not None:
            self._set(
                self.mask if mask is None else _check_mask(mask).to(self.mask.device),
                self.maps if maps is None else torch.as_tensor(maps).to(self.mask.device),
            )
        super().update_parameters(**kwargs)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(2, H, W)."""
        return (2, *self.mask.shape[-2:])

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(2, N, H, W), or (2, H, W) without maps."""
        return self.image_shape if self.maps is None else (2, *self.maps.shape[1:])

    def _set(self, mask: Tensor, maps: Tensor | None) -> None:
        if maps is not None:
            maps = check_maps(maps, mask.shape[-2:])
        self.img_size = (2, *mask.shape[-2:])
        self.mask, self.maps = mask, maps
        before, after = _centring(*mask.shape[-2:], device=mask.device)
        self._maps = before[None, None] if maps is None else maps * before
        self._mask = mask * after
        density = mask**2
        # an axis along which the mask does not vary drops out of the normal product
        axes = [axis for axis in (-2, -1) if (density != density.narrow(axis, 0, 1)).any()]
        self._axes = tuple(axes)
        for axis in {-2, -1} - set(axes):
            density = density.narrow(axis, 0, 1)
        self._density = density

    def _energy(self) -> Tensor:
        return self._maps.abs().square().sum(1)


def to_complex(x: Tensor) -> Tensor:
    """(B, 2, ...) real to (B, ...) complex."""
    return torch.view_as_complex(x.movedim(1, -1).contiguous())


def from_complex(x: Tensor) -> Tensor:
    """(B, ...) complex to (B, 2, ...) real."""
    return torch.view_as_real(x).movedim(-1, 1).contiguous()


def _centring(height: int, width: int, device) -> tuple[Tensor, Tensor]:
    """Factors (H, W) with fftshift(fft2(ifftshift(x))) = after * fft2(before * x); signs where the sizes are even."""

    def phases(n):
        c = n // 2
        index = torch.arange(n, dtype=torch.float64, device=device)
        before = torch.polar(torch.ones_like(index), 2 * math.pi * (c * index % n) / n)
        return before, torch.polar(torch.ones_like(index), 2 * math.pi * (c * (index - c) % n) / n)

    (before_rows, after_rows), (before_columns, after_columns) = phases(height), phases(width)
    before, after = torch.outer(before_rows, before_columns), torch.outer(after_rows, after_columns)
    even = height % 2 == 0 and width % 2 == 0
    after = after.real.round().float() if even else after.to(torch.complex64)
    return before.to(torch.complex64), after


def _check_mask(mask: Tensor) -> Tensor:
    mask = torch.as_tensor(mask)
    if mask.is_complex():
        raise ValueError(f"mask: expected real values, got {mask.dtype}")
    mask = mask.float() if not mask.is_floating_point() else mask
    if mask.ndim == 2:
        mask = mask[None, None]
    if mask.ndim != 4 or mask.shape[1] not in (1, 2):
        raise ValueError(f"mask: expected shape (H, W) or (B, 1, H, W), got {tuple(mask.shape)}")
    mask = mask[:, :1]  # deepinv repeats the mask for real and imaginary part
    if not torch.isfinite(mask).all():
        raise ValueError("mask: expected finite values, got NaN or infinity")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask: expected at least one sample, got only zeros")
    return mask


def check_maps(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """Coil sensitivities as (B, N, H, W), or a ValueError that says what is wrong."""
    if not maps.is_complex():
        raise ValueError(f"maps: expected complex coil sensitivities, got {maps.dtype}")
    maps = maps[None] if maps.ndim == 3 else maps
    if maps.ndim != 4 or maps.shape[-2:] != torch.Size(shape):
        size = " x ".join(map(str, shape))
        raise ValueError(f"maps: expected (N, H, W) or (B, N, H, W) of size {size}, got {tuple(maps.shape)}")
    if not torch.isfinite(torch.view_as_real(maps)).all():
        raise ValueError("maps: expected finite values, got NaN or infinity")
    return maps


def check_real(x: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless ``x`` is a real batch of items of the shape."""
    if x.is_complex() or not x.is_floating_point():
        raise ValueError(f"{name}: expected a real tensor with real and imaginary part as channels, got {x.dtype}")
    if x.shape[1:] != shape:
        wanted = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(x.shape)}")
