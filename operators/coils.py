"""Coil sensitivities: estimated from raw data (ESPIRiT), simulated (birdcage), and what raw data needs before."""

from __future__ import annotations

import math

import torch
from scipy import special
from torch import Tensor

from operators.operator import whole


def espirit(
    kspace: Tensor,
    calibration: int | tuple[int, int] = 24,
    kernel: int = 6,
    threshold: float = 0.02,
    crop: float = 0.95,
) -> Tensor:
    """Coil sensitivities from the calibration region of k-space.

    ESPIRiT: Uecker et al., *ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI*, Magn Reson Med 2014.
    The maps have unit norm over the coils; their phase is taken relative to the coils' first principal component, which
    sees all that they see. They are 0 where the eigenvalue stays below ``crop``, which is where there is no signal.

    :param kspace: complex k-space (N, H, W), fully sampled around (H // 2, W // 2).
    :param calibration: side of the square of k-space that is used, or its (rows, columns).
    :param kernel: side of the kernels in k-space samples.
    :param threshold: singular values below this share of the largest belong to the null space.
    :param crop: smallest eigenvalue, of at most 1, at which a pixel has a sensitivity.
    :return: complex maps (N, H, W).
    :raises ValueError: where the calibration region is smaller than the kernel, or not fully sampled.
    """
    kspace = check_kspace(kspace)
    coils, height, width = kspace.shape
    rows, columns = calibration if isinstance(calibration, tuple) else (calibration, calibration)
    rows, columns, kernel = whole("calibration", rows), whole("calibration", columns), whole("kernel", kernel)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected a share from 0 to below 1, got {threshold}")
    region = central(kspace, min(rows, height), min(columns, width))
    if min(region.shape[1:]) < kernel:
        raise ValueError(f"calibration: expected at least the kernel's {kernel} samples, got {tuple(region.shape[1:])}")
    if (region.abs().sum(0) == 0).float().mean() > 0.05:
        raise ValueError(f"kspace: the central {rows} x {columns} samples are not fully sampled")

    # the row space of the calibration matrix: all windows of all coils, one a row
    windows = region.unfold(1, kernel, 1).unfold(2, kernel, 1)
    matrix = windows.permute(1, 2, 0, 3, 4).reshape(-1, coils * kernel**2)
    _, values, basis = torch.linalg.svd(matrix, full_matrices=False)
    kernels = basis[values > threshold * values[0]].reshape(-1, coils, kernel, kernel)

    # pixel by pixel, the N x N matrix sum_k conj(G_k) G_k^T of the kernels' images: through their correlations, which
    # are short, so that only N^2 images are transformed, however many kernels there are
    size = 2 * kernel
    spectra = torch.fft.fft2(kernels, s=(size, size))
    correlations = torch.fft.ifft2(torch.einsum("kiuv,kjuv->ijuv", spectra, spectra.conj()))
    correlations = torch.fft.fftshift(correlations, dim=(-2, -1))  # zero lag at (kernel, kernel)
    padded = torch.zeros(coils, coils, height, width, dtype=kspace.dtype, device=kspace.device)
    take_y, put_y = _overlap(size, kernel, height)
    take_x, put_x = _overlap(size, kernel, width)
    padded[:, :, put_y, put_x] = correlations[:, :, take_y, take_x]
    images = torch.fft.ifft2(torch.fft.ifftshift(padded, dim=(-2, -1)), norm="forward")
    images = torch.fft.fftshift(images, dim=(-2, -1)) / kernel**2

    eigenvalues, eigenvectors = torch.linalg.eigh(images.permute(2, 3, 0, 1))
    maps = eigenvectors[..., -1].permute(2, 0, 1)
    seen = torch.einsum("n,nyx->yx", _strongest(region, 1)[:, 0].conj(), maps)
    maps = maps * torch.exp(-1j * seen.angle())
    return (maps * (eigenvalues[..., -1] > crop)).to(kspace.dtype)


