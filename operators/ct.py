"""Computed tomography with parallel rays, by the Fourier slice theorem."""

from __future__ import annotations

import math
import warnings

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from operators.mri import check_real
from operators.nufft import NUFFT

FILTERS = ("ram-lak", "shepp-logan", "cosine", "hamming", "hann")


class ParallelBeamCT(LinearPhysics):
    r"""Parallel-beam CT: line integrals of the image, averaged over detector bins.

    View v holds :math:`y_v(s) = \int x(s\cos\theta_v - t\sin\theta_v,\; s\sin\theta_v + t\cos\theta_v)\,dt`. The
    coordinates are in pixels, with their origin in the middle of the image, the first to the right, the second upwards
    (ASTRA's convention). Each view's spectrum is the image's along one line through the origin (Fourier slice theorem),
    where a non-uniform FFT finds it; detector bins are integrated there by their exact transfer function.

    :param shape: (H, W) of the image.
    :param angles: angle theta of each view in radians, (V,).
    :param detectors: number of bins D; default as many as cover the image from every side.
    :param spacing: width of a bin in pixels.
    :param offset: position of the detector's middle, in pixels.
    :param noise_model: deepinv noise model that ``op(x)`` applies.
    :param eps: relative error of the transforms.
    :param device: device of the operator, default the angles'.

    Images are (B, 1, H, W); measurements (B, 1, V, D), in the units of x times pixels.
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
        arguments = {} if noise_model is None else {"noise_model": noise_model}
        super().__init__(device=device, solver="CG", **arguments)
        height, width = (int(n) for n in shape)
        if not (math.isfinite(spacing) and spacing > 0 and math.isfinite(offset)):
            raise ValueError(f"spacing, offset: expected a positive and a finite number, got {spacing} and {offset}")
        if detectors is None:
            detectors = math.ceil((math.hypot(height, width) + 2 * abs(offset)) / spacing)
        if detectors < 1:
            raise ValueError(f"detectors: expected at least 1, got {detectors}")
        self.image_shape = self.img_size = (1, height, width)
        self.detectors, self.spacing, self.offset, self.eps = int(detectors), float(spacing), float(offset), eps
        self.register_buffer("angles", None)
        self.register_buffer("_transfer", None, persistent=False)
        self._set(angles.to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Projections (B, 1, V, D) of images (B, 1, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        lines = self._nufft.forward(torch.complex(x, torch.zeros_like(x)))
        lines = lines.unflatten(-1, self._transfer.shape) * self._transfer
        fine = torch.fft.irfft(lines, n=self._period)  # frequencies that are missing at the end count as 0
        return fine[..., : self.detectors * self._finer : self._finer]

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Back-projection (B, 1, H, W) of projections (B, 1, V, D), the exact adjoint."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape)
        fine = y.new_zeros(*y.shape[:-1], self._period)
        fine[..., : self.detectors * self._finer : self._finer] = y
        lines = torch.fft.rfft(fine)[..., : self._transfer.shape[-1]] * self._transfer.conj() * self._doubled
        return self._nufft.adjoint(lines.flatten(-2)).real.contiguous()

    def fbp(self, y: Tensor, filter: str = "ram-lak") -> Tensor:
        """Filtered back-projection (Kak & Slaney, *Principles of computerized tomographic imaging*, 1988, chapter 3).

        :param y: projections (B, 1, V, D).
        :param filter: "ram-lak" (the ramp), or the ramp with the window "shepp-logan", "cosine", "hamming" or "hann".
        :return: images (B, 1, H, W).
        """
        check_real(y, "y", self.measurement_shape)
        weights = view_weights(self.angles).to(y)[:, None]
        return self.A_adjoint(ramp_filter(y, self.spacing, filter) * weights) * self.spacing

    def A_dagger(self, y: Tensor, **kwargs) -> Tensor:
        """Filtered back-projection, which deepinv's own CT takes for the pseudo-inverse, too."""
        return self.fbp(y)

    def update_parameters(self, angles: Tensor | None = None, **kwargs) -> None:
        """Replace the angles."""
        if angles is not None:
            self._set(check_angles(angles).to(self.angles.device))
        super().update_parameters(**kwargs)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(1, V, D)."""
        return (1, len(self.angles), self.detectors)

    def _set(self, angles: Tensor) -> None:
        _, height, width = self.image_shape
        # bins wider than a pixel: more samples than bins, so that what is above the bins' Nyquist frequency is there
        self._finer = math.ceil(self.spacing)
        step = self.spacing / self._finer
        # periodic copies of the projection must not reach the detector
        reach = math.hypot(height, width) / 2 + self.detectors * self.spacing / 2 + abs(self.offset)
        self._period = _fast_even(max(math.ceil(reach / step) + 8, self.detectors * self._finer))
        frequency = 2 * math.pi * torch.arange(self._period // 2 + 1, dtype=torch.float64) / (self._period * step)
        frequency = frequency[frequency <= math.pi + 1e-9]
        theta = angles.double().cpu()[:, None]
        across, down = frequency * torch.cos(theta), -frequency * torch.sin(theta)
        self._nufft = NUFFT(torch.stack([down, across], -1).reshape(-1, 2), (height, width), self.eps)

        # from the transform's origin, a pixel, to the middle of the image; and from there to the first bin
        shift = down * (height // 2 - (height - 1) / 2) + across * (width // 2 - (width - 1) / 2)
        first_bin = self.offset - (self.detectors - 1) / 2 * self.spacing
        bins = torch.special.sinc(frequency * self.spacing / (2 * math.pi))
        transfer = bins * torch.exp(1j * (frequency * first_bin - shift)) / step
        self._transfer = transfer.to(torch.complex64).to(angles.device)
        doubled = torch.full((len(frequency),), 2.0 / self._period)
        doubled[0] = 1 / self._period
        if len(frequency) == self._period // 2 + 1:
            doubled[-1] = 1 / self._period
        self._doubled = doubled.to(angles.device)
        self.angles = angles


def ramp_filter(y: Tensor, spacing: float, filter: str = "ram-lak") -> Tensor:
    """Ramp-filter projections (..., D) along the detector, band-limited at the bins' Nyquist frequency.

    The ramp is transformed from its samples in space, without which its mean, and so the image's, would be wrong.
    """
    if filter not in FILTERS:
        raise ValueError(f"filter: expected one of {', '.join(FILTERS)}, got {filter!r}")
    count = y.shape[-1]
    period = _fast_even(2 * count)
    n = torch.arange(period, device=y.device)
    n = torch.minimum(n, period - n).to(y.dtype)
    kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp_min(1)) ** 2, 0.0)
    kernel[0] = 0.25
    ramp = torch.fft.rfft(kernel).real / spacing
    w = torch.linspace(0, 1, len(ramp), device=y.device, dtype=y.dtype)  # in units of the Nyquist frequency
    window = {
        "ram-lak": torch.ones_like(w),
        "shepp-logan": torch.special.sinc(w / 2),
        "cosine": torch.cos(math.pi * w / 2),
        "hamming": 0.54 + 0.46 * torch.cos(math.pi * w),
        "hann": 0.5 + 0.5 * torch.cos(math.pi * w),
    }[filter]
    return torch.fft.irfft(torch.fft.rfft(y, n=period) * (ramp * window), n=period)[..., :count]


def view_weights(angles: Tensor) -> Tensor:
    """The angle in radians that each view stands for: half the gaps to its neighbours, opposite views being equal.

    A gap of more than three times the median, a missing wedge, belongs to no view.
    """
    turned = torch.remainder(angles.double().cpu(), math.pi)
    order = torch.argsort(turned)
    ordered = turned[order]
    gaps = torch.diff(ordered, append=ordered[:1] + math.pi)
    if len(angles) > 2:
        usual = gaps[gaps > 1e-5].median()  # opposite views are none
        gaps = torch.where(gaps > 3 * usual, usual, gaps)
    weights = torch.empty_like(gaps)
    weights[order] = (gaps + gaps.roll(1)) / 2
    return weights.to(angles.device)


def hounsfield(attenuation: Tensor, water: float) -> Tensor:
    """Hounsfield units of attenuation coefficients; ``water`` is water's, in the same units."""
    return 1000 * (attenuation - water) / water


def attenuation(hounsfield_units: Tensor, water: float) -> Tensor:
    """Attenuation coefficients of Hounsfield units, at least 0; ``water`` is water's coefficient."""
    return (water * (1 + hounsfield_units / 1000)).clamp_min(0)


def check_angles(angles) -> Tensor:
    """Angles as a floating-point tensor (V,), or a ValueError; a warning where they look like degrees."""
    angles = torch.as_tensor(angles)
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


def _fast_even(n: int) -> int:
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
