"""How well labels agree, by MONAI's metrics: Dice, Hausdorff distance, surface Dice.

Predicted and true labels are integer tensors (B, H, W); results are (B, K - 1), one column for each class but the
background, NaN where a class is in neither (and for distances, where it is missing in one).
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from torch import Tensor


def dice(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """Dice coefficient: twice the overlap divided by the sum of the sizes."""
    found, wanted = _one_hot(predicted, true, num_classes)
    # a class that is in the prediction only counts 0; MONAI would leave it out
    scores = compute_dice(found, wanted, include_background=False, ignore_empty=False)
    empty = (found.sum((2, 3)) + wanted.sum((2, 3)))[:, 1:] == 0
    return scores.masked_fill(empty, torch.nan)


def iou(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """Intersection over union."""
    found, wanted = _one_hot(predicted, true, num_classes)
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


def volume_dice(predicted: Tensor, true: Tensor, num_classes: int) -> Tensor:
    """Dice of each class but the background over all slices together, (K - 1,)."""
    return dice(predicted.reshape(1, -1, predicted.shape[-1]), true.reshape(1, -1, true.shape[-1]), num_classes)[0]


def _distance(metric, predicted, true, num_classes, spacing, **options) -> Tensor:
    found, wanted = _one_hot(predicted, true, num_classes)
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
        if labels.is_floating_point() or labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"{name}: expected class numbers from 0 to {num_classes - 1}, got {labels.dtype} up to {labels.max()}"
            )
    return tuple(F.one_hot(labels.long(), num_classes).movedim(-1, 1) for labels in (predicted, true))
