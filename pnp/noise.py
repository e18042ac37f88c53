"""Noise level of measurements: told by the operator, or estimated from the measurements themselves."""

from __future__ import annotations

import itertools
import math

import deepinv
import torch
import torch.nn.functional as F
from deepinv.physics.forward import StackedLinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from denoisers.noise import estimate_noise, high_differences
from operators import MRI, FanBeamCT, LowDose, NonCartesianMRI, ParallelBeamCT
from pnp.measured import innermost


def told(op, y, noise=None) -> float | Tensor | TensorList | None:
    """Standard deviation of the noise in y, as the user or the operator tells it.

    :param noise: what the user gave: a number, a tensor broadcastable to y, of stacked operators a list of such for
        their parts, or None for the operator's noise model, where it is Gaussian of a positive level or
        :class:`operators.LowDose`.
    :return: a number, a tensor broadcastable to y, a list of tensors for the parts, or None where nobody tells.
    :raises ValueError: where ``noise`` is negative, not finite or of a shape that does not fit y, or where y are the
        measurements of more or fewer operators.
    """
    if isinstance(y, TensorList):
        if (count := len(_stacked(op))) and count != len(y):
            raise ValueError(f"y: expected the measurements of {count} stacked operators, got {len(y)}")
        if noise is not None and not isinstance(noise, (list, tuple, TensorList)):
            first, *_ = [_checked(noise, part) for part in y]
            return first
        return _of_parts(op, y, noise)
    if noise is not None:
        return _checked(noise, y)
    if isinstance(op.noise_model, deepinv.physics.GaussianNoise):
        sigma = torch.as_tensor(op.noise_model.sigma, dtype=torch.float32)
        if sigma.numel() == 1 and sigma.item() > 0:
            return sigma.item()
        if sigma.numel() == len(y) and (sigma > 0).all():
            return sigma.reshape(-1, *[1] * (y.ndim - 1))
    if isinstance(op.noise_model, LowDose):
        return op.noise_model.std(y)
    return None


def _of_parts(op, y: TensorList, noise) -> float | TensorList | None:
    """What is told of each part of stacked operators; None where nobody tells of one of them."""
    if noise is None:
        levels = [told(part, values) for part, values in zip(_stacked(op), y)]
    elif len(noise) == len(y):
        levels = [_checked(level, values) for level, values in zip(noise, y)]
    else:
        raise ValueError(f"noise: expected a number or one for each of {len(y)} stacked operators, got {len(noise)}")
    if not levels or any(level is None for level in levels):
        return None
    if all(isinstance(level, float) for level in levels) and len(set(levels)) == 1:
        return levels[0]
    if any(level == 0 for level in levels if isinstance(level, float)):
        raise ValueError(f"noise: expected positive standard deviations for each operator, got {levels}")
    return TensorList([torch.as_tensor(level).to(values) for level, values in zip(levels, y)])


def _stacked(op) -> list:
    """The operators that measure, where several are stacked, also before or behind others."""
    op = innermost(op)
    return list(op.physics_list) if isinstance(op, StackedLinearPhysics) else []


def estimate(op, y: Tensor, image: Tensor) -> Tensor | None:
    """Estimate the standard deviation of white noise in measurements; for MRI, of each real component.

    MRI: from the outermost samples of k-space, of one coil also from neighbours in it that depend on each other, and
    from high differences along oversampled readouts. Sinograms: from high differences along the detector. Measurements
    that are images, also with pixels missing: from high differences along both directions. All but the neighbours see a
    little signal, too, and overestimate faint noise.

    :param image: A'y.
    :return: an estimate for each item of the batch, (B,), NaN where too little was measured, or None for measurements
        of another kind.
    """
    whole, op = op, innermost(op)
    if isinstance(op, (MRI, deepinv.physics.MRI, deepinv.physics.MultiCoilMRI)):
        radius = _radius(y.shape[2 - image.ndim :], y.device)
        masks = op.mask[:, 0].to(y.device).expand(len(y), *radius.shape) != 0
        return torch.stack([_kspace(item, radius, mask) for item, mask in zip(y, masks)])
    if isinstance(op, NonCartesianMRI):
        return torch.stack([_readouts(item, op.trajectory.to(y.device)) for item in y])
    if isinstance(op, (ParallelBeamCT, FanBeamCT)):
        return torch.stack([high_differences(item, axes=(-1,), order=6) for item in y])
    if isinstance(op, deepinv.physics.Tomography):
        return torch.stack([high_differences(item, axes=(-2,), order=6) for item in y])
    if gives_images(whole, y, image):
        masked = isinstance(op, deepinv.physics.Inpainting)
        return estimate_noise(y, measured=op.mask.to(y.device) != 0 if masked else None)
    return None


