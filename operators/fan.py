"""Computed tomography with a fan of rays, by resampling parallel projections."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from operators.ct import Tomograph, check_angles
from operators.fbp import ramp_filter, view_weights
from operators.operator import check_real, own, sizes, whole
from operators.radon import Radon
from operators.sparse import SparseMatrix

STEP = 0.5  # distance in pixels between the parallel rays that the fan's are interpolated from
TAPS = 4  # of them that take part along the detector
TAPS_ANGLE = 6  # and in angle
OVERSAMPLING = 1.1  # of the angles


class FanBeamCT(Tomograph):
    r"""Fan-beam CT with a flat or curved detector: line integrals of the image, averaged over detector bins.

    At angle :math:`\beta` the source is at :math:`R(\sin\beta, -\cos\beta)`, R being ``source_distance``; a ray that
    leaves it at the angle :math:`\gamma` to the central ray is the parallel ray at
    :math:`\theta = \beta - \gamma,\; s = R\sin\gamma` in the coordinates of :class:`operators.ParallelBeamCT`. So A is
    a sparse interpolation of parallel projections, which the Fourier slice theorem gives at all angles at once. Any
    number of views costs about the same.

    :param shape: (H, W) of the image.
    :param angles: angle beta of each view in radians, (V,).
    :param source_distance: from the source to the middle of the image, in pixels; more than half the diagonal.
    :param detector_distance: from the middle of the image to that of the detector, in pixels, at least 0.
    :param detectors: number of bins D; default as many as cover the image from every side.
    :param spacing: width of a bin at the detector, in pixels, along its arc if it is curved.
    :param detector: "flat", or "curved" for one on a circle around the source.
    :param noise_model: deepinv noise model that ``op(x)`` applies, for instance :class:`operators.LowDose`.
    :param eps: relative error of the transforms; the interpolation's is about 1e-3 for images as smooth as those of
        scanners, and several percent for white noise.
    :param device: device of the operator, default the angles'.
    :raises ValueError: for angles that are empty, not finite or not one-dimensional, and impossible geometries. Angles
        above 2 pi are answered by a warning, as they may be degrees.

    Images are (B, 1, H, W); measurements (B, 1, V, D), in the units of x times pixels. Volumes are batches of slices.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        angles: Tensor,
        source_distance: float,
        detector_distance: float,
        detectors: int | None = None,
        spacing: float = 1.0,
        *,
        detector: str = "flat",
        noise_model=None,
        eps: float = 1e-4,
        device=None,
    ):
        angles = check_angles(angles)
        device = angles.device if device is None else device
        height, width = sizes("shape", shape)
        super().__init__(img_size=(1, height, width), device=device, solver="CG", noise_model=noise_model)
        reach = math.hypot(height, width) / 2
        if not (math.isfinite(source_distance) and source_distance > reach):
            raise ValueError(
                f"source_distance: expected more than half the image's diagonal of {2 * reach:.1f} pixels, "
                f"got {source_distance}"
            )
        if not (math.isfinite(detector_distance) and detector_distance >= 0):
            raise ValueError(f"detector_distance: expected at least 0, got {detector_distance}")
        if not (math.isfinite(spacing) and spacing > 0):
            raise ValueError(f"spacing: expected a positive number, got {spacing}")
        if detector not in ("flat", "curved"):
            raise ValueError(f"detector: expected flat or curved, got {detector!r}")
        self.source_distance, self.detector_distance = float(source_distance), float(detector_distance)
        self.spacing, self.detector, self.eps = float(spacing), detector, eps
        if detectors is None:
            widest = math.asin(reach / source_distance)
            edge = self._focal_length * (math.tan(widest) if detector == "flat" else widest)
            detectors = 2 * math.ceil(edge / spacing)
        self.detectors = whole("detectors", detectors)
        if detector == "curved" and self.detectors * spacing >= math.pi * self._focal_length:
            raise ValueError(
                f"detectors: expected less than half a turn around the source, got {detectors} of {spacing}"
            )
        self.image_shape = (1, height, width)
        # angles over half a turn that hold the highest frequency at the image's corner
        count = math.ceil(OVERSAMPLING * math.pi * reach)
        grid = torch.arange(count, dtype=torch.float64) * math.pi / count
        self._radon = Radon(
            (height, width), grid, 2 * math.ceil((reach + 2) / STEP) + 1, STEP, 0.0, _undo_interpolation, eps
        )
        self.register_buffer("angles", None)
        self._set(angles.to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Projections (B, 1, V, D) of images (B, 1, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        t = self._tables(x)
        parallel = self._radon.forward(x, t.radon)
        return t.resample.forward(parallel.flatten(-2)).unflatten(-1, self.measurement_shape[1:])

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Back-projection (B, 1, H, W) of projections (B, 1, V, D), the exact adjoint."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape)
        t = self._tables(y)
        parallel = t.resample.adjoint(y.flatten(-2)).unflatten(-1, (-1, self._radon.count))
        return self._radon.adjoint(parallel, t.radon)

    def fbp(self, y: Tensor, filter: str = "ram-lak") -> Tensor:
        """Filtered back-projection (Kak & Slaney, *Principles of computerized tomographic imaging*, 1988, section 3.4).

        Rays that a short scan measures twice share their weight (Parker, Med Phys 1982; Silver, Med Phys 2000).

        :param y: projections (B, 1, V, D).
        :param filter: "ram-lak" (the ramp), or the ramp with the window "shepp-logan", "cosine", "hamming" or "hann".
        :return: images (B, 1, H, W).
        """
        check_real(y, "y", self.measurement_shape)
        curved = self.detector == "curved"
        gamma = self._fan_angles(self._bins())
        weights = (
            parker_weights(self.angles.double().cpu(), gamma) * view_weights(self.angles, 2 * math.pi).cpu()[:, None]
        )
        # bins as they would be on a detector through the middle of the image
        step = self.spacing / self._focal_length * (1 if curved else self.source_distance)
        scale = self.source_distance if curved else 1
        filtered = y * (weights * torch.cos(gamma) * scale).to(y)
        filtered = ramp_filter(filtered, step, filter, equiangular=curved).flatten(0, 1)

        _, height, width = self.image_shape
        right = torch.arange(width, device=y.device, dtype=y.dtype) - (width - 1) / 2
        up = (height - 1) / 2 - torch.arange(height, device=y.device, dtype=y.dtype)[:, None]
        image = y.new_zeros(len(y), height * width)
        padded = torch.nn.functional.pad(filtered, (1, 1))
        for view, beta in enumerate(self.angles.tolist()):
            across = right * math.cos(beta) + up * math.sin(beta)
            along = self.source_distance - right * math.sin(beta) + up * math.cos(beta)
            if curved:
                position, power = torch.atan2(across, along) / step, 1 / (across**2 + along**2)
            else:
                magnified = self.source_distance / along
                position, power = across * magnified / step, magnified**2
            position = (position + (self.detectors + 1) / 2).clamp(0, self.detectors + 1 - 1e-3).flatten()
            before = position.long()
            bins = padded[:, view]
            image += torch.lerp(bins[:, before], bins[:, before + 1], position - before) * power.flatten()
        return image.reshape(len(y), 1, height, width)

    @property
    def _focal_length(self) -> float:
        return self.source_distance + self.detector_distance

    def _bins(self) -> Tensor:
        """Middle of each bin along the detector, (D,)."""
        return (torch.arange(self.detectors, dtype=torch.float64) - (self.detectors - 1) / 2) * self.spacing

    def _fan_angles(self, u: Tensor) -> Tensor:
        """Angle to the central ray of the rays to positions u on the detector."""
        return torch.atan(u / self._focal_length) if self.detector == "flat" else u / self._focal_length

    def _set(self, angles: Tensor) -> None:
        # bins are averages over a few rays (Gauss-Legendre), closer together than a pixel
        rays = 1 + math.ceil(self.spacing * self.source_distance / self._focal_length)
        nodes, shares = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(rays))
        gamma = self._fan_angles(self._bins()[:, None] + nodes * self.spacing / 2)
        theta = (angles.double().cpu()[:, None, None] - gamma).flatten()
        s = (self.source_distance * torch.sin(gamma)).expand(len(angles), -1, -1).flatten()
        ray = torch.arange(len(angles) * self.detectors).repeat_interleave(rays)
        weight = (shares / 2).repeat(len(angles) * self.detectors)
        self._resample = _interpolation(theta, s, ray, weight, self._radon, len(angles) * self.detectors)
        self.angles = own(angles)
        self._forget()

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> dict:
        return {"radon": self._radon.tables(dtype, device), "resample": self._resample.to(dtype, device)}


def parker_weights(angles: Tensor, gamma: Tensor) -> Tensor:
    """Share of each ray among the one or two views that measure it, (V, D).

    :param angles: (V,) in radians, of a full turn, or of at least half a turn and the fan. Of less, some rays are not
        measured at all; a warning says so.
    :param gamma: (D,) angles of the rays to the central one.
    """
    turned = torch.remainder(angles, 2 * math.pi)
    ordered = turned.sort().values
    gaps = torch.diff(ordered, append=ordered[:1] + 2 * math.pi)
    step = gaps[gaps > 1e-5].median() if len(angles) > 1 else gaps[0]
    widest = gaps.argmax()
    if gaps[widest] <= 3 * step:
        return torch.full((len(angles), len(gamma)), 0.5, dtype=torch.float64)
    turn = 2 * math.pi - gaps[widest] + step
    excess = (turn - math.pi) / 2
    fan = gamma.abs().max()
    if excess < fan - step:
        warnings.warn(
            f"angles: a turn of {math.degrees(turn):.0f} degrees is less than half a turn and the fan, "
            f"{math.degrees(math.pi + 2 * fan):.0f}; the image will have artefacts of a limited angle",
            stacklevel=3,
        )
    else:
        excess = excess.clamp_min(fan + 1e-6)
    first = ordered[(widest + 1) % len(ordered)] - step / 2
    beta = torch.remainder(turned - first, 2 * math.pi)[:, None]
    rising = torch.sin(math.pi / 4 * beta / (excess + gamma).clamp_min(1e-6)) ** 2
    left = (math.pi + 2 * excess - beta).clamp_min(0)
    falling = torch.sin(math.pi / 4 * left / (excess - gamma).clamp_min(1e-6)) ** 2
    weights = torch.where(beta < 2 * (excess + gamma), rising, 1.0)
    return torch.where(beta > math.pi + 2 * gamma, falling, weights)


def _interpolation(theta: Tensor, s: Tensor, ray: Tensor, weight: Tensor, radon: Radon, rays: int) -> SparseMatrix:
    """Parallel projections on the grid of ``radon`` to sums over rays at (theta, s), (K,), as a sparse matrix."""
    count = radon.views
    k, angle_weights = _taps(theta * count / math.pi, TAPS_ANGLE, _sinc_kernel)
    j, position_weights = _taps(s / STEP + (radon.count - 1) / 2, TAPS, _bell)
    k, j = k[:, :, None], j[:, None, :]
    turned = torch.div(k, count, rounding_mode="floor")
    # half a turn further, the same rays run the other way
    j = torch.where(turned % 2 == 0, j, radon.count - 1 - j)
    values = weight[:, None, None] * angle_weights[:, :, None] * position_weights[:, None, :]
    inside = (j >= 0) & (j < radon.count)
    columns = (k - turned * count) * radon.count + j
    rows = ray[:, None, None].expand_as(columns)
    inside = inside.expand_as(columns)
    entries = values[inside].numpy(), (rows[inside].numpy(), columns[inside].numpy())
    return SparseMatrix(sparse.csr_matrix(entries, shape=(rays, count * radon.count)))


def _taps(position: Tensor, taps: int, kernel) -> tuple[Tensor, Tensor]:
    """Indices (K, taps) of the grid points around positions (K,), and the kernel's value at each."""
    first = torch.floor(position).long() - taps // 2 + 1
    index = first[:, None] + torch.arange(taps)
    return index, kernel(index - position[:, None])


def _sinc_kernel(t: Tensor) -> Tensor:
    """Windowed sinc over TAPS_ANGLE points; the weights of each position are made to sum to 1."""
    half = TAPS_ANGLE / 2
    window = torch.special.i0(4.0 * torch.sqrt((1 - (t / half) ** 2).clamp_min(0)))
    weights = torch.special.sinc(t) * window
    return weights / weights.sum(1, keepdim=True)


SHAPE = math.pi * math.sqrt((TAPS * (1 - STEP / 2)) ** 2 - 0.8)  # Beatty et al., IEEE Trans Med Imaging 2005


def _bell(t: Tensor) -> Tensor:
    """Kaiser-Bessel window over TAPS points, whose effect on the spectrum is undone in advance."""
    inside = torch.sqrt((1 - (2 * t / TAPS) ** 2).clamp_min(0))
    return torch.where(t.abs() <= TAPS / 2, torch.special.i0(SHAPE * inside), 0.0)


def _undo_interpolation(frequency: Tensor) -> Tensor:
    """One over the Fourier transform of :func:`_bell` at frequencies in radians per pixel."""
    argument = torch.sqrt(SHAPE**2 - (TAPS * STEP * frequency / 2) ** 2)
    return argument / torch.sinh(argument) / TAPS
