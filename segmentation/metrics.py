"""How well labels agree, by MONAI's metrics: Dice, Hausdorff distance, surface Dice; and how far probabilities hold.

Predicted and true labels are integer tensors (B, H, W); results are (B, K - 1), one column for each class but the
background, NaN where a class is in neither (and for HD95, where it is missing in one). Probabilities are (B, K, H, W),
their labels (B, H, W). Scores are of each image; ``pooled=True`` counts the pixels of all images together, as papers do
that average over batches, which large objects dominate.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from torch import Tensor


def dice(predicted: Tensor, true: Tensor, num_classes: int, pooled: bool = False) -> Tensor:
    """Dice coefficient: twice the overlap divided by the sum of the sizes; (1, K - 1) if pooled."""
    found, wanted = _one_hot(*_pool(predicted, true, pooled), num_classes)
    # a class that is in the prediction only counts 0; MONAI would leave it out
    scores = compute_dice(found, wanted, include_background=False, ignore_empty=False)
    empty = (found.sum((2, 3)) + wanted.sum((2, 3)))[:, 1:] == 0
    return scores.masked_fill(empty, torch.nan)


def iou(predicted: Tensor, true: Tensor, num_classes: int, pooled: bool = False) -> Tensor:
    """Intersection over union; (1, K - 1) if pooled."""
    found, wanted = _one_hot(*_pool(predicted, true, pooled), num_classes)
    scores = compute_iou(found, wanted, include_background=False, ignore_empty=False)
    empty = (found.sum((2, 3)) + wanted.sum((2, 3)))[:, 1:] == 0
    return scores.masked_fill(empty, torch.nan)


def hd95(predicted: Tensor, true: Tensor, num_classes: int, spacing: float | tuple[float, float] = 1.0) -> Tensor:
    """95th percentile of the Hausdorff distance, in the units of ``spacing`` (mm for a pixel size in mm)."""
    return _distance(compute_hausdorff_distance, predicted, true, num_classes, spacing, percentile=95)


def surface_dice(
    predicted: Tensor,
    true: Tensor,
    num_classes: int,
    tolerance: float = 1.0,
    spacing: float | tuple[float, float] = 1.0,
) -> Tensor:
    """Share of the outlines that lies within ``tolerance`` (in the units of ``spacing``) of the other outline.

    Nikolov et al., *Deep learning to achieve clinically applicable segmentation of head and neck anatomy*, 2018.
    """
    thresholds = [tolerance] * (num_classes - 1)
    return _distance(compute_surface_dice, predicted, true, num_classes, spacing, class_thresholds=thresholds)


def volume_error(predicted: Tensor, true: Tensor, num_classes: int, pooled: bool = False) -> Tensor:
    """Size of what was found relative to the true size, minus 1; NaN where the class is not there."""
    found, wanted = _one_hot(*_pool(predicted, true, pooled), num_classes)
    found, wanted = (labels.sum((2, 3))[:, 1:].double() for labels in (found, wanted))
    return torch.where(wanted > 0, found / wanted - 1, torch.nan)


def calibration_error(probabilities: Tensor, true: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean distance between confidence and accuracy over bins of confidence (Naeini et
    al., *Obtaining well calibrated probabilities using Bayesian binning*, AAAI 2015)."""
    _check_probabilities(probabilities, true, bins=bins)
    confidence, labels = probabilities.max(1)
    index = (confidence * bins).long().clamp(max=bins - 1).flatten()
    right = (labels == true).double().flatten()
    gaps = torch.zeros(bins, dtype=torch.float64, device=right.device)
    gaps.scatter_add_(0, index, right - confidence.double().flatten())
    return (gaps.abs().sum() / right.numel()).item()


def brier(probabilities: Tensor, true: Tensor) -> float:
    """Mean over the pixels of the squared distance between probabilities and the truth, from 0 to 2 (Brier, 1950)."""
    _check_probabilities(probabilities, true)
    wanted = F.one_hot(true.long(), probabilities.shape[1]).movedim(-1, 1)
    return (probabilities.double() - wanted).square().sum(1).mean().item()


def risk_coverage(probabilities: Tensor, true: Tensor, points: int = 100) -> tuple[Tensor, Tensor]:
    """Share of wrong pixels among the most confident ones, for shares of the pixels from 1/points to 1; of pixels with
    equal confidence, any are as likely to be among them.

    Geifman & El-Yaniv, *Selective classification for deep neural networks* (NeurIPS 2017).

    :return: coverage (points,) and risk (points,); the mean of the risk is the area under the curve.
    """
    _check_probabilities(probabilities, true, points=points)
    confidence, labels = probabilities.max(1)
    _, group, sizes = (-confidence.flatten()).unique(return_inverse=True, return_counts=True)
    wrong = torch.zeros(len(sizes), dtype=torch.float64, device=group.device)
    wrong.scatter_add_(0, group, (labels != true).double().flatten())
    wrong = (wrong / sizes).repeat_interleave(sizes).cumsum(0).cpu()
    count = (torch.arange(1, points + 1, dtype=torch.float64) / points * len(wrong)).round().long().clamp_min(1)
    return count / len(wrong), wrong[count - 1] / count


def _check_probabilities(probabilities: Tensor, true: Tensor, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if not isinstance(probabilities, Tensor):
        raise TypeError(f"probabilities: expected a tensor, got {type(probabilities).__name__}")
    if probabilities.ndim != 4 or true.shape != (len(probabilities), *probabilities.shape[2:]):
        shapes = f"{tuple(probabilities.shape)} and {tuple(true.shape)}"
        raise ValueError(f"probabilities, true: expected (B, K, H, W) and (B, H, W), got {shapes}")
    if (probabilities < 0).any() or not torch.allclose(probabilities.sum(1), probabilities.new_ones(()), atol=1e-2):
        raise ValueError("probabilities: expected values that sum to 1 over the classes, got others")
    _check_labels("true", true, probabilities.shape[1])


def _check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(labels).__name__}")
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_classes:
        found = f"{labels.dtype} from {labels.min()} to {labels.max()}"
        raise ValueError(f"{name}: expected class numbers from 0 to {num_classes - 1}, got {found}")


def _pool(predicted: Tensor, true: Tensor, pooled: bool) -> tuple[Tensor, Tensor]:
    if not pooled or predicted.shape != true.shape:
        return predicted, true
    return predicted.reshape(1, -1, predicted.shape[-1]), true.reshape(1, -1, true.shape[-1])


def _distance(metric, predicted, true, num_classes, spacing, **options) -> Tensor:
    found, wanted = _one_hot(predicted, true, num_classes)
    spacing = [float(s) for s in spacing] if isinstance(spacing, (tuple, list)) else float(spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are empty; they come out as NaN
        result = metric(found, wanted, include_background=False, spacing=spacing, **options)
    return torch.where(torch.isfinite(result), result, torch.nan)


def _one_hot(predicted: Tensor, true: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    if predicted.shape != true.shape or predicted.ndim != 3:
        raise ValueError(
            f"predicted, true: expected equal shapes (B, H, W), got {tuple(predicted.shape)}, {tuple(true.shape)}"
        )
    for name, labels in (("predicted", predicted), ("true", true)):
        _check_labels(name, labels, num_classes)
    return tuple(F.one_hot(labels.long(), num_classes).movedim(-1, 1) for labels in (predicted, true))
