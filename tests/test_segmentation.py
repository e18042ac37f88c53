"""The U-Net, the bundled segmenter, the metrics and the training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import segmentation
from pnp import demo
from segmentation import metrics
from segmentation.augment import augment
from segmentation.data import read, read_volume
from segmentation.evaluation import evaluate
from segmentation.library import without_specks


@pytest.fixture(scope="module")
def segmenter():
    return segmentation.load("brain-tissue")


def test_template_is_segmented(segmenter):
    """A brain of another source than the training's, against labels made from its own tissue maps."""
    image, labels = demo.brain()
    found = segmenter.predict(image)
    scores = metrics.dice(found, labels, 4, pooled=True)[0]
    assert segmenter.classes == ("background", "CSF", "grey matter", "white matter")
    assert (scores > torch.tensor([0.7, 0.8, 0.8])).all()
    assert torch.equal(segmenter.probabilities(image).argmax(1), found)


def test_units_and_complex_images_do_not_matter(segmenter):
    image, _ = demo.brain()
    found = segmenter.predict(image[:1])
    assert (segmenter.predict(1e4 * image[:1]) == found).float().mean() > 0.9999
    turned = torch.cat([image[:1] * 0.6, image[:1] * -0.8], 1)
    assert (segmenter.predict(turned) == found).float().mean() > 0.9999


def test_held_out_subjects(segmenter, data):
    for subject in ("04", "09"):
        path = data / "ibsr18" / f"IBSR_{subject}.nii.gz"
        pairs = read_volume(path, path.with_name(f"IBSR_{subject}_seg.nii.gz"), axes=(1,))[20:-20:10]
        found = torch.stack([segmenter.predict(torch.from_numpy(image)[None, None])[0] for image, _ in pairs])
        truth = torch.stack([torch.from_numpy(labels).long() for _, labels in pairs])
        scores = metrics.dice(found, truth, 4, pooled=True)[0]
        assert (scores[1:] > 0.85).all()
        assert scores.mean() > 0.8


@pytest.mark.parametrize("model", ["light", "unet"])
@pytest.mark.parametrize("task", ["brain-tissue", "breast-lesion", "vertebra"])
def test_bundled_weights(task, model):
    loaded = segmentation.load(task, model=model)
    card = loaded.network.card
    assert {"data", "licence", "recipe", "seed", "cpu_hours", "validation_dice", "test_dice"} <= set(card)
    labels = loaded.predict(torch.rand(2, 1, 70, 90))
    assert labels.shape == (2, 70, 90)
    assert labels.max() < len(loaded.classes)


@pytest.mark.parametrize("model", ["light", "unet"])
def test_held_out_vertebrae_and_lesions(data, model):
    """A volume and images that training did not see."""
    vertebrae = list(read(data / "ct_vertebra" / "train.npz").values())[1503::8]
    lesions = list(read(data / "busi256" / "train.npz").values())[490:]
    for task, pairs, least in (("vertebra", vertebrae, 0.85), ("breast-lesion", lesions, 0.6)):
        loaded = segmentation.load(task, model=model)
        scores = evaluate(loaded.predict, [pair[0] for pair in pairs], loaded.classes)
        assert np.nanmean(scores.images("dice")) > least  # some slices show nothing


def test_bad_images(segmenter):
    for shape in ((1, 3, 32, 32), (0, 1, 32, 32)):
        with pytest.raises(ValueError, match="x: expected images"):
            segmenter.predict(torch.zeros(shape))
    with pytest.raises(ValueError, match="x: expected finite"):
        segmenter.predict(torch.full((1, 1, 32, 32), torch.nan))
    with pytest.raises(ValueError, match="task: no bundled weights"):
        segmentation.load("nonsense")
    with pytest.raises(FileNotFoundError):
        segmentation.load("nonsense.safetensors")
    assert (segmenter.predict(torch.zeros(1, 1, 64, 64)) == 0).float().mean() > 0.9


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 3), st.integers(2, 5), st.integers(1, 2))
def test_unet_takes_any_size(height, width, batch, classes, channels):
    network = segmentation.UNet(classes, channels, widths=(4, 8, 8))
    assert network(torch.randn(batch, channels, height, width)).shape == (batch, classes, height, width)
    with pytest.raises(ValueError, match="x: expected images"):
        network(torch.randn(batch, channels + 1, height, width))