def birdcage(shape: tuple[int, int], coils: int, radius: float = 1.5) -> Tensor:
    """Simulated sensitivities (N, H, W) of coils on a ring, their sum of squares 1 in every pixel.

    :param shape: (H, W).
    :param coils: number of coils N.
    :param radius: radius of the ring; 1 touches the middle of the image's sides.
    """
    height, width = shape
    if coils < 1:
        raise ValueError(f"coils: expected at least 1, got {coils}")
    y = (torch.arange(height) - height // 2)[None, :, None] / (height / 2)
    x = (torch.arange(width) - width // 2)[None, None, :] / (width / 2)
    angle = 2 * math.pi * torch.arange(coils)[:, None, None] / coils
    dx, dy = x - radius * torch.cos(angle), y - radius * torch.sin(angle)
    maps = torch.polar(1 / torch.hypot(dx, dy).clamp_min(1e-6), torch.atan2(dx, -dy) - angle)
    return maps / torch.linalg.vector_norm(maps, dim=0)


def noise_covariance(samples: Tensor, contaminated: bool = False) -> Tensor:
    """Covariance (N, N) of complex noise samples (N, ...), for instance of a scan without excitation.

    :param contaminated: True where some of the samples hold signal, too: the half of them that is most like noise is
        taken (concentration steps of the minimum covariance determinant: Rousseeuw & Van Driessen, Technometrics 1999).
    """
    samples = samples.reshape(len(samples), -1)
    coils, count = samples.shape
    if count < 2 * coils:
        raise ValueError(f"samples: expected at least twice as many as the {coils} coils, got {count}")
    covariance = samples @ samples.mH / count
    if contaminated:
        # the squared length of whitened noise has a gamma distribution; cut at its median, it loses this factor
        median = special.gammaincinv(coils, 0.5)
        lost = special.gammainc(coils + 1, median) / 0.5
        covariance = _regular(covariance)
        for _ in range(10):
            lengths = whiten(samples, covariance).abs().square().sum(0)
            kept = samples[:, lengths <= lengths.median()]
            covariance = _regular(kept @ kept.mH / kept.shape[1] / lost)
    return covariance


def _regular(covariance: Tensor, share: float = 1e-3) -> Tensor:
    """With a little on the diagonal, lest simulated coils without noise, or dependent ones, make it singular."""
    least = share * covariance.diagonal().real.mean()
    return covariance + least * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def whiten(kspace: Tensor, covariance: Tensor) -> Tensor:
    """Combine the coils of k-space (N, H, W) so that their noise is uncorrelated and of unit variance.

    :param covariance: noise covariance (N, N), see :func:`noise_covariance`.
    :raises ValueError: where the covariance is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(covariance.to(kspace.dtype))
    if failed:
        raise ValueError("covariance: expected a positive definite matrix")
    if len(factor) != len(kspace):
        raise ValueError(f"covariance: expected that of {len(kspace)} coils, got {tuple(covariance.shape)}")
    flat = torch.linalg.solve_triangular(factor, kspace.reshape(len(kspace), -1), upper=False)
    return flat.reshape(kspace.shape)


def compress(kspace: Tensor, coils: int) -> Tensor:
    """The ``coils`` strongest principal components of k-space (N, H, W) as virtual coils.

    Coil compression: Buehrer et al., Magn Reson Med 2007. Whitened noise stays white.
    """
    if not 1 <= coils <= len(kspace):
        raise ValueError(f"coils: expected 1 to {len(kspace)}, got {coils}")
    return torch.einsum("nc,n...->c...", _strongest(kspace, coils).conj(), kspace)


def _strongest(kspace: Tensor, count: int) -> Tensor:
    """The first principal components over the coils of k-space (N, ...), (N, count)."""
    flat = kspace.reshape(len(kspace), -1)
    _, vectors = torch.linalg.eigh(flat @ flat.mH)
    vectors = vectors[:, -count:].flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.conj() / largest.abs()  # eigenvectors are known up to a phase


def central(kspace: Tensor, rows: int, columns: int) -> Tensor:
    """The central (N, rows, columns) of k-space (N, H, W)."""
    top, left = kspace.shape[-2] // 2 - rows // 2, kspace.shape[-1] // 2 - columns // 2
    return kspace[..., top : top + rows, left : left + columns]


def check_kspace(kspace: Tensor) -> Tensor:
    """``kspace`` as a complex tensor (N, H, W) of finite values, or a ValueError that says what is wrong."""
    kspace = torch.as_tensor(kspace)
    if not kspace.is_complex():
        raise ValueError(f"kspace: expected complex values, got {kspace.dtype}")
    if kspace.ndim != 3:
        raise ValueError(f"kspace: expected shape (N, H, W), coils first, got {tuple(kspace.shape)}")
    if not torch.isfinite(torch.view_as_real(kspace)).all():
        raise ValueError("kspace: expected finite values, got NaN or infinity")
    return kspace


def _overlap(size: int, centre: int, length: int) -> tuple[slice, slice]:
    """Where a window of ``size`` with its centre at ``centre`` falls into ``length`` around length // 2."""
    start = length // 2 - centre
    first, last = max(start, 0), min(start + size, length)
    return slice(first - start, last - start), slice(first, last)
