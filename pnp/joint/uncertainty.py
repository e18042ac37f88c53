"""How far the uncertainty of the reconstruction reaches the segmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from segmentation import metrics

ROUNDING = 12**-0.5  # standard deviation of a volume that is known to the whole pixel


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
        middle, reach = self.volumes.mean(0), self.widening * self.reach(level)
        return (middle - reach).clamp_min(0), middle + reach

    def reach(self, level: float) -> Tensor:
        """Half of the interval's width without widening, (B, K - 1).

        :raises ValueError: for a level that is not between 0 and 1.
        """
        from scipy import stats

        if not 0 < level < 1:
            raise ValueError(f"level: expected a share between 0 and 1, got {level}")
        n = len(self.labels)
        spread = self.volumes.std(0).clamp_min(ROUNDING)
        return stats.t.ppf((1 + level) / 2, n - 1) * (1 + 1 / n) ** 0.5 * spread

    def agreement(self) -> Tensor:
        """Dice between each sample and the consensus, (n, B, K - 1): what the Dice with the truth may be."""
        consensus, count = self.consensus, len(self.classes)
        return torch.stack([metrics.dice(labels, consensus, count) for labels in self.labels])

    def expected_dice(self) -> Tensor:
        """The Dice of the consensus that samples and segmenter let expect, (B, K - 1), NaN where no class is expected:
        in no pixel of the consensus, and in less than half a pixel by its probabilities.

        From the share of samples in which a pixel has a class, or rather, where the segmenter gives probabilities, from
        their mean over the samples: that counts in what the segmenter itself is not sure of.
        """
        shares, consensus = (self.probabilities if self.soft is None else self.soft), self.consensus
        found = []
        for k in range(1, len(self.classes)):
            chosen = consensus == k
            both, total = (shares[:, k] * chosen).sum((1, 2)), shares[:, k].sum((1, 2))
            there = chosen.any(-1).any(-1) | (total >= 0.5)
            found.append(torch.where(there, 2 * both / (total + chosen.sum((1, 2))), torch.nan))
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
    :param level: share, which the widening is for; another one needs another.
    :raises ValueError: where there are too few structures for such a share to be told: 19 at least for 0.95.
    """
    scores = []
    for one, truth in zip(found, labels, strict=True):
        truth = truth.to(one.labels.device)
        volumes = torch.stack([(truth == k).sum((1, 2)) for k in range(1, len(one.classes))], -1)
        scores += ((volumes - one.volumes.mean(0)).abs() / one.reach(level))[volumes > 0].tolist()
    rank = math.ceil((len(scores) + 1) * level)
    if rank > len(scores):
        raise ValueError(f"labels: expected at least {math.ceil(level / (1 - level))} structures, got {len(scores)}")
    return sorted(scores)[rank - 1]
