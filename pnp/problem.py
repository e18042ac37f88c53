"""The problem as the algorithms see it: operator of norm 1, image range [0, 1], the two steps they are made of."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import deepinv
import torch
from deepinv.models import TVDenoiser
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from denoisers.adapt import Adapted, accepts, adapt
from operators.operator import whole
from pnp import noise as noise_levels
from pnp.data_step import closed_form, conjugate_gradients
from pnp.measured import Measured, innermost, parts
from pnp.spectrum import lanczos

# below this noise level, in units of the image's range, the data step is as good as exact interpolation
LEAST_NOISE = 5e-4
SMOOTHNESS = 0.05  # weight of the squared gradient where the smoothest image is asked for


class DivergenceError(RuntimeError):
    """The iteration left all bounds.

    :param message: what happened and what may help.
    :param history: the history up to there, as in :class:`pnp.solver.Solution`.
    """

    def __init__(self, message: str, history: dict[str, list[float]] | None = None):
        super().__init__(message)
        self.history = history or {}


class Problem:
    """A linear inverse problem, normalised.

    With the largest eigenvalue L of A'A and the image's range s, the unknown is u = x / s, the operator A / sqrt(L),
    and the noise has standard deviation :attr:`noise` = sigma / (sqrt(L) s). Every item of the batch has its own s, L
    and noise, so that items do not influence each other. In exact arithmetic the result does not depend on units.

    :param op: deepinv ``LinearPhysics``.
    :param y: its measurements.
    :param denoiser: callable ``denoiser(x, sigma)``, or None for algorithms without one.
    :param noise: see :func:`pnp.solve`.
    :param seed: seed of all that is random, also in the denoiser where it has a generator.
    :raises TypeError, ValueError: for input that does not fit, see also :class:`pnp.measured.Measured`.
    """

    def __init__(self, op: LinearPhysics, y, denoiser: Callable | None, noise=None, seed: int | None = None):
        if not isinstance(op, LinearPhysics):
            raise TypeError(f"op: expected a deepinv LinearPhysics, got {type(op).__name__}")
        if denoiser is not None and not callable(denoiser):
            raise TypeError(f"denoiser: expected a callable denoiser(x, sigma), got {type(denoiser).__name__}")
        if not isinstance(y, (Tensor, TensorList)):
            listed = " (of stacked operators, a deepinv TensorList)" if isinstance(y, (list, tuple)) else ""
            raise TypeError(f"y: expected a real floating-point tensor{listed}, got {type(y).__name__}")
        if seed is not None:
            seed = whole("seed", seed, least=0)
        told = noise_levels.told(op, y, noise)
        uneven = isinstance(told, TensorList) or (isinstance(told, Tensor) and told[0].numel() > 1)
        self.measured = Measured(op, y, told if uneven else None)
        if told is None and (told := noise_levels.estimate_parts(op, self.measured.y)) is not None:
            self.measured = Measured(op, y, told)
        if (b := self.measured.adjoint_y).ndim not in (4, 5):
            shape = tuple(b.shape)
            raise ValueError(f"op: expected one of images (B, C, H, W) or volumes (B, C, D, H, W), got {shape}")
        self.generator = torch.Generator(self.measured.adjoint_y.device).manual_seed(seed or 0)
        self.calls = self.measured.calls
        self.calls["denoiser"] = 0
        self.seconds = {"data": 0.0, "denoiser": 0.0}
        # whether calls of the denoiser may differ: slices of volumes along another axis each, phase of the last image
        self.varying = True
        with torch.no_grad():  # where gradients are asked for, scale, noise level and start count as given
            self._normalise(told, seed)
        if denoiser is not None:
            for part in denoiser.modules() if seed is not None and isinstance(denoiser, torch.nn.Module) else ():
                if isinstance(getattr(part, "generator", None), torch.Generator):
                    part.generator.manual_seed(seed)
            self._denoiser = self._adapted(denoiser)

    def _normalise(self, told: float | Tensor | TensorList | None, seed: int | None) -> None:
        b, uneven = self.measured.adjoint_y, self.measured.weight is not None
        values, self.ritz_weights = lanczos(self.measured.normal, b, seed=seed or 0)
        self.norm = _per_item(values[:, -1], b)
        if not (self.norm > 0).all():
            raise ValueError("op: expected an operator other than 0")
        self.ritz_values = values / values[:, -1:]
        self._inverse = None if uneven else closed_form(self.measured.op, b)
        # square of the frequency, in radians per pixel, of the coarsest structure that A leaves open
        smallest = lanczos(self._smoothing, b, seed=seed or 0)[0][:, 0]
        self.unseen = _per_item(smallest.clamp_min(1e-6) / SMOOTHNESS, b)

        self.scale = torch.ones_like(self.norm)
        first = torch.where(self._beyond_view(), 0.0, self.smoothest())
        self.scale, self.offset, self.phase = _image_range(first)
        self.first = first / self.scale

        self.measured_noise = told
        if not uneven:  # a number, or one for each item
            noise = self._estimated_noise() if told is None else torch.as_tensor(told, device=b.device)
            self.measured_noise = noise.item() if noise.numel() == 1 else _per_item(noise, parts(self.measured.y)[0])
        whitened = torch.ones_like(self.norm) if uneven else _per_item(noise.to(b), b)
        self.noise = (whitened / self.norm.sqrt() / self.scale).clamp_min(LEAST_NOISE)

    @property
    def adjoint_y(self) -> Tensor:
        """A'y of the normalised problem."""
        return self.measured.adjoint_y / (self.norm * self.scale)

    def normal(self, u: Tensor) -> Tensor:
        """A'A u of the normalised problem."""
        return self.measured.normal(u) / self.norm

    def gradient(self, u: Tensor) -> Tensor:
        """Gradient of |A u - y|^2 / 2."""
        began = time.perf_counter()
        gradient = self.normal(u) - self.adjoint_y
        self.seconds["data"] += time.perf_counter() - began
        return gradient

    def data_step(self, z: Tensor, rho: Tensor, iterations: int = 15, tolerance: float = 1e-3) -> Tensor:
        """argmin |A u - y|^2 + rho |u - z|^2: in closed form, or by conjugate gradients started at z."""
        began = time.perf_counter()
        b = self.adjoint_y
        if self._inverse is not None:
            u = self._inverse((b + rho * z) * self.norm, rho * self.norm)
        else:
            gradient = b - self.normal(z)
            u = z + conjugate_gradients(self.normal, gradient, rho, iterations, tolerance)
        self.seconds["data"] += time.perf_counter() - began
        return u

    def left_open(self, rho: Tensor) -> Tensor:
        """A draw of what the data step leaves open, of mean 0 and covariance noise^2 (A'A + rho)^-1."""
        e = self.measured.adjoint_noise(self.generator) / self.norm.sqrt() + rho.sqrt() * self.white()
        if self._inverse is not None:
            return self.noise * self._inverse(e * self.norm, rho * self.norm)
        return self.noise * conjugate_gradients(self.normal, e, rho)

    def denoise(self, u: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser's estimate of the image in u, which has noise of standard deviation sigma (B, 1, ...)."""
        began = time.perf_counter()
        if u.ndim == 5:  # slices along another axis each time: as good as the mean over all, in a third of the time
            axes = self._slicing(u)
            self._denoiser.axes = (axes[self.calls["denoiser"] % len(axes)],) if self.varying else axes
        self.calls["denoiser"] += 1
        d = self._denoiser(u, sigma)
        if not torch.isfinite(d).all() and torch.isfinite(u).all():
            raise DivergenceError(
                f"the denoiser returned values that are not finite, for an image within [{u.min():.3g}, {u.max():.3g}] "
                f"times the range and sigma {sigma.max():.3g}."
            )
        if self.varying and self._denoiser.phase is not None:
            self._denoiser.phase = _smooth_phase(d.detach())
        self.seconds["denoiser"] += time.perf_counter() - began
        return d

    @staticmethod
    def _slicing(u: Tensor) -> tuple[int, ...]:
        """The axes along which volumes are cut into slices that are not too thin."""
        return tuple(k for k in range(3) if min(n for j, n in enumerate(u.shape[2:]) if j != k) >= 16) or (0,)

    def white(self) -> Tensor:
        """A fresh image of white noise with standard deviation 1."""
        b = self.measured.adjoint_y
        return torch.randn(b.shape, generator=self.generator, device=b.device, dtype=b.dtype)

    def repeated(self, count: int) -> Problem:
        """The same problem ``count`` times, as a batch; of a single item."""
        many = copy.copy(self)
        many.measured = self.measured.repeated(count)
        many._denoiser = copy.copy(self._denoiser)
        for owner, names in (
            (many, ("norm", "scale", "offset", "noise", "first", "unseen", "ritz_values", "ritz_weights")),
            (many._denoiser, ("offset", "phase")),
        ):
            for name in names:
                value = getattr(owner, name)
                if isinstance(value, Tensor):
                    setattr(owner, name, value.repeat_interleave(count, 0))
        return many

    def potential(self, u: Tensor, sigma: Tensor) -> Tensor:
        """The function g whose gradient is u - D(u), (B, 1, ...)."""
        inner = self._denoiser.denoiser
        while isinstance(inner, Adapted):
            inner = inner.denoiser
        if not hasattr(inner, "potential"):
            raise TypeError(
                'denoiser: expected one with a potential, such as denoisers.load("gradient-step"), got '
                f"{type(inner).__name__}"
            )
        began = time.perf_counter()
        self._denoiser.axes = self._slicing(u)
        value = self._denoiser.potential(u, sigma)
        self.seconds["denoiser"] += time.perf_counter() - began
        return _per_item(value, u)

    def smoothest(self, iterations: int = 60, tolerance: float = 1e-4) -> Tensor:
        """argmin |A u - y|^2 + SMOOTHNESS |grad u|^2, which fills what A leaves out from around it."""
        return conjugate_gradients(self._smoothing, self.adjoint_y, torch.zeros_like(self.norm), iterations, tolerance)

    def _smoothing(self, u: Tensor) -> Tensor:
        return self.normal(u) + SMOOTHNESS * TVDenoiser.nabla_adjoint(TVDenoiser.nabla(u))

    def data_term(self, u: Tensor) -> Tensor:
        """|A u - y|^2 / 2, (B, 1, ...)."""
        began = time.perf_counter()
        value = self.measured.misfit(u * self.scale) / (2 * self.norm * self.scale**2)
        self.seconds["data"] += time.perf_counter() - began
        return value

    def misfit(self, u: Tensor) -> Tensor:
        """Root mean square of A u - y in units of the noise, (B, 1, ...): about 1 where u explains the data."""
        began = time.perf_counter()
        variance = self.measured.misfit(u * self.scale) / self.measured.count
        self.seconds["data"] += time.perf_counter() - began
        return variance.sqrt() / (self.noise * self.norm.sqrt() * self.scale)

    def _beyond_view(self) -> Tensor:
        """Where A sees next to nothing and the image is 0: beyond the circle of a scanner, or of all coils.

        Not where A is local, as a mask of pixels or a blur that is cut off at the border: there, the image goes on.
        """
        seen = self.normal(torch.ones_like(self.measured.adjoint_y))
        low, high = (_per_item(extreme(seen.flatten(1), 1), seen) for extreme in (torch.amin, torch.amax))
        beyond = (seen < 0.1 * high) & (low > -0.05 * high)
        if beyond.any() and noise_levels.gives_images(self.measured.op, self.measured.y, seen):
            return torch.zeros_like(beyond)
        return beyond

    def _estimated_noise(self) -> Tensor:
        """Standard deviation of the noise in the measurements of each item, (B,).

        What the measurements themselves tell is too high where they hold more than noise, what no image explains is too
        high where the operator is not exact: of coils, which measure everything several times, the lower is taken.
        """
        op = innermost(self.measured.op)
        found = noise_levels.estimate(self.measured.op, self.measured.y, self.measured.adjoint_y)
        direct = torch.full_like(self.norm, torch.nan).flatten() if found is None else found
        redundant = isinstance(op, deepinv.physics.MultiCoilMRI) or getattr(op, "maps", None) is not None
        if not redundant and not direct.isnan().any():
            return direct
        residual = self._noise_from_residual()
        noise = torch.fmin(direct, residual) if redundant else torch.where(direct.isnan(), residual, direct)
        if noise.isnan().any():
            warnings.warn(
                "noise: cannot be estimated from these measurements, and 1 % of the image's range is assumed; give it "
                "with noise=...",
                stacklevel=5,
            )
        return torch.where(noise.isnan(), (0.01 * self.norm.sqrt() * self.scale).flatten(), noise)

    def _noise_from_residual(self, rho: float = 3e-3) -> Tensor:
        """What no image explains, |A u_rho - y|^2 at a small rho, and the degrees of freedom that it has.

        NaN where it has hardly any, a fiftieth of the measurements.
        """
        slope = self.adjoint_y - self.normal(self.first) - rho * self.first
        u = self.first + conjugate_gradients(self.normal, slope, torch.full_like(self.norm, rho), 15)
        squared = self.measured.misfit(u * self.scale).flatten()
        left = (self.ritz_weights * (rho / (self.ritz_values.clamp_min(0) + rho)) ** 2).sum(1)
        count = self.measured.count.flatten()
        freedom = count - self.first[0].numel() * (1 - left)
        return torch.where(freedom > 0.02 * count, (squared / freedom.clamp_min(1)).sqrt(), torch.nan)

    def _adapted(self, denoiser: Callable) -> Callable:
        """The denoiser, on images in units of their range.

        A network for complex images is given them as they are; one for grey images sees real and imaginary part after
        the smooth phase has been taken off, so that the real part looks like a magnitude.
        """
        channels = self.first.shape[1]
        dtype = next((p.dtype for p in getattr(denoiser, "parameters", list)()), self.first.dtype)
        single = channels > 1 and not accepts(denoiser, channels, self.first.device, dtype, self.first.shape[-2:])
        phase = self.phase if single else None
        return adapt(denoiser, offset=self.offset / self.scale, phase=phase, channels=single)


def _image_range(image: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scale, offset (B, 1, ...) and, of complex images, smooth phase (B, ...), from a first image."""
    if image.shape[1] == 2:
        scale = _percentile(image.square().sum(1, keepdim=True).sqrt(), 0.999)
        offset, phase = torch.zeros_like(scale), _smooth_phase(image)
    else:
        low, high = _percentile(image, 0.001), _percentile(image, 0.999)
        # a low positive offset is left, since what a first image shows of it is not reliable (limited angles)
        offset = torch.where((low < -0.1 * high.abs()) | (low > 0.5 * high), low, 0.0)
        scale, phase = high - offset, None
    return torch.where(scale > 0, scale, 1.0), offset, phase  # an item without signal stays 0


def _smooth_phase(image: Tensor, width: float = 0.04, share: float = 0.3) -> Tensor:
    """Unit complex numbers (B, ...) with the phase of complex images (B, 2, ...), smooth also where there is no signal.

    It is that of the image smoothed by a Gaussian of ``width``, its standard deviation in cycles per pixel, and a
    ``share`` of one of half the width, and so on: beside an object, what is wider outweighs the noise.
    """
    value = torch.view_as_complex(image.movedim(1, -1).contiguous())
    axes = tuple(range(1, value.ndim))
    squares = [torch.fft.fftfreq(value.shape[axis], device=value.device) ** 2 for axis in axes]
    square = sum(torch.meshgrid(*squares, indexing="ij"))
    window = sum(share**k * torch.exp(-square / (2 * (width / 2**k) ** 2)) for k in range(5))
    smooth = torch.fft.ifftn(torch.fft.fftn(value, dim=axes) * window.to(image.dtype), dim=axes)
    return torch.polar(torch.ones_like(smooth.real), smooth.angle())  # 1 where the image is 0


def _percentile(image: Tensor, q: float) -> Tensor:
    """Quantile of each item of a batch, (B, 1, ...); of every n-th value where there are more than a million."""
    values = image.flatten(1)
    values = values[:, :: max(values.shape[1] // 1_000_000, 1)]
    return _per_item(torch.quantile(values.float(), q, dim=1).to(image.dtype), image)


def _per_item(values: Tensor, image: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (image.ndim - 1))
