"""Cartesian MRI, single-coil and multi-coil (SENSE), without a single fftshift."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from operators.operator import Operator, check_real, own

CACHE = 2**20  # bytes of coil images that are worked on at a time, on each thread


class MRI(Operator):
    r"""Cartesian MRI, :math:`y_n = M F S_n x`: mask :math:`M`, centred unitary FFT :math:`F`, coil maps :math:`S_n`.

    Same conventions and numbers as ``deepinv.physics.MRI`` and ``MultiCoilMRI`` (SENSE model: Pruessmann et al., Magn
    Reson Med 1999). The shifts of the centred FFT are phase factors that are multiplied into mask and maps once; in the
    normal product :math:`A^H A` they cancel, and an axis along which the mask is constant is not transformed at all.

    :param mask: sampling mask (H, W), or (B, 1, H, W) with one for each image, for instance for each frame of a dynamic
        series; (D, H, W) or (B, 1, D, H, W) for volumes. 1 where k-space is sampled, else 0, zero frequency at
        n // 2 along each axis.
    :param maps: complex coil sensitivities (N, H, W) or (B, N, H, W), for volumes (N, D, H, W) or (B, N, D, H, W); None
        for a single coil of uniform sensitivity.
    :param noise_model: deepinv noise model that ``op(x)`` applies, in k-space where the mask samples it.
    :param device: device of the operator, default the mask's.
    :raises ValueError: for a mask or maps of another shape or type, with NaN, or without a single sample.

    Images are (B, 2, H, W), real and imaginary part; measurements (B, 2, N, H, W), or (B, 2, H, W) without maps.
    Volumes have one more axis D before H.
    """

    def __init__(self, mask: Tensor, maps: Tensor | None = None, *, noise_model=None, device=None):
        mask = _check_mask(mask)
        device = mask.device if device is None else device
        super().__init__(img_size=(2, *mask.shape[2:]), device=device, solver="CG", noise_model=noise_model)
        self.register_buffer("mask", None)
        self.register_buffer("maps", None)
        self._set(mask.to(device), None if maps is None else torch.as_tensor(maps).to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Measurements of images (B, 2, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape, self.items)
        t = self._tables(x)
        k = t.mask * torch.fft.fftn(t.maps * to_complex(x)[:, None], dim=self._axes, norm="ortho")
        return from_complex(k if self.maps is not None else k[:, 0])

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Adjoint: images (B, 2, H, W) of measurements (B, 2, [N,] H, W)."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape, self.items)
        t = self._tables(y)
        k = to_complex(y) if self.maps is not None else to_complex(y)[:, None]
        coils = torch.fft.ifftn(t.mask.conj() * k, dim=self._axes, norm="ortho")
        return from_complex((t.maps.conj() * coils).sum(1))

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        """Normal product of images (B, 2, H, W), transforming only the axes along which the mask varies."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape, self.items)
        t = self._tables(x)
        image = to_complex(x.expand(max(len(x), self.items), *self.image_shape))

        def convolved_conjugate(coils: Tensor) -> Tensor:
            coils = torch.fft.fftn(coils, dim=t.axes) if t.axes else coils
            torch.view_as_real(coils).mul_(t.density)  # a real product of contiguous values is the fastest
            return torch.fft.fftn(coils, dim=t.axes) if t.axes else coils

        return from_complex(sum_over_coils(convolved_conjugate, image, t.maps))

    def normal_inverse(self) -> callable | None:
        r"""The map :math:`(b, \rho) \mapsto (A^H A + \rho I)^{-1} b` in closed form, or None where there is none."""
        if self.maps is not None:
            return None

        def inverse(b: Tensor, rho: float | Tensor) -> Tensor:
            t = self._tables(b)
            seen = self.mask.to(b) ** 2
            k = torch.fft.fftn(t.maps * to_complex(b)[:, None], dim=self._axes, norm="ortho") / (seen + rho)
            return from_complex((t.maps.conj() * torch.fft.ifftn(k, dim=self._axes, norm="ortho"))[:, 0])

        return inverse

    def sampled(self, y: Tensor) -> Tensor:
        """Measurements with zeros where the mask has some."""
        mask = self.mask if self.maps is None else self.mask[:, :, None]
        return y * (mask != 0).to(y.device)

    def update_parameters(self, mask: Tensor | None = None, maps: Tensor | None = None, **kwargs) -> None:
        """Replace mask, maps or both; of another size only together."""
        if mask is not None or maps is not None:
            self._set(
                self.mask if mask is None else _check_mask(mask).to(self.mask.device),
                self.maps if maps is None else torch.as_tensor(maps).to(self.mask.device),
            )
        super().update_parameters(**kwargs)

    @property
    def items(self) -> int:
        """How many items mask and maps are for; 1 where they serve all."""
        return max(len(self.mask), 1 if self.maps is None else len(self.maps))

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(2, [D,] H, W)."""
        return (2, *self.mask.shape[2:])

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(2, N, [D,] H, W), or (2, [D,] H, W) without maps."""
        return self.image_shape if self.maps is None else (2, *self.maps.shape[1:])

    def _set(self, mask: Tensor, maps: Tensor | None) -> None:
        maps = None if maps is None else check_maps(maps, mask.shape[2:])
        if maps is not None and len({1, len(mask), len(maps)}) > 2:
            raise ValueError(f"maps: expected those of 1 or {len(mask)} items, as the mask's, got {len(maps)}")
        mask, self.maps = (own(part) for part in (mask, maps))
        self.mask, self.img_size = mask, (2, *mask.shape[2:])
        self._axes = tuple(range(2 - mask.ndim, 0))
        self._forget()

    def _reload(self) -> None:
        self._set(_check_mask(self.mask), self.maps)

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> dict:
        complex_dtype = torch.promote_types(dtype, torch.complex64)
        before, after = (factor.to(device) for factor in _centring(self.mask.shape[2:]))
        after = after.to(complex_dtype) if after.imag.any() else after.real.to(dtype)
        maps = before[None, None] if self.maps is None else self.maps.to(device) * before
        # an axis along which the mask does not vary drops out of the normal product
        density = self.mask.to(device, dtype) ** 2
        learned = self.mask.requires_grad  # whose every sample has a slope of its own
        axes = tuple(axis for axis in self._axes if learned or (density != density.narrow(axis, 0, 1)).any())
        for axis in set(self._axes) - set(axes):
            density = density.narrow(axis, 0, 1)
        density = density / math.prod(self.mask.shape[axis] for axis in axes)  # the transforms leave that out
        return {
            "mask": self.mask.to(device, dtype) * after,
            "maps": maps.to(complex_dtype),
            "density": torch.stack([density, -density], -1),  # the product's conjugate: see sum_over_coils
            "axes": axes,
        }


