"""MRI along any trajectory: radial, spiral, or any other set of points in k-space."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from operators.density import pipe_menon
from operators.mri import check_maps, from_complex, sum_over_coils, to_complex
from operators.nufft import NUFFT
from operators.operator import Operator, check_real, own, sizes


class NonCartesianMRI(Operator):
    r"""Non-Cartesian MRI, :math:`y_{n,m} = (HW)^{-1/2} \sum_r s_n(r) x(r) e^{-i k_m \cdot r}`.

    Forward and adjoint are non-uniform FFTs; the normal product :math:`A^H A` is a convolution, which two FFTs on about
    twice the grid apply exactly (Toeplitz embedding: Fessler et al., IEEE Trans Signal Process 2005).

    :param trajectory: points (M, 2) in radians per pixel along H and along W, within [-pi, pi), see
        :mod:`operators.trajectories`; (M, 3) along D, H and W for volumes.
    :param shape: (H, W) of the image, (D, H, W) of a volume.
    :param maps: complex coil sensitivities (N, H, W) or (B, N, H, W), for volumes with D before H; None for a single
        coil.
    :param noise_model: deepinv noise model that ``op(x)`` applies.
    :param eps: relative error of the transforms.
    :param device: device of the operator, default the trajectory's.
    :raises ValueError: for a trajectory of another shape, outside [-pi, pi) or with NaN, and for maps that do not fit.

    Images are (B, 2, H, W), real and imaginary part; measurements (B, 2, N, M), or (B, 2, M) without maps.
    """

    def __init__(self, trajectory, shape, maps=None, *, noise_model=None, eps: float = 1e-5, device=None):
        shape = sizes("shape", shape, "DHW" if isinstance(shape, Iterable) and len(tuple(shape)) == 3 else "HW")
        trajectory = _check_trajectory(trajectory, len(shape))
        device = trajectory.device if device is None else device
        super().__init__(img_size=(2, *shape), device=device, solver="CG", noise_model=noise_model)
        self.image_shape, self.eps = (2, *shape), eps
        self.register_buffer("trajectory", None)
        self.register_buffer("maps", None)
        self._set(trajectory.to(device), None if maps is None else torch.as_tensor(maps).to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Measurements of images (B, 2, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape, self.items)
        image, t = to_complex(x), self._tables(x)
        return from_complex(self._nufft.forward(image if t.maps is None else t.maps * image[:, None]) / self._root)

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Adjoint: images (B, 2, H, W) of measurements (B, 2, [N,] M)."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape, self.items)
        image, t = self._nufft.adjoint(to_complex(y)) / self._root, self._tables(y)
        return from_complex(image if t.maps is None else (t.maps.conj() * image).sum(1))

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        """Normal product of images (B, 2, H, W), as a convolution."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape, self.items)
        image, t = to_complex(x.expand(max(len(x), self.items), *self.image_shape)), self._tables(x)
        axes = [(axis - len(self._kernel.shape), n) for axis, n in enumerate(self.image_shape[1:])]

        def convolved_conjugate(coils: Tensor) -> Tensor:
            # axis by axis: what is padded with zeros, and what is cropped in the end, is not transformed
            for axis, _ in axes:
                coils = torch.fft.fft(coils, n=self._kernel.shape[axis], dim=axis)
            torch.view_as_real(coils).mul_(t.kernel)  # a real product of contiguous values is the fastest
            for axis, n in reversed(axes):
                coils = torch.fft.fft(coils, dim=axis).narrow(axis, 0, n)
            return coils

        if t.maps is None:
            return from_complex(convolved_conjugate(image).conj().resolve_conj())
        return from_complex(sum_over_coils(convolved_conjugate, image, t.maps, padding=2 ** len(axes)))

    def density_compensation(self) -> Tensor:
        """Weights (M,) that even out the density of the samples (Pipe & Menon, Magn Reson Med 1999).

        ``op.A_adjoint(y * weights)`` is the gridding reconstruction, in the units of x.
        """
        weights = pipe_menon(self.trajectory.double().cpu().numpy(), self.image_shape[1:])
        return torch.from_numpy(weights).float().to(self.trajectory.device)

    def update_parameters(self, trajectory: Tensor | None = None, maps: Tensor | None = None, **kwargs) -> None:
        """Replace trajectory, maps or both."""
        if trajectory is not None or maps is not None:
            dimensions = len(self.image_shape) - 1
            self._set(
                self.trajectory
                if trajectory is None
                else _check_trajectory(trajectory, dimensions).to(self.trajectory.device),
                self.maps if maps is None else torch.as_tensor(maps).to(self.trajectory.device),
            )
        super().update_parameters(**kwargs)

    @property
    def items(self) -> int:
        """How many items the maps are for; 1 where they serve all."""
        return 1 if self.maps is None else len(self.maps)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(2, N, M), or (2, M) without maps."""
        coils = () if self.maps is None else (self.maps.shape[1],)
        return (2, *coils, len(self.trajectory))

    def _set(self, trajectory: Tensor, maps: Tensor | None) -> None:
        shape = self.image_shape[1:]
        maps = None if maps is None else check_maps(maps, shape)
        self._root = math.sqrt(math.prod(shape))
        if self.trajectory is None or not torch.equal(trajectory, self.trajectory):
            self._nufft = NUFFT(trajectory, shape, self.eps)
            self._kernel = _toeplitz_kernel(trajectory, shape, self.eps)
        self.trajectory, self.maps = own(trajectory), own(maps)
        self._forget()

    def _reload(self) -> None:
        trajectory = _check_trajectory(self.trajectory, len(self.image_shape) - 1)
        self.trajectory = None  # as if it were new
        self._set(trajectory, self.maps)

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> dict:
        maps = None if self.maps is None else self.maps.to(device, torch.promote_types(dtype, torch.complex64))
        kernel = (self._kernel / self._kernel.numel()).to(device, dtype)  # the transforms leave that out
        return {"maps": maps, "kernel": torch.stack([kernel, -kernel], -1)}  # the product's conjugate: sum_over_coils


def _toeplitz_kernel(trajectory: Tensor, shape: tuple[int, ...], eps: float) -> Tensor:
    """Spectrum of the convolution A'A, that of sum_m exp(i k_m . d) / HW, on a grid that holds all lags d."""
    ones = torch.ones(len(trajectory), dtype=torch.complex128)
    grid = tuple(next_fast_len(2 * n - 1) for n in shape)
    lags = NUFFT(trajectory, grid, min(eps, 1e-6)).adjoint(ones) / math.prod(shape)
    for axis, (n, size) in enumerate(zip(shape, grid)):  # lags from n belong to no pair of pixels
        lags.movedim(axis, -1).mul_((torch.arange(size) - size // 2).abs() < n)
    return torch.fft.fftn(torch.fft.ifftshift(lags)).real  # real, because the lags d and -d are conjugate


def _check_trajectory(trajectory, dimensions: int) -> Tensor:
    trajectory = torch.as_tensor(trajectory)
    if trajectory.ndim != 2 or trajectory.shape[1] != dimensions or len(trajectory) == 0:
        raise ValueError(f"trajectory: expected shape (M, {dimensions}), got {tuple(trajectory.shape)}")
    if not trajectory.is_floating_point() or trajectory.requires_grad:
        kind = f"{trajectory.dtype}{', with gradient' if trajectory.requires_grad else ''}"
        raise ValueError(f"trajectory: expected floating-point radians per pixel, without gradient, got {kind}")
    low, high = trajectory.min().item(), trajectory.max().item()
    if not (low >= -math.pi - 1e-5 and high <= math.pi + 1e-5):
        raise ValueError(
            f"trajectory: expected radians per pixel in [-pi, pi), got values from {low:.4g} to {high:.4g}; "
            "cycles per field of view are multiplied by 2 pi and divided by the number of pixels"
        )
    if 0.45 < max(-low, high) <= 0.5 + 1e-5:
        warnings.warn(
            f"trajectory: expected radians per pixel, up to pi, got up to {max(-low, high):.3g}; are these cycles per "
            "pixel, which are multiplied by 2 pi?",
            stacklevel=4,
        )
    return trajectory
