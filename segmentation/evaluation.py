"""Scores of a segmenter on labelled images, with intervals, and two segmenters beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas
import torch
from torch import Tensor

from segmentation import metrics
from segmentation.data import Pair

SCORES = ("dice", "iou", "hd95", "surface_dice", "volume_error")


@dataclass
class Scores:
    """Scores of each image: ``frame`` has a row for each image and class, and columns ``image``, ``class``, Dice, IoU,
    HD95 and surface Dice (in units of the spacing) and relative volume error."""

    frame: pandas.DataFrame

    def images(self, score: str = "dice") -> np.ndarray:
        """The mean over the classes for each image, (N,)."""
        return self.frame.groupby("image")[score].mean().to_numpy()

    def summary(self, level: float = 0.95, seed: int = 0) -> pandas.DataFrame:
        """Mean and standard deviation over the images for each class and score, with the mean's bootstrap interval, and
        ``images``, the number of images that have the score (HD95 has none where a class is missed altogether)."""
        rows = []
        for name, part in self.frame.groupby("class", sort=False):
            for score in SCORES:
                values = part[score].dropna().to_numpy()
                low, high = interval(values, level, seed)
                row = {
                    "class": name,
                    "score": score,
                    "images": len(values),
                    "mean": values.mean() if len(values) else np.nan,
                }
                rows.append(row | {"std": values.std() if len(values) else np.nan, "low": low, "high": high})
        return pandas.DataFrame(rows)

    def compare(self, other: Scores, score: str = "dice", level: float = 0.95, seed: int = 0) -> dict[str, float]:
        """How much higher these scores are than another segmenter's on the same images.

        :param other: the other segmenter's scores.
        :param score: one of :data:`SCORES`; of the volume error, the size is compared. HD95 is compared where both
            segmenters found the class, which spares the one that misses more: see ``images``.
        :return: ``difference`` of the means, its bootstrap interval over the images (``low``, ``high``), ``better``,
            the share of the images on which these are better (higher, or for HD95 and volume error, lower), and
            ``images``, the number of images that have both scores.
        :raises ValueError: for an unknown score, or where images or classes differ.
        """
        if score not in SCORES:
            raise ValueError(f"score: expected one of {', '.join(SCORES)}, got {score!r}")
        pair = [scores.frame.set_index(["image", "class"])[score] for scores in (self, other)]
        if set(pair[0].index) != set(pair[1].index):
            described = [f"{part.index.nunique(0)} images of {set(part.index.unique(1))}" for part in pair]
            raise ValueError(f"other: expected scores of {described[0]}, got {described[1]}")
        first, second = (part.abs() if score == "volume_error" else part for part in pair)
        differences = (first - second).dropna().groupby("image").mean().to_numpy()
        low, high = interval(differences, level, seed)
        better = differences < 0 if score in ("hd95", "volume_error") else differences > 0
        return {
            "difference": float(differences.mean()) if len(differences) else float("nan"),
            "low": low,
            "high": high,
            "better": float(better.mean()) if len(differences) else float("nan"),
            "images": len(differences),
        }


def interval(values: Sequence[float], level: float = 0.95, seed: int = 0, draws: int = 4000) -> tuple[float, float]:
    """Bootstrap interval of the mean (percentiles; Efron & Tibshirani, 1993); NaN for less than two values."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float("nan"), float("nan")
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[chosen].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def evaluate(
    predict: Callable[[Tensor], Tensor],
    pairs: Sequence[Pair],
    classes: Sequence[str],
    *,
    spacing: float | tuple[float, float] = 1.0,
    tolerance: float = 1.0,
    device=None,
) -> Scores:
    """Score what a function finds in labelled images.

    :param predict: maps an image (1, C, H, W) to class numbers (1, H, W), such as ``segmenter.predict``.
    :param pairs: images (H, W) or (C, H, W) with labels (H, W).
    :param classes: names of the classes, the background first.
    :param spacing: pixel size, for the distances.
    :param tolerance: distance up to which outlines agree, for surface Dice.
    :param device: where the function wants its images, default the CPU.
    :raises ValueError: without images.
    """
    if not len(pairs):
        raise ValueError("pairs: expected at least one labelled image, got none")
    rows, count = [], len(classes)
    for index, (image, labels) in enumerate(pairs):
        image = torch.from_numpy(image).to(device or "cpu", torch.float32)
        found = predict((image[None] if image.ndim == 2 else image)[None]).cpu()
        true = torch.from_numpy(labels)[None].long()
        scores = [
            metrics.dice(found, true, count),
            metrics.iou(found, true, count),
            metrics.hd95(found, true, count, spacing),
            metrics.surface_dice(found, true, count, tolerance, spacing),
            metrics.volume_error(found, true, count),
        ]
        for k, name in enumerate(classes[1:]):
            rows.append({"image": index, "class": name} | {s: v[0, k].item() for s, v in zip(SCORES, scores)})
    return Scores(pandas.DataFrame(rows))
