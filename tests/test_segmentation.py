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
from segmentation.data import fit, read_stack, read_volume


@pytest.fixture(scope="module")
def segmenter():
    return segmentation.load("brain-tissue")


def test_template_is_segmented(segmenter):
    """A brain of another source than the training's, against labels made from its own tissue maps."""
    image, labels = demo.brain()
    found = segmenter.predict(image)
    scores = metrics.volume_dice(found, labels, 4)
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
        scores = metrics.volume_dice(found, truth, 4)
        assert (scores[1:] > 0.85).all()
        assert scores.mean() > 0.8


def test_bad_images(segmenter):
    with pytest.raises(ValueError, match="x: expected images"):
        segmenter.predict(torch.zeros(1, 3, 32, 32))
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
    assert metrics.surface_dice(first, second, 3, tolerance=3.0)[0, 0].item() == pytest.approx(1)
    assert metrics.surface_dice(first, second, 3, tolerance=0.5)[0, 0].item() < 0.7
    assert torch.isnan(metrics.dice(first, second, 3)[0, 1])
    assert metrics.dice(first, torch.zeros_like(first), 2).item() == 0
    assert metrics.volume_dice(torch.cat([first, first]), torch.cat([second, first]), 2).item() == pytest.approx(0.85)
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


def blobs(count, seed):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        labels = np.zeros((48, 40), np.uint8)
        row, column = rng.integers(8, 28, 2)
        labels[row : row + 12, column : column + 10] = 1
        pairs.append((0.2 + 0.6 * labels.astype(np.float32) + 0.05 * rng.standard_normal((48, 40), np.float32), labels))
    return pairs


def test_training_learns(tmp_path):
    network = segmentation.UNet(2, widths=(4, 8, 16))
    classes = ("background", "blob")
    options = {"steps": 160, "batch": 4, "size": 48, "learning_rate": 1e-2, "progress": False, "validate_every": 80}
    segmentation.train(blobs(12, 0), classes, tmp_path, network=network, validation=blobs(4, 1), **options)
    loaded = segmentation.load(tmp_path / "weights.safetensors")
    assert loaded.classes == classes
    found = torch.cat([loaded.predict(torch.from_numpy(image)[None, None]) for image, _ in blobs(4, 1)])
    truth = torch.stack([torch.from_numpy(labels).long() for _, labels in blobs(4, 1)])
    assert metrics.volume_dice(found, truth, 2).item() > 0.8
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2


def test_reading_training_data(tmp_path):
    import nibabel

    volume = np.random.default_rng(0).random((20, 10, 24)).astype(np.float32)
    labels = (volume > 0.5).astype(np.uint8)
    affine = np.diag([1, 2, 1, 1])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "image.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), tmp_path / "labels.nii.gz")
    pairs = read_volume(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz", axes=(1, 0))
    assert [image.shape for image, _ in pairs[:1] + pairs[-1:]] == [(20, 24), (20, 24)]  # 10 x 2 mm becomes 20 x 1 mm
    assert all(image.shape == mask.shape for image, mask in pairs)
    nibabel.save(nibabel.Nifti1Image(labels[1:], affine), tmp_path / "other.nii.gz")
    with pytest.raises(ValueError, match="labels: expected a volume like the image's"):
        read_volume(tmp_path / "image.nii.gz", tmp_path / "other.nii.gz")
    np.savez(tmp_path / "stack.npz", images=np.full((3, 8, 9), 200, np.uint8), masks=np.ones((3, 8, 9), bool))
    assert [(image.max(), mask.shape) for image, mask in read_stack(tmp_path / "stack.npz")] == [(1.0, (8, 9))] * 3
    assert fit(np.ones((5, 20)), 10).sum() == 50
