"""Ultrasound: plane waves recorded by each element of an array, and images blurred by a point-spread function."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from deepinv.physics import UltrasoundPlaneWave
from scipy import sparse
from torch import Tensor

from operators.ct import check_angles
from operators.operator import Operator, check_real, linear, own, sizes, whole
from operators.sparse import MirroredMatrix, SparseMatrix

WINDOWS = ("rect", "hann")


class PlaneWaveUltrasound(Operator, UltrasoundPlaneWave):
    r"""Plane-wave ultrasound: the echoes that each element of an array records, from the reflectivity of each pixel.

    The model, arguments, layout and numbers of ``deepinv.physics.UltrasoundPlaneWave`` (a sum over pixels, delayed by
    the way there and back, linearly interpolated in time, and convolved with the pulse), many times faster: the delays
    are worked out once and kept as a sparse matrix. Where that would need more than ``memory_limit``, they are worked
    out again in each product. The adjoint is delay-and-sum beamforming.

    :param img_size: (Z, X) of the image: depth and lateral pixels.
    :param angles: (K,) steering angles of the plane waves in radians.
    :param element_positions: (E, 2) positions (x, z) of the elements in metres.
    :param n_samples: number of time samples N.
    :param sampling_frequency: in Hz.
    :param sound_speed: in m/s, default 1540.
    :param t0: time in seconds that is added to the delays, a number or (K,); default 0: recording starts when the wave
        passes the origin.
    :param pixel_grid: (Z, X, 2) positions (x, z) of the pixels in metres; default a regular grid.
    :param pixel_size: (dz, dx) of the regular grid in metres, default c / (2 fs) for both.
    :param pixel_origin: (z0, x0) of its first pixel in metres, default (0, such that it is centred below the array).
    :param f_number: depth divided by the width of the aperture that receives a pixel's echo; None for all elements.
    :param receive_apod_window: "rect" or "hann" weights over that aperture.
    :param transmit_apod_window: "rect" or "hann" weights over the plane wave's width; None for none.
    :param pulse: the transducer's impulse response (there and back) at the sampling frequency, of which the middle
        sample is time 0; None for an impulse.
    :param normalize: True to divide the operator by its norm.
    :param memory_limit: most bytes that the sparse matrix may take, 16 for each pixel, element and angle within the
        aperture.
    :param device: device of the operator.
    :raises ValueError: for input of another shape, or not finite; angles above 2 pi are answered by a warning.

    Images are (B, 1, Z, X); measurements (B, 1, K, E, N). Double precision is computed without the matrix.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        angles,
        element_positions: Tensor,
        n_samples: int,
        sampling_frequency: float,
        sound_speed: float = 1540.0,
        t0: float | Tensor = 0.0,
        *,
        pixel_grid: Tensor | None = None,
        pixel_size: tuple[float, float] | None = None,
        pixel_origin: tuple[float, float] | None = None,
        f_number: float | None = None,
        receive_apod_window: str = "rect",
        transmit_apod_window: str | None = None,
        pulse: Tensor | None = None,
        normalize: bool = False,
        memory_limit: float = 1e9,
        noise_model=None,
        device="cpu",
    ):
        img_size = sizes("img_size", img_size, "ZX")
        angles = own(check_angles(angles).float())
        element_positions = own(_finite("element_positions", element_positions, (None, 2)).float())
        t0 = _finite("t0", t0, None).float()
        if t0.ndim and t0.shape != angles.shape:
            raise ValueError(f"t0: expected a number or one for each of {len(angles)} angles, got {tuple(t0.shape)}")
        if pixel_grid is not None:
            pixel_grid = _finite("pixel_grid", pixel_grid, (*img_size, 2)).float()
        for name, value in (("sampling_frequency", sampling_frequency), ("sound_speed", sound_speed)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a positive number, got {value}")
        n_samples = whole("n_samples", n_samples)
        if f_number is not None and not f_number > 0:
            raise ValueError(f"f_number: expected a positive number or None, got {f_number}")
        if receive_apod_window not in WINDOWS or transmit_apod_window not in (None, *WINDOWS):
            raise ValueError(
                f"receive_apod_window, transmit_apod_window: expected one of {', '.join(WINDOWS)}, got "
                f"{receive_apod_window!r} and {transmit_apod_window!r}"
            )
        if pulse is not None:
            pulse = _finite("pulse", pulse, (None,)).float()
            if not pulse.any():
                raise ValueError("pulse: expected samples other than 0")
        self.memory_limit = memory_limit
        super().__init__(
            img_size,
            angles,
            element_positions,
            n_samples,
            float(sampling_frequency),
            float(sound_speed),
            t0,
            pixel_grid=pixel_grid,
            pixel_size=pixel_size,
            pixel_origin=pixel_origin,
            f_number=f_number,
            receive_apod_window=receive_apod_window,
            transmit_apod_window=transmit_apod_window,
            pulse=pulse,
            normalize=normalize,
            device=device,
            noise_model=noise_model,
        )

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """Echoes (B, 1, K, E, N) of images (B, 1, Z, X), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        matrix = self._tables(x).matrix
        pixels = x.flatten(1)
        if matrix is not None:
            y = matrix.forward(pixels).reshape(-1, *self.measurement_shape[1:])
        else:
            y = linear(pixels, self._echoes, self._delay_and_sum)
        if self.pulse is not None:
            y = self._convolved(y)
        return y[:, None] / self.operator_norm if self.normalize else y[:, None]

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """Delay and sum: images (B, 1, Z, X) of echoes (B, 1, K, E, N)."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.measurement_shape)
        matrix = self._tables(y).matrix
        echoes = y[:, 0] if self.pulse is None else self._convolved(y[:, 0], adjoint=True)
        if matrix is not None:
            x = matrix.adjoint(echoes.flatten(1))
        else:
            x = linear(echoes, self._delay_and_sum, self._echoes)
        x = x.reshape(-1, *self.image_shape)
        return x / self.operator_norm if self.normalize else x

    def update_parameters(self, angles=None, **kwargs) -> None:
        """Replace the angles of the plane waves, by as many where there is a ``t0`` for each."""
        super().update_parameters(**kwargs)
        if angles is not None:
            angles = own(check_angles(angles).float())
            if len(angles) != len(self.t0) and (self.t0 != self.t0[0]).any():
                raise ValueError(f"angles: expected {len(self.t0)}, one for each t0, got {len(angles)}")
            UltrasoundPlaneWave.update_parameters(self, angles=angles)
            self._forget()

    def _reload(self) -> None:
        check_angles(self.angles)
        self.receive_delays, self.receive_apodization = self._receive_delays(), self._receive_apodization()
        self._forget()

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(1, Z, X)."""
        return tuple(self.img_size)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(1, K, E, N)."""
        return (1, len(self.angles), len(self.element_positions), self.n_samples)

    @property
    def uses_matrix(self) -> bool:
        """Whether the delays are kept as a sparse matrix, within ``memory_limit``."""
        entries = 2 * len(self.angles) * (self.receive_apodization != 0).sum().item()
        return 8 * entries <= self.memory_limit and entries < 2**31

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> dict:
        if dtype != torch.float32 or not self.uses_matrix:
            return {"matrix": None}
        if not self._is_symmetric():
            return {"matrix": SparseMatrix(self._matrix(), device)}
        half = SparseMatrix(self._matrix(parts=2), device, twice=True)
        return {"matrix": MirroredMatrix(half, self._mirror, self._reverse)}

    def _mirror(self, pixels: Tensor) -> Tensor:
        """Images (..., Z X) with left and right exchanged."""
        return pixels.unflatten(-1, self.image_shape[1:]).flip(-1).flatten(-2)

    def _reverse(self, echoes: Tensor) -> Tensor:
        """Echoes (..., elements and waves and N) with the last element or wave first."""
        return echoes.unflatten(-1, (-1, self.n_samples)).flip(-2).flatten(-2)

    def _is_symmetric(self) -> bool:
        """Whether the last element and the last wave see the mirror image of what the first ones see, and so on."""
        delays, weights = (torch.stack(part) for part in zip(*self._waves()))
        delays = delays + self.t0[:, None]

        def same(table, within=0.0):
            return torch.allclose(table, self._mirror(table).flip(0), rtol=0, atol=within)

        rounding = 1e-3 / self.sampling_frequency
        return (
            len(self.element_positions) % 2 == 0
            and same(delays, rounding)
            and same(self.receive_delays, rounding)
            and same(weights)
            and same(self.receive_apodization)
        )

    def _matrix(self, parts: int = 1) -> sparse.csr_matrix:
        """The operator without the pulse, rows (K, E, N) by columns (Z, X), made for one element after the other.

        With ``parts``, the first of so many equal parts of the rows.
        """
        pixels, elements = len(self.pixel_grid), len(self.element_positions)
        echoes = [(k, e) for k in range(len(self.angles)) for e in range(elements)]
        echoes = echoes[: len(echoes) // parts]
        waves = self._waves()
        seen = (self.receive_apodization != 0).sum(1).tolist()
        most = 2 * sum(seen[e] for _, e in echoes)
        columns, values = np.empty(most, np.int32), np.empty(most, np.float32)
        pointers = [np.zeros(1, np.int64)]
        for k, e in echoes:
            sample, after, weight = (part.cpu().numpy() for part in self._delays(k, e, *waves[k]))
            pixel = np.flatnonzero(weight)
            sample, before, after = sample[pixel], (weight * (1 - after))[pixel], (weight * after)[pixel]
            rows, pairs = np.concatenate([sample, sample + 1]), np.concatenate([before, after])
            inside = (rows >= 0) & (rows < self.n_samples) & (pairs != 0)
            entries = pairs[inside], (rows[inside], np.concatenate([pixel, pixel])[inside])
            part = sparse.csr_matrix(entries, shape=(self.n_samples, pixels))
            start = pointers[-1][-1]
            columns[start : start + part.nnz], values[start : start + part.nnz] = part.indices, part.data
            pointers.append(start + part.indptr[1:].astype(np.int64))
        pointers = np.concatenate(pointers)
        entries = values[: pointers[-1]], columns[: pointers[-1]], pointers.astype(np.int32)
        return sparse.csr_matrix(entries, shape=(len(pointers) - 1, pixels), copy=False)

    def _waves(self) -> list[tuple[Tensor, Tensor]]:
        return [self._transmit(k, torch.float32) for k in range(len(self.angles))]

    def _transmit(self, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Delays in seconds and weights of the k-th plane wave on its way to the pixels, (Z X,)."""
        return self._transmit_delays(self.angles[k]).to(dtype), self._transmit_apodization(self.angles[k]).to(dtype)

    def _delays(self, k: int, e: int, delay: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sample before each pixel's echo in element e, how far after it the echo comes, and its weight."""
        position = (delay + self.receive_delays[e].to(delay) + self.t0[k].to(delay)) * self.sampling_frequency
        # beyond both ends there are two samples of silence
        position = position.clamp(-2, self.n_samples + 1)
        sample = position.floor()
        return sample.int(), position - sample, weight * self.receive_apodization[e].to(weight)

    def _echoes(self, pixels: Tensor) -> Tensor:
        """(B, Z X) to (B, K, E, N), without the matrix."""
        y = pixels.new_zeros(len(pixels), *self.measurement_shape[1:3], self.n_samples + 5)
        for k in range(len(self.angles)):
            transmit = self._transmit(k, pixels.dtype)
            for e in range(len(self.element_positions)):
                sample, after, weight = self._delays(k, e, *transmit)
                strength = weight * pixels
                late = after * strength
                sample = (sample + 2).long().expand_as(late)
                y[:, k, e].scatter_add_(1, sample, strength - late)
                y[:, k, e, 1:].scatter_add_(1, sample, late)
        return y[..., 2:-3]

    def _delay_and_sum(self, y: Tensor) -> Tensor:
        """(B, K, E, N) to (B, Z X), without the matrix."""
        padded = F.pad(y, (2, 3))
        slope = torch.diff(padded)
        x = y.new_zeros(len(y), len(self.pixel_grid))
        for k in range(len(self.angles)):
            transmit = self._transmit(k, y.dtype)
            for e in range(len(self.element_positions)):
                sample, after, weight = self._delays(k, e, *transmit)
                before = padded[:, k, e].index_select(1, sample + 2)
                x.addcmul_(before.addcmul_(slope[:, k, e].index_select(1, sample + 2), after), weight)
        return x

    def _convolved(self, y: Tensor, adjoint: bool = False) -> Tensor:
        pulse, self.pulse = self.pulse, self.pulse.to(y)
        try:
            return self._apply_pulse(y.reshape(-1, 1, self.n_samples), adjoint).reshape(y.shape)
        finally:
            self.pulse = pulse


class PSFUltrasound(Operator):
    r"""Convolution model of an ultrasound image, :math:`y = \sum_k h_k * (w_k x)`, zero beyond the image's border.

    The point-spread function may change with depth: x is shared among the functions of the two nearest depths in
    proportion, so that each scatterer is blurred by the interpolated one (Nagy & O'Leary, SIAM J Sci Comput 1998).
    With x the tissue's reflectivity and an oscillating PSF, y is a radio-frequency image (Jensen, J Acoust Soc Am
    1991); with the envelope of a PSF, y is a simple model of an envelope image.

    :param psf: (h, w), or (K, h, w) for K depths; odd sizes, the middle is the origin.
    :param shape: (H, W) of the image, depth first.
    :param depths: (K,) increasing rows of the image at which the K functions hold; default evenly from the first row to
        the last.
    :param noise_model: deepinv noise model that ``op(x)`` applies.
    :param device: device of the operator, default the PSF's.
    :raises ValueError: for a PSF of another shape, of even size or with NaN, and depths that do not fit.

    Images and measurements are (B, 1, H, W).
    """

    def __init__(self, psf: Tensor, shape: tuple[int, int], depths=None, *, noise_model=None, device=None):
        psf = _finite("psf", psf, None)
        psf = psf[None] if psf.ndim == 2 else psf
        if psf.ndim != 3 or not len(psf) or psf.shape[1] % 2 == 0 or psf.shape[2] % 2 == 0:
            raise ValueError(f"psf: expected (h, w) or (K, h, w) with odd h and w, got {tuple(psf.shape)}")
        height, width = sizes("shape", shape)
        device = psf.device if device is None else device
        super().__init__(img_size=(1, height, width), device=device, solver="CG", noise_model=noise_model)
        if depths is None:
            depths = torch.linspace(0, height - 1, len(psf))
        self.image_shape = (1, height, width)
        self.register_buffer("psf", own(psf.to(device)))
        self.register_buffer("depths", _increasing(depths, len(psf)).to(device))

    def A(self, x: Tensor, **kwargs) -> Tensor:
        """The blurred image (B, 1, H, W), without noise."""
        self.update_parameters(**kwargs)
        check_real(x, "x", self.image_shape)
        t = self._tables(x)
        spectrum = (torch.fft.rfft2(t.shares * x, s=t.size) * t.transfer).sum(1, keepdim=True)
        return self._cropped(torch.fft.irfft2(spectrum, s=t.size))

    def A_adjoint(self, y: Tensor, **kwargs) -> Tensor:
        """The adjoint: correlation with the PSF, (B, 1, H, W)."""
        self.update_parameters(**kwargs)
        check_real(y, "y", self.image_shape)
        t = self._tables(y)
        spectrum = torch.fft.rfft2(y, s=t.size) * t.transfer.conj()
        return (t.shares * self._cropped(torch.fft.irfft2(spectrum, s=t.size))).sum(1, keepdim=True)

    def update_parameters(self, psf: Tensor | None = None, depths: Tensor | None = None, **kwargs) -> None:
        """Replace the point-spread functions by others of the same size, and the depths that they hold at."""
        if psf is not None:
            psf = _finite("psf", psf, None)
            psf = _finite("psf", psf[None] if psf.ndim == 2 else psf, tuple(self.psf.shape)).to(self.psf.device)
        if depths is not None:
            self.depths = _increasing(depths, len(self.psf)).to(self.depths.device)
        if psf is not None:
            self.psf = own(psf)
        if psf is not None or depths is not None:
            self._forget()
        super().update_parameters(**kwargs)

    def _reload(self) -> None:
        _finite("psf", self.psf, (len(self.depths), None, None))
        self._forget()

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """(1, H, W)."""
        return self.image_shape

    def _cropped(self, x: Tensor) -> Tensor:
        return x[..., : self.image_shape[1], : self.image_shape[2]]

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> dict:
        _, height, width = self.image_shape
        # no wrapping around: the border is at least half the PSF
        size = (height + self.psf.shape[1] // 2, width + self.psf.shape[2] // 2)
        size = tuple(max(n, m) for n, m in zip(size, self.psf.shape[1:]))
        centred = F.pad(self.psf, (0, size[1] - self.psf.shape[2], 0, size[0] - self.psf.shape[1]))
        centred = centred.roll((-(self.psf.shape[1] // 2), -(self.psf.shape[2] // 2)), (1, 2))
        rows = torch.arange(height, dtype=torch.float64)
        depths = self.depths.double().cpu()
        # hat functions, constant beyond the first and the last depth
        identity = np.eye(len(depths))
        shares = np.stack([np.interp(rows.numpy(), depths.numpy(), hat) for hat in identity])
        return {
            "size": size,
            "transfer": torch.fft.rfft2(centred.to(device, dtype)),
            "shares": torch.from_numpy(shares)[:, :, None].to(device, dtype),
        }


def _increasing(depths, count: int) -> Tensor:
    depths = _finite("depths", depths, (count,))
    if (depths.diff() <= 0).any():
        raise ValueError(f"depths: expected increasing rows, got {depths.tolist()}")
    return own(depths)


def _finite(name: str, value, shape: tuple[int | None, ...] | None) -> Tensor:
    """A finite real tensor of a shape (None where any size will do), or a ValueError."""
    value = torch.as_tensor(value)
    if value.is_complex() or not torch.isfinite(value).all():
        raise ValueError(f"{name}: expected finite real values, got NaN, infinity or complex ones")
    value = value if value.is_floating_point() else value.float()
    fits = shape is None or (value.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, value.shape)))
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(value.shape)}")
    return value
