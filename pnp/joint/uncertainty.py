"""How far the uncertainty of the reconstruction reaches the segmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmentation import metrics


@dataclass(repr=False)
class SegmentedSamples:
    """Segmentations of posterior samples.

    :param labels: class numbers of each sample, (n, B, H, W).
    :param classes: names of the classes, the background first.
    :param soft: the segmenter's own probabilities, their mean over the samples, (B, K, H, W), where it gives them.
    :param widening: factor of the intervals' width, from :func:`calibrated`; 1 for the samples' own.
    """

    labels: Tensor
    classes: tuple[str, ...]
    soft: Tensor | None = None
    widening: float = 1.0

    @property
    def probabilities(self) -> Tensor:
        """Share of the samples in which each pixel has each class, (B, K, H, W)."""
        shares = [(self.labels == k).float().mean(0) for k in range(len(self.classes))]
        return torch.stack(shares, 1)

    @property
    def consensus(self) -> Tensor:
        """The most frequent class, (B, H, W)."""
        return self.probabilities.argmax(1)

    @property
    def volumes(self) -> Tensor:
        """Pixels of each class but the background in each sample, (n, B, K - 1)."""
        return torch.stack([(self.labels == k).sum((2, 3)) for k in range(1, len(self.classes))], -1).double()

    def volume_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end for each class's number of pixels, (B, K - 1).

        Of few samples, quantiles are too narrow: this is Student's prediction interval for one more draw from the
        samples' normal distribution, times the widening.
        """
        from scipy import stats

        volumes, n = self.volumes, len(self.labels)
        reach = stats.t.ppf((1 + level) / 2, max(n - 1, 1)) * (1 + 1 / n) ** 0.5 * self.widening
        return (volumes.mean(0) - reach * volumes.std(0)).clamp_min(0), volumes.mean(0) + reach * volumes.std(0)

    def agreement(self) -> Tensor:
        """Dice between each sample and the consensus, (n, B, K - 1): what the Dice with the truth may be."""
        consensus, count = self.consensus, len(self.classes)
        return torch.stack([metrics.dice(labels, consensus, count) for labels in self.labels])

    def expected_dice(self) -> Tensor:
        """The Dice of the consensus that samples and segmenter let expect, (B, K - 1), NaN where a class is nowhere.

        From the share of samples in which a pixel has a class, or rather, where the segmenter gives probabilities, from
        their mean over the samples: that counts in what the segmenter itself is not sure of.
        """
        shares, consensus = (self.probabilities if self.soft is None else self.soft), self.consensus
        found = []
        for k in range(1, len(self.classes)):
            chosen = consensus == k
            both = (shares[:, k] * chosen).sum((1, 2))
            found.append(2 * both / (shares[:, k].sum((1, 2)) + chosen.sum((1, 2))))
        return torch.stack(found, -1)

    def __repr__(self) -> str:
        low, high = self.volume_interval()
        parts = []
        for k, name in enumerate(self.classes[1:]):
            mean = self.volumes[:, 0, k].mean().item()
            parts.append(f"{name} {mean:.0f} ({low[0, k]:.0f} to {high[0, k]:.0f}) pixels")
        return f"SegmentedSamples(n={len(self.labels)}, {', '.join(parts)})"


@torch.no_grad()
def segment_samples(samples, segmenter) -> SegmentedSamples:
    """Segment posterior samples one by one.

    :param samples: what :func:`pnp.sample` returns, or images (n, B, C, H, W).
    :param segmenter: has ``classes`` and ``predict(images)``, and may have ``probabilities(images)``.
    :raises ValueError: for fewer than two samples.
    """
    images = getattr(samples, "x", samples)
    if images.ndim != 5 or len(images) < 2:
        raise ValueError(f"samples: expected at least two, (n, B, C, H, W), got shape {tuple(images.shape)}")
    labels = torch.stack([segmenter.predict(x).cpu() for x in images])
    soft = None
    if hasattr(segmenter, "probabilities"):
        soft = sum(segmenter.probabilities(x).cpu() for x in images) / len(images)
    return SegmentedSamples(labels, tuple(segmenter.classes), soft)


def calibrated(found: list[SegmentedSamples], labels: list[Tensor], level: float = 0.95) -> float:
    """The widening with which a share ``level`` of the volume intervals of held-back cases holds the true volume
    (split conformal prediction; Vovk et al., *Algorithmic learning in a random world*, 2005).

    :param found: segmented samples of cases that are not judged later.
    :param labels: true labels (B, H, W) of each.
    """
    scores = []
    for one, truth in zip(found, labels):
        low, high = one.volume_interval(level)
        middle, reach = (low + high) / 2, ((high - low) / 2).clamp_min(1e-9) / one.widening
        volumes = torch.stack([(truth == k).sum((1, 2)) for k in range(1, len(one.classes))], -1)
        there = volumes > 0
        scores += ((volumes - middle).abs() / reach)[there].tolist()
    if not scores:
        raise ValueError("labels: expected at least one structure, got none")
    share = min(np.ceil((len(scores) + 1) * level) / len(scores), 1)
    return float(np.quantile(scores, share))
