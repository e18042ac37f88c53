"""From raw k-space to a problem that can be solved: mask, noise, coil sensitivities."""

from __future__ import annotations

import torch
from torch import Tensor

from operators import MRI, coils
from operators.mri import from_complex


def cartesian_mri(kspace: Tensor, calibration: int = 24, most_coils: int = 12) -> tuple[MRI, Tensor, dict]:
    """Operator and measurements of raw Cartesian k-space, with all that they need found in the data.

    Samples that are 0 in every coil count as not measured, coils that are 0 everywhere are left out. The noise
    covariance of the coils comes from the outermost samples; it whitens both k-space and sensitivities, so that every
    coil weighs as much as it is worth while the image stays what it is: the combination that ESPIRiT's unit-norm
    sensitivities define, which has about the magnitude of the root sum of squares.

    :param kspace: complex k-space (N, H, W), coils first, or (H, W), zero frequency at (H // 2, W // 2).
    :param calibration: largest side of the calibration region that is used.
    :param most_coils: more coils than this are compressed to so many virtual ones.
    :return: the operator, the whitened measurements (1, 2, [N,] H, W) with noise of standard deviation 1/sqrt(2) in the
        real and the imaginary part, and what was found: shape, coils, acceleration, calibration region, coils' noise.
    :raises ValueError: for k-space that is all 0, holds NaN, or has several coils but no calibration region.
    """
    kspace = coils.check_kspace(kspace[None] if kspace.ndim == 2 else kspace)
    sampled = (kspace != 0).any(0)
    if not sampled.any():
        raise ValueError("kspace: expected samples other than 0, got only zeros")
    kspace = kspace[kspace.flatten(1).any(1)]
    found = {
        "coils": len(kspace),
        "shape": tuple(kspace.shape[1:]),
        "acceleration": sampled.numel() / sampled.sum().item(),
    }
    mask = sampled.float()

    covariance = coils.noise_covariance(_outer(kspace, sampled), contaminated=True)
    found["noise"] = (covariance.diagonal().real / 2).sqrt().tolist()
    if len(kspace) == 1:
        found["calibration"] = None
        return MRI(mask), from_complex(kspace), found

    rows, columns = _calibration_region(sampled)
    found["calibration"] = (rows, columns)
    if min(rows, columns) < 8:
        raise ValueError(f"kspace: expected a fully sampled centre of at least 8 x 8 samples, got {rows} x {columns}")
    white, region = coils.whiten(kspace, covariance), (min(rows, calibration), min(columns, calibration))
    kernel = min(6, min(region) // 2)  # windows must overlap for a null space
    if len(kspace) > most_coils:
        white, found["virtual coils"] = coils.compress(white, most_coils), most_coils
        maps = coils.espirit(white, region, kernel)
        size = torch.linalg.vector_norm(_combined(maps, white, kspace), dim=0)  # 1, of the coils that were measured
        maps = torch.where(size > 0, maps / size, 0)
    else:
        maps = coils.whiten(coils.espirit(kspace, region, kernel), covariance)
    return MRI(mask, maps), from_complex(white[None]), found


def _combined(maps: Tensor, virtual: Tensor, kspace: Tensor) -> Tensor:
    """Sensitivities of the coils, from those of virtual ones, and from the k-space of both."""
    back = torch.linalg.lstsq(virtual.flatten(1).T, kspace.flatten(1).T).solution.T
    return torch.einsum("nc,chw->nhw", back, maps)


def _outer(kspace: Tensor, sampled: Tensor, share: float = 1 / 24) -> Tensor:
    """The outermost share of the samples, (N, count)."""
    v, u = (torch.linspace(-1, 1, n) for n in sampled.shape)
    radius = torch.hypot(v[:, None], u[None, :])
    count = min(max(int(share * sampled.sum()), 4 * len(kspace)), int(sampled.sum()))
    outermost = radius[sampled].topk(count).values.min()
    return kspace[:, sampled & (radius >= outermost)]


def _calibration_region(sampled: Tensor) -> tuple[int, int]:
    """Rows and columns of a large fully sampled rectangle around the centre of k-space."""

    def full(rows: int, columns: int) -> bool:
        return bool(coils.central(sampled[None], rows, columns).all())

    best, columns = (0, 0), sampled.shape[1]
    for rows in range(1, sampled.shape[0] + 1):
        while columns and not full(rows, columns):  # of more rows, no more columns are full
            columns -= 1
        if min(rows, columns) > min(best) or (min(rows, columns) == min(best) and rows * columns > best[0] * best[1]):
            best = (rows, columns)
    return best
