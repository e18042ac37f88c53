"""Computed tomography with parallel rays; Hounsfield units."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from operators.fbp import ramp_filter, view_weights
from operators.operator import Operator, check_real, own, sizes, whole
from operators.radon import Radon


class Tomograph(Operator):
    """What CT operators share: views at ``angles``, each of ``detectors`` bins, and ``fbp``."""

    def A_dagger(self, y: Tensor, **kwargs) -> Tensor:
        """Filtered back-projection, which deepinv's own CT takes for the pseudo-inverse, too."""
        return self.fbp(y)

    def update_parameters(self, angles: Tensor | None = None, **kwargs) -> None:
        """Replace the angles."""
        if angles is not None:
            self._set(check_angles(angles).to(self.angles.device))
        super().update_parameters(**kwargs)

    def _reload(self) -> None:
        self._set(check_angles(self.angles))

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(1, V, D)."""
        return (1, len(self.angles), self.detectors)


class ParallelBeamCT(Tomograph):
    r"""Parallel-beam CT: line integrals of the image, averaged over detector bins.

    View v holds :math:`y_v(s) = \int x(s\cos\theta_v - t\sin\theta_v,\; s\sin\theta_v + t\cos\theta_v)\,dt`. The
    coordinates are in pixels, with their origin in the middle of the image, the first to the right, the second upwards
    (ASTRA's convention). Detector bins are integrated by their exact transfer function, see
    :class:`operators.radon.Radon`.

    :param shape: (H, W) of the image.
    :param angles: angle theta of each view in radians, (V,).
    :param detectors: number of bins D; default as many as cover the image from every side.
    :param spacing: width of a bin in pixels.
    :param offset: position of the detector's middle, in pixels.
    :param noise_model: deepinv noise model that ``op(x)`` applies, for instance :class:`operators.LowDose`.
    :param eps: relative error of the transforms.
    :param device: device of the operator, default the angles'.
    :raises ValueError: for angles that are empty, not finite or not one-dimensional, and impossible detectors. Angles
        above 2 pi are answered by a warning, as they may be degrees.

    Images are (B, 1, H, W); measurements (B, 1, V, D), in the units of x times pixels. Volumes are batches of slices.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        angles: Tensor,
        detectors: int | None = None,
        spacing: float = 1.0,
        offset: float = 0.0,
        *,
        noise_model=None,
        eps: float = 1e-4,
        device=None,
    ):
        angles = check_angles(angles)
        device = angles.device if device is None else device
        height, width = sizes("shape", shape)
        super().__init__(img_size=(1, height, width), device=device, solver="CG", noise_model=noise_model)
        if not (math.isfinite(spacing) and spacing > 0 and math.isfinite(offset)):
            raise ValueError(f"spacing, offset: expected a positive and a finite number, got {spacing} and {offset}")
        if detectors is None:
            detectors = math.ceil((math.hypot(height, width) + 2 * abs(offset)) / spacing)
        self.image_shape = (1, height, width)
        self.detectors = whole("detectors", detectors)
        self.spacing, self.offset, self.eps = float(spacing), float(offset), eps
        self.register_buffer("angles", None)
        self._set(angles.to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Projections (B, 1, V, D) of images (B, 1, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        return self._radon.forward(x, self._tables(x).radon)

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Back-projection (B, 1, H, W) of projections (B, 1, V, D), the exact adjoint."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape)
        return self._radon.adjoint(y, self._tables(y).radon)

    def fbp(self, y: Tensor, filter: str = "ram-lak") -> Tensor:
        """Filtered back-projection (Kak & Slaney, *Principles of computerized tomographic imaging*, 1988, chapter 3).

        :param y: projections (B, 1, V, D).
        :param filter: "ram-lak" (the ramp), or the ramp with the window "shepp-logan", "cosine", "hamming" or "hann".
        :return: images (B, 1, H, W).
        """
        check_real(y, "y", self.measurement_shape)
        weights = view_weights(self.angles, math.pi).to(y)[:, None]
        return self.A_adjoint(ramp_filter(y, self.spacing, filter) * weights) * self.spacing

    def _set(self, angles: Tensor) -> None:
        def bins(frequency):
            return torch.special.sinc(frequency * self.spacing / (2 * math.pi))

        self._radon = Radon(self.image_shape[1:], angles, self.detectors, self.spacing, self.offset, bins, self.eps)
        self.angles = own(angles)
        self._forget()

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> dict:
        return {"radon": self._radon.tables(dtype, device)}


def hounsfield(attenuation: Tensor, water: float) -> Tensor:
    """Hounsfield units of attenuation coefficients; ``water`` is water's, in the same units."""
    if not water > 0:
        raise ValueError(f"water: expected a positive attenuation coefficient, got {water}")
    return 1000 * (attenuation - water) / water


def attenuation(hounsfield_units: Tensor, water: float) -> Tensor:
    """Attenuation coefficients of Hounsfield units, at least 0; ``water`` is water's coefficient."""
    return (water * (1 + hounsfield_units / 1000)).clamp_min(0)


def check_angles(angles) -> Tensor:
    """Angles as a floating-point tensor (V,), or a ValueError; a warning where they look like degrees."""
    try:
        angles = torch.as_tensor(angles)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"angles: expected radians, got {angles!r}") from None
    if angles.is_complex() or angles.requires_grad:
        kind = f"{angles.dtype}{', with gradient' if angles.requires_grad else ''}"
        raise ValueError(f"angles: expected real radians, without gradient, got {kind}")
    if angles.ndim != 1 or len(angles) == 0:
        raise ValueError(f"angles: expected at least one angle, shape (V,), got shape {tuple(angles.shape)}")
    angles = angles if angles.is_floating_point() else angles.double()
    if not torch.isfinite(angles).all():
        raise ValueError("angles: expected finite values, got NaN or infinity")
    if angles.abs().max() > 2 * math.pi + 1e-6:
        warnings.warn(
            f"angles: expected radians, got values up to {angles.abs().max().item():.4g}; are they degrees?",
            stacklevel=3,
        )
    return angles
