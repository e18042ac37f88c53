"""MRI along any trajectory: radial, spiral, or any other set of points in k-space."""

from __future__ import annotations

import math

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from scipy import spatial
from torch import Tensor

from operators.mri import check_maps, check_real, from_complex, to_complex
from operators.nufft import NUFFT


class NonCartesianMRI(LinearPhysics):
    r"""Non-Cartesian MRI, :math:`y_{n,m} = (HW)^{-1/2} \sum_r s_n(r) x(r) e^{-i k_m \cdot r}`.

    Forward and adjoint are non-uniform FFTs; the normal product :math:`A^H A` is a convolution, which two FFTs on twice
    the grid apply exactly (Toeplitz embedding: Fessler et al., IEEE Trans Signal Process 2005).

    :param trajectory: points (M, 2) in radians per pixel along H and along W, within [-pi, pi), see
        :mod:`operators.trajectories`.
    :param shape: (H, W) of the image.
    :param maps: complex coil sensitivities (N, H, W) or (B, N, H, W); None for a single coil.
    :param noise_model: deepinv noise model that ``op(x)`` applies.
    :param eps: relative error of the transforms.
    :param device: device of the operator, default the trajectory's.

    Images are (B, 2, H, W), real and imaginary part; measurements (B, 2, N, M), or (B, 2, M) without maps.
    """

    def __init__(self, trajectory, shape, maps=None, *, noise_model=None, eps: float = 1e-5, device=None):
        trajectory = _check_trajectory(trajectory)
        device = trajectory.device if device is None else device
        arguments = {} if noise_model is None else {"noise_model": noise_model}
        super().__init__(device=device, solver="CG", **arguments)
        self.image_shape, self.eps = (2, *(int(n) for n in shape)), eps
        self.img_size = self.image_shape
        for name in ("trajectory", "maps", "_kernel"):
            self.register_buffer(name, None, persistent=name != "_kernel")
        self._set(trajectory.to(device), None if maps is None else torch.as_tensor(maps).to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Measurements of images (B, 2, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        image = to_complex(x)
        y = self._nufft.forward(image if self.maps is None else self.maps * image[:, None])
        return from_complex(y / self._root)

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Adjoint: images (B, 2, H, W) of measurements (B, 2, [N,] M)."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape)
        image = self._nufft.adjoint(to_complex(y)) / self._root
        return from_complex(image if self.maps is None else (self.maps.conj() * image).sum(1))

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        """Normal product of images (B, 2, H, W), as a convolution."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        image = to_complex(x)
        height, width = self.image_shape[1:]
        coils = image[:, None] if self.maps is None else self.maps * image[:, None]
        spectrum = torch.fft.fft2(coils, s=self._kernel.shape) * self._kernel
        coils = torch.fft.ifft2(spectrum)[..., :height, :width]
        return from_complex(coils[:, 0] if self.maps is None else (self.maps.conj() * coils).sum(1))

    def density_compensation(self) -> Tensor:
        """Weights (M,) that even out the density of the samples: the areas that are closest to each (Voronoi cells).

        ``op.A_adjoint(y * weights)`` is the gridding reconstruction, in the units of x (Rasche et al., *Resampling of
        data between arbitrary grids using convolution interpolation*, IEEE Trans Med Imaging 1999).
        """
        points, which, counts = np.unique(
            self.trajectory.cpu().double().numpy().round(7), axis=0, return_inverse=True, return_counts=True
        )
        # a ring outside gives the outermost samples cells of the usual depth
        radius = np.hypot(*points.T)
        gap = 2 * np.pi / max(self.image_shape[1:])
        turn = np.linspace(0, 2 * np.pi, int(2 * np.pi * radius.max() / gap * 2), endpoint=False)
        ring = (radius.max() + gap) * np.stack([np.sin(turn), np.cos(turn)], 1)
        cells = spatial.Voronoi(np.concatenate([points, ring]))
        # a cell is made of triangles, each with its corner at the point and a side that it shares with a neighbour
        sides, pairs = np.array(cells.ridge_vertices), cells.ridge_points
        finite = (sides >= 0).all(1)
        sides, pairs = cells.vertices[sides[finite]], pairs[finite]
        lengths = np.linalg.norm(sides[:, 0] - sides[:, 1], axis=1)
        distances = np.linalg.norm(cells.points[pairs[:, 0]] - cells.points[pairs[:, 1]], axis=1)
        areas = np.bincount(pairs.ravel(), np.repeat(lengths * distances / 4, 2), len(cells.points))[: len(points)]
        areas = areas / counts  # points that were sampled more than once share their cell
        weights = areas[which.ravel()] * self.image_shape[1] * self.image_shape[2] / (2 * np.pi) ** 2
        return torch.from_numpy(weights).float().to(self.trajectory.device)

    def update_parameters(self, trajectory: Tensor | None = None, maps: Tensor | None = None, **kwargs) -> None:
        """Replace trajectory, maps or both."""
        if trajectory is not None or maps is not None:
            self._set(
                self.trajectory if trajectory is None else _check_trajectory(trajectory).to(self.trajectory.device),
                self.maps if maps is None else torch.as_tensor(maps).to(self.trajectory.device),
            )
        super().update_parameters(**kwargs)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(2, N, M), or (2, M) without maps."""
        coils = () if self.maps is None else (self.maps.shape[1],)
        return (2, *coils, len(self.trajectory))

    def _set(self, trajectory: Tensor, maps: Tensor | None) -> None:
        height, width = self.image_shape[1:]
        self._root = math.sqrt(height * width)
        if self.trajectory is None or not torch.equal(trajectory, self.trajectory):
            self._nufft = NUFFT(trajectory, (height, width), self.eps)
            self._kernel = _toeplitz_kernel(trajectory, height, width, self.eps)
        self.trajectory = trajectory
        self.maps = None if maps is None else check_maps(maps, (height, width))


def _toeplitz_kernel(trajectory: Tensor, height: int, width: int, eps: float) -> Tensor:
    """Spectrum on the doubled grid of the convolution A'A: that of sum_m exp(i k_m . d) / HW at all lags d."""
    ones = torch.ones(len(trajectory), dtype=torch.complex128)
    lags = NUFFT(trajectory, (2 * height, 2 * width), min(eps, 1e-6)).adjoint(ones) / (height * width)
    # the lags -H and -W belong to no pair of pixels
    lags[0], lags[:, 0] = 0, 0
    kernel = torch.fft.fft2(torch.fft.ifftshift(lags, dim=(-2, -1)))
    return kernel.real.float().to(trajectory.device)  # real, because the lags d and -d are conjugate


def _check_trajectory(trajectory) -> Tensor:
    trajectory = torch.as_tensor(trajectory)
    if trajectory.ndim != 2 or trajectory.shape[1] != 2 or len(trajectory) == 0:
        raise ValueError(f"trajectory: expected shape (M, 2), got {tuple(trajectory.shape)}")
    if not trajectory.is_floating_point():
        raise ValueError(f"trajectory: expected floating-point radians per pixel, got {trajectory.dtype}")
    low, high = trajectory.min().item(), trajectory.max().item()
    if not (low >= -math.pi - 1e-5 and high <= math.pi + 1e-5):
        raise ValueError(
            f"trajectory: expected radians per pixel in [-pi, pi), got values from {low:.4g} to {high:.4g}; "
            "cycles per field of view are multiplied by 2 pi and divided by the number of pixels"
        )
    return trajectory