def test_metrics_against_closed_forms():
    first, second = torch.zeros(1, 40, 40, dtype=torch.long), torch.zeros(1, 40, 40, dtype=torch.long)
    first[0, 10:20, 10:20] = 1
    second[0, 10:20, 13:23] = 1  # shifted by 3
    assert metrics.dice(first, second, 3)[0, 0].item() == pytest.approx(0.7)
    assert metrics.iou(first, second, 3)[0, 0].item() == pytest.approx(70 / 130)
    assert metrics.hd95(first, second, 3)[0, 0].item() == pytest.approx(3)
    assert metrics.hd95(first, second, 3, spacing=2.0)[0, 0].item() == pytest.approx(6)
    for score in (metrics.dice, metrics.hd95):
        with pytest.raises(TypeError, match="predicted: expected a tensor, got ndarray"):
            score(first.numpy(), second, 3)
    assert metrics.surface_dice(first, second, 3, tolerance=3.0)[0, 0].item() == pytest.approx(1)
    assert metrics.surface_dice(first, second, 3, tolerance=0.5)[0, 0].item() < 0.7
    assert torch.isnan(metrics.dice(first, second, 3)[0, 1])
    assert metrics.dice(first, torch.zeros_like(first), 2).item() == 0
    assert metrics.dice(torch.cat([first, first]), torch.cat([second, first]), 2, pooled=True)[
        0
    ].item() == pytest.approx(0.85)
    with pytest.raises(ValueError, match="equal shapes"):
        metrics.dice(first, second[:, :-1], 3)
    with pytest.raises(ValueError, match="class numbers"):
        metrics.dice(first * 5, second, 3)


def test_augmentation_keeps_image_and_labels_together():
    image, labels = demo.brain()
    rng = torch.Generator().manual_seed(0)
    images, moved = augment(image, labels, 160, rng, heads=True)
    assert images.shape == (3, 1, 160, 160)
    assert moved.shape == (3, 160, 160)
    for picture, classes in zip(images[:, 0], moved):
        white, fluid = picture[classes == 3].median(), picture[classes == 1].median()
        assert math.isnan(fluid) or white > fluid


def test_specks_go():
    labels = torch.zeros(1, 20, 20, dtype=torch.long)
    labels[0, 2:8, 2:8], labels[0, 12, 12], labels[0, 13, 13], labels[0, 16:18, 2] = 1, 1, 1, 2
    cleaned = without_specks(labels, 3)
    assert (cleaned == 1).sum() == 36
    assert (cleaned == 2).sum() == 0
    assert (without_specks(labels, 2) == labels).all()  # the two pixels touch at a corner


def test_flips_and_tiles(segmenter):
    image, _ = demo.brain()
    plain = segmenter.probabilities(image[:1])
    mirrored = segmenter.probabilities(image[:1].flip(-1), flips=True).flip(-1)
    torch.testing.assert_close(segmenter.probabilities(image[:1], flips=True), mirrored, atol=1e-3, rtol=1e-3)
    tiled = segmenter.probabilities(image[:1], tile=160)
    assert tiled.shape == plain.shape
    assert (tiled.argmax(1) == plain.argmax(1)).float().mean() > 0.97
    assert torch.equal(segmenter.probabilities(image[:1], tile=256), plain)
    with pytest.raises(ValueError, match="tile: expected the side of a square"):
        segmenter.probabilities(image[:1], tile=0)


def test_temperature_is_found():
    """Logits that are three times too large are divided by about three, and the labels stay."""

    class Overconfident(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, x):
            return self.weight * torch.cat([torch.zeros_like(x), x], 1)

    image = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.bernoulli(image.sigmoid(), generator=torch.Generator().manual_seed(1))
    segmenter = segmentation.Segmenter(Overconfident(), ("no", "yes"))
    before = segmenter.probabilities(image[None, None])
    segmenter.calibrate([(image.numpy(), labels.numpy().astype("uint8"))])
    assert segmenter.temperature == pytest.approx(3, rel=0.15)
    after = segmenter.probabilities(image[None, None])
    assert (after.argmax(1) == before.argmax(1)).all()
    truth = labels[None].long()
    assert metrics.calibration_error(after, truth) < 0.5 * metrics.calibration_error(before, truth)
    assert metrics.brier(after, truth) < metrics.brier(before, truth)


def test_complex_images_are_segmented_by_their_magnitude(brain):
    segmenter = segmentation.load("brain-tissue")
    wanted = segmenter.predict(brain)
    for tile in (None, 64):
        found = segmenter.predict(brain * (0.6 + 0.8j), tile=tile)
        assert torch.equal(found, segmenter.predict((brain * (0.6 + 0.8j)).abs(), tile=tile))
    assert (segmenter.double().predict(brain) == wanted).float().mean() > 0.999
    with pytest.raises(TypeError, match=r"x: expected a torch\.Tensor"):
        segmenter.predict(brain.numpy())
