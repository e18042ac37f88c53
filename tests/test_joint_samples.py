"""Joint evaluation: segmented posterior samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SIZE, phantom

from pnp.joint import SegmentedSamples, error_propagation, segment_samples
from pnp.joint.uncertainty import calibrated
from segmentation import metrics


def test_segmented_samples(segmenter):
    image, labels = phantom(0)
    samples = torch.stack([image + 0.02 * torch.randn(image.shape) for _ in range(6)])
    found = segment_samples(samples, segmenter)
    assert found.labels.shape == (6, 1, *SIZE)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(1, *SIZE))
    assert (found.consensus == labels).float().mean() > 0.95
    low, high = found.volume_interval()
    assert (low <= found.volumes.mean(0)).all()
    assert (found.volumes.mean(0) <= high).all()
    assert (found.agreement().mean(0) > 0.8).all()
    assert (found.expected_dice() > 0.8).all()
    assert "grey" in repr(found)
    with pytest.raises(ValueError, match="samples: expected at least two"):
        segment_samples(samples[:1], segmenter)


def test_error_propagation_counts_the_error_where_the_mask_is_wrong(segmenter):
    image, _ = phantom(0)
    found = segment_samples(torch.stack([image, image]), segmenter)
    truth = found.consensus.clone()
    truth[:, 8:24, 8:24] = (truth[:, 8:24, 8:24] + 1) % len(segmenter.classes)
    error = torch.zeros_like(image)
    error[:, 0] = 0.1 + 0.2 * (truth != found.consensus)  # three times as large there
    figure = error_propagation(torch.stack([image, image]) + error, found, image, truth)
    assert "error 3.0 x elsewhere" in figure.axes[-1].get_title()
    right = error_propagation(torch.stack([image, image]), found, image, found.consensus)
    assert right.axes[-1].get_title() == "nothing wrong"
    with pytest.raises(ValueError, match="labels: expected the segmentations' shape"):
        error_propagation(torch.stack([image, image]), found, image, truth[:, 1:])


def test_expected_dice_is_the_mean_dice_of_what_may_be_true():
    """Pixels whose class is drawn with the probabilities that the segmenter gives."""
    shares = torch.linspace(0.02, 0.98, 900).view(1, 30, 30)
    labels = (shares > 0.5).long()[None]
    found = SegmentedSamples(labels, ("no", "yes"), torch.stack([1 - shares, shares], 1))
    drawn = torch.stack([torch.bernoulli(shares) for _ in range(200)]).long()
    dice = torch.stack([metrics.dice(labels[0], truth, 2) for truth in drawn]).mean()
    assert found.expected_dice().item() == pytest.approx(dice.item(), abs=5e-3)


def test_volume_intervals_cover_and_are_widened():
    """Sizes drawn from one distribution, six samples each: about 95 % of the intervals hold another draw."""
    rng = np.random.default_rng(0)

    def case(spread):
        mean, found = rng.integers(300, 600), []
        for size in np.round(rng.normal(mean, 20, 7)).astype(int):
            labels = torch.zeros(1, 40, 40, dtype=torch.long)
            labels.view(-1)[:size] = 1
            found.append(labels)
        centre = found[0].sum().item()
        for labels in found[1:]:  # the samples' spread about their own mean, shrunk
            shrunk = round(mean + spread * (labels.sum().item() - mean))
            labels.zero_()
            labels.view(-1)[:shrunk] = 1
        assert centre > 0
        return SegmentedSamples(torch.stack(found[1:]), ("no", "yes")), found[0]

    def coverage(cases, widening=1.0):
        inside = []
        for found, truth in cases:
            found.widening = widening
            low, high = found.volume_interval()
            inside.append(low.item() <= truth.sum().item() <= high.item())
        return np.mean(inside)

    assert 0.9 <= coverage([case(1.0) for _ in range(200)]) <= 0.99
    narrow = [case(0.3) for _ in range(400)]
    assert coverage(narrow) < 0.7
    held, truth = zip(*narrow[:200])
    factor = calibrated(held, truth)
    assert 0.9 <= coverage(narrow[200:], factor) <= 0.99
    for found in held:
        found.widening = 7.0
    assert calibrated(held, truth) == factor
    with pytest.raises(ValueError, match="at least 19 structures, got 18"):
        calibrated(held[:18], truth[:18])
    with pytest.raises(ValueError, match="level: expected a share"):
        held[0].volume_interval(95)