@torch.no_grad()
def estimate_parts(op, y) -> TensorList | None:
    """Estimates for the parts of stacked operators, (B, 1, ...) each, where one is at least 1.5 times another's.

    None for other measurements, where one cannot be estimated from its own, and for about the same noise in all.
    """
    if not isinstance(y, TensorList):
        return None
    found = [estimate(part, values, part.A_adjoint(values)) for part, values in zip(_stacked(op), y)]
    if not found or any(level is None or not (level > 0).all() for level in found):
        return None
    levels = torch.stack(found)
    if (levels.amax(0) < 1.5 * levels.amin(0)).all():
        return None
    return TensorList([level.reshape(-1, *[1] * (part.ndim - 1)).to(part) for level, part in zip(levels, y)])


def gives_images(op, y, image: Tensor) -> bool:
    """Whether measurements are images themselves: all but a tenth of what a pixel is turned into, lies in a quarter of
    both axes, as after a blur.

    :param image: one of which the largest pixel is one that is measured, such as A'y.
    """
    if not (isinstance(y, Tensor) and y.ndim == image.ndim >= 4 and y.shape[1] == image.shape[1]):
        return False
    across = [m / n for m, n in zip(y.shape[-2:], image.shape[-2:])]
    if not 0.8 < across[0] / across[1] < 1.25 or min(y.shape[-2:]) < 9:
        return False
    flat = image.flatten(1)
    impulse = torch.zeros_like(flat).scatter_(1, flat.abs().argmax(1, keepdim=True), 1.0).view_as(image)
    power = op.A(impulse).square().flatten(1, -3).sum(1, keepdim=True)
    window = [n // 4 | 1 for n in power.shape[-2:]]
    padding = [n // 2 for n in window]
    within = F.avg_pool2d(power, window, stride=1, padding=padding).amax((1, 2, 3)) * math.prod(window)
    return bool((within > 0.9 * power.sum((1, 2, 3))).all())


def _radius(shape, device: torch.device) -> Tensor:
    """Distance from the middle of k-space, 1 where an axis ends."""
    axes = [(torch.arange(n, device=device) - n // 2) / (n / 2) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()


def _outer_kspace(y: Tensor, radius: Tensor, sampled: Tensor, share: float = 1 / 24) -> Tensor:
    """Median of |y|^2 over the outermost share of the samples; for complex noise it is 2 ln 2 times the variance.

    :param y: (2, ...), real and imaginary part.
    :param radius: distance of the samples from the middle of k-space, in the shape of the last axes of y.
    :param sampled: which of them were measured, in the same shape.
    """
    power = y.square().sum(0)
    sampled = sampled.expand_as(power) & (power > 0)  # scanners fill what they did not measure with zeros
    if not sampled.any():
        return y.new_zeros(())
    radii = radius.expand_as(power)[sampled]
    outer = radii >= torch.quantile(_thinned(radii), 1 - share)
    return (power[sampled][outer].median() / (2 * math.log(2))).sqrt()


def _kspace(y: Tensor, radius: Tensor, sampled: Tensor) -> Tensor:
    """From the outermost samples; of one coil, the lower of that and of what the null space tells.

    Of several coils, what no image explains tells better.
    """
    outermost = _outer_kspace(y, radius, sampled)
    several = y.ndim > radius.ndim + 1 and y.shape[1] > 1
    return outermost if several else torch.fmin(outermost, _null_space(y, sampled).to(y))


def _null_space(y: Tensor, sampled: Tensor, share: float = 1 / 16, folds: int = 8, most: int = 10_000) -> Tensor:
    """From combinations of neighbours in k-space that the image has no part in; infinity where too few were measured.

    An object that leaves a part of the field of view empty makes neighbours in k-space depend on each other: weights
    exist that cancel it, the null space of the calibration matrix (Uecker et al., ESPIRiT, Magn Reson Med 2014), and
    leave the noise as it is. They are the given share of the eigenvectors, those of the lowest eigenvalues, found
    without the windows that they are applied to, so that they have not adapted to their noise; the median is of no
    account to the few windows at the middle that they do not cancel. Windows are squares and, which masks of lines
    hold without a calibration region, pieces of lines.

    :param y, sampled: as in :func:`_outer_kspace`.
    """
    lowest, dimensions = torch.tensor(torch.inf), range(1, 1 + sampled.ndim)
    value = torch.complex(y[0], y[1]).reshape(-1, *sampled.shape)
    sampled = sampled & (value != 0)
    for axes in [*itertools.combinations(dimensions, 2), *itertools.combinations(dimensions, 1)]:
        windows, complete = value, sampled
        for axis in axes:
            size = min(7 if len(axes) == 2 else 48, 3 * value.shape[axis] // 8)
            windows, complete = windows.unfold(axis, size, 1), complete.unfold(axis, size, 1)
        places = _thinned(complete.flatten(len(dimensions) + 1).all(-1).nonzero(), most)
        windows = windows[places.unbind(1)].flatten(1).cpu().to(torch.complex128)
        if len(windows) < 2 * windows.shape[1]:
            continue
        blocks = windows.tensor_split(folds)
        products = [block.mH @ block for block in blocks]
        count = max(round(share * windows.shape[1]), 1)
        vectors = [torch.linalg.eigh(sum(products) - product).eigenvectors[:, :count] for product in products]
        left = torch.cat([(block @ v).abs().square() for block, v in zip(blocks, vectors)])
        lowest = torch.fmin(lowest, (left.median() / (2 * math.log(2))).sqrt())
    return lowest


def _readouts(y: Tensor, trajectory: Tensor) -> Tensor:
    """The lower of two estimates, from the outermost samples and from high differences along the outer readouts.

    Where a readout is oversampled, the image fills a part of its band only, and drops out of the differences.
    """
    radius = trajectory.square().sum(1).sqrt()
    outermost = _outer_kspace(y, radius, torch.ones_like(radius, dtype=torch.bool))
    steps = trajectory.diff(dim=0).square().sum(1).sqrt()
    regular = F.pad(steps < 1.05 * steps.median(), (1, 0))  # a longer step leads to another readout
    outer = radius >= torch.quantile(_thinned(radius), 0.75)
    return torch.fmin(outermost, high_differences(y, (-1,), 6, (regular & outer).expand_as(y) & (y != 0)))


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """A part of the values that torch.quantile can take."""
    return values[:: max(len(values) // most, 1)]


def _checked(noise, y: Tensor) -> float | Tensor:
    try:
        value = torch.as_tensor(noise, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"noise: expected a number or a tensor, got {noise!r}") from None
    if not torch.isfinite(value).all() or (value < 0).any():
        raise ValueError(f"noise: expected a standard deviation of at least 0, got {noise}")
    if value.numel() == 1:
        return value.item()
    try:
        fits = torch.broadcast_shapes(value.shape, y.shape) == y.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"noise: expected a number or a tensor broadcastable to y {tuple(y.shape)}, got {tuple(value.shape)}"
        )
    value = value.reshape(*[1] * (y.ndim - value.ndim), *value.shape).to(y.device)
    if value[0].numel() > 1 and (value == 0).any():
        raise ValueError("noise: expected positive standard deviations for each measurement, got some of 0")
    return value