def to_complex(x: Tensor) -> Tensor:
    """(B, 2, ...) real to (B, ...) complex."""
    return torch.complex(x[:, 0], x[:, 1])


def from_complex(x: Tensor) -> Tensor:
    """(B, ...) complex to (B, 2, ...) real."""
    return torch.view_as_real(x).movedim(-1, 1).contiguous()


def sum_over_coils(convolved_conjugate, image: Tensor, maps: Tensor, padding: int = 1) -> Tensor:
    """The sum of conj(S_n) C(S_n x) over the coils n, for a convolution C.

    On a CPU a few coils at a time, as many as each thread's cache holds: that spares memory and the time to get it. So
    does the complex conjugate of the sum, whose factors are the sensitivities that the cache holds already.

    :param convolved_conjugate: the complex conjugate of C, a function of coil images (B, n, ...), which it may
        overwrite. It costs no more than C: conj(F'v) = F conj(v), and a product with real values may change signs, too.
    :param image: complex images x (B, ...).
    :param maps: coil sensitivities S (B, N, ...).
    :param padding: size of what the convolution works on, in images.
    """
    bytes_each = image.numel() * image.element_size() * padding
    on_cpu = image.device.type == "cpu"
    group = torch.get_num_threads() * max(CACHE // bytes_each, 1) if on_cpu else maps.shape[1]
    total = None
    for some in maps.split(group, 1):
        for coil, factor in zip(convolved_conjugate(some * image[:, None]).unbind(1), some.unbind(1)):
            total = coil * factor if total is None else total.addcmul_(coil, factor)  # a single pass through memory
    return total.conj_physical_()


def _centring(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Factors with fftshift(fftn(ifftshift(x))) = after * fftn(before * x); exact signs along even axes."""
    before = after = torch.ones((), dtype=torch.complex128)
    for n in shape:
        c, index = n // 2, torch.arange(n)
        before = before[..., None] * _roots(c * index, n)
        after = after[..., None] * _roots(c * (index - c), n)
    return before, after


def _roots(k: Tensor, n: int) -> Tensor:
    """exp(2 pi i k / n), exact where it is 1 or -1."""
    k = k % n
    root = torch.polar(torch.ones(len(k), dtype=torch.float64), 2 * math.pi * k.double() / n)
    return torch.where(2 * k == n, -1.0, root)


def _check_mask(mask: Tensor) -> Tensor:
    mask = torch.as_tensor(mask)
    if mask.is_complex():
        raise ValueError(f"mask: expected real values, got {mask.dtype}")
    mask = mask.float() if not mask.is_floating_point() else mask
    if mask.ndim in (2, 3):
        mask = mask[None, None]
    if mask.ndim not in (4, 5) or mask.shape[1] not in (1, 2) or 0 in mask.shape:
        raise ValueError(
            f"mask: expected shape (H, W) or (B, 1, H, W), of volumes (D, H, W) or (B, 1, D, H, W), got "
            f"{tuple(mask.shape)}"
        )
    mask = mask[:, :1]  # deepinv repeats the mask for real and imaginary part
    if not torch.isfinite(mask).all():
        raise ValueError("mask: expected finite values, got NaN or infinity")
    if not mask.flatten(1).any(1).all():
        raise ValueError("mask: expected at least one sample, got only zeros")
    return mask


def check_maps(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Coil sensitivities as (B, N, *shape), or a ValueError that says what is wrong."""
    if not maps.is_complex():
        raise ValueError(f"maps: expected complex coil sensitivities, got {maps.dtype}")
    maps = maps[None] if maps.ndim == len(shape) + 1 else maps
    if maps.ndim != len(shape) + 2 or maps.shape[2:] != torch.Size(shape):
        size = " x ".join(map(str, shape))
        axes = ", ".join("DHW"[-len(shape) :])
        raise ValueError(f"maps: expected (N, {axes}) or (B, N, {axes}) of size {size}, got {tuple(maps.shape)}")
    if not torch.isfinite(torch.view_as_real(maps)).all():
        raise ValueError("maps: expected finite values, got NaN or infinity")
    return maps
