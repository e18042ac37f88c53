"""Training of segmenters, resuming, scoring."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import segmentation
from segmentation import metrics, training
from segmentation.augment import augment
from segmentation.evaluation import Scores, evaluate, interval
from segmentation.implicit_ukan import ImplicitUKAN2

CLASSES = ("background", "blob")
QUICK = {"epochs": 4, "batch": 4, "size": 48, "learning_rate": 1e-2, "progress": False}


def blobs(count, seed, channels=None):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        labels = np.zeros((48, 40), np.uint8)
        row, column = rng.integers(8, 28, 2)
        labels[row : row + 12, column : column + 10] = 1
        image = 0.2 + 0.6 * labels.astype(np.float32) + 0.05 * rng.standard_normal((48, 40), np.float32)
        pairs.append((image if channels is None else np.stack([image] * channels), labels))
    return pairs


def unet(channels=1):
    torch.manual_seed(0)
    return segmentation.UNet(2, channels, widths=(4, 8, 16))


@pytest.mark.parametrize("channels", [None, 3])
def test_training_learns(tmp_path, channels):
    options = QUICK | {"epochs": 12, "steps": 12}
    network = unet(channels or 1)
    trained = segmentation.train(
        blobs(12, 0, channels), CLASSES, tmp_path, network=network, validation=blobs(4, 1, channels), **options
    )
    loaded = segmentation.load(tmp_path / "weights.safetensors")
    assert loaded.classes == CLASSES
    scores = evaluate(loaded.predict, blobs(4, 2, channels), CLASSES)
    assert scores.images("dice").mean() > 0.8
    x = torch.rand(1, channels or 1, 48, 40)
    torch.testing.assert_close(trained(x), loaded.network(x))
    log = (tmp_path / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,cpu_seconds,loss,blob"
    assert len(log) == 13
    card = json.loads((tmp_path / "weights.json").read_text())
    assert card["validation_dice"]["blob"] == max(float(line.split(",")[-1]) for line in log[1:])


def test_resumed_training_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Interrupted in the middle of an epoch, between two checkpoints."""
    pairs, validation = blobs(10, 0), blobs(2, 1)
    whole = segmentation.train(pairs, CLASSES, tmp_path / "whole", network=unet(), validation=validation, **QUICK)
    calls = 0

    def interrupted(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return augment(*arguments, **options)

    from segmentation import training

    augment = training.augment
    monkeypatch.setattr(training, "augment", interrupted)
    options = QUICK | {"save_minutes": 0.0, "network": unet(), "validation": validation}
    with pytest.raises(KeyboardInterrupt):
        segmentation.train(pairs, CLASSES, tmp_path / "parts", **options)
    monkeypatch.setattr(training, "augment", augment)
    resumed = segmentation.train(pairs, CLASSES, tmp_path / "parts", **options)
    for first, second in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(first, second)


def test_training_stops_when_it_no_longer_pays(tmp_path):
    options = QUICK | {"epochs": 40, "learning_rate": 1e-9, "patience": 2}
    segmentation.train(blobs(4, 0), CLASSES, tmp_path, network=unet(), validation=blobs(2, 1), **options)
    assert len((tmp_path / "log.csv").read_text().splitlines()) <= 6


@pytest.mark.parametrize("network", [unet, lambda: ImplicitUKAN2(2, widths=(8, 8, 12, 12, 16))])
def test_deep_supervision_reaches_every_level(tmp_path, network):
    segmentation.train(blobs(4, 0), CLASSES, tmp_path, network=network(), deep_supervision=True, **QUICK)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)["network"]
    heads = {name for name in state if name.startswith("heads")}
    assert len(heads) == 2 * (len(network().decoder) - 1)
    assert segmentation.load(tmp_path / "weights.safetensors").predict(torch.rand(1, 1, 32, 32)).shape == (1, 32, 32)
    with pytest.raises(ValueError, match="deep_supervision: expected"):
        segmentation.train(
            blobs(4, 0), CLASSES, tmp_path / "no", network=segmentation.UKAN(2), deep_supervision=True, **QUICK
        )


def test_bad_training_data(tmp_path):
    with pytest.raises(ValueError, match="pairs: expected at least one"):
        segmentation.train([], CLASSES, tmp_path)
    for name, wrong in {"epochs": 0, "steps": 0, "size": 0, "patience": 0, "batch": 0, "learning_rate": -1.0}.items():
        with pytest.raises(ValueError, match=f"{name}: expected"):
            segmentation.train(blobs(1, 0), CLASSES, tmp_path, **{name: wrong})
    image, labels = blobs(1, 0)[0]
    with pytest.raises(TypeError, match="pairs: expected NumPy arrays of images and of labels, got Tensor"):
        segmentation.train([(torch.from_numpy(image), labels)], CLASSES, tmp_path)
    with pytest.raises(ValueError, match="pairs: expected labels below 2"):
        segmentation.train([(image, labels * 3)], CLASSES, tmp_path)
    with pytest.raises(ValueError, match="pairs: expected finite floating-point images, got uint8"):
        segmentation.train([((255 * image).astype(np.uint8), labels)], CLASSES, tmp_path)
    with pytest.raises(ValueError, match="pairs: expected images scaled to about"):
        segmentation.train([(1000 * image - 1000, labels)], CLASSES, tmp_path)
    with pytest.raises(ValueError, match="pairs: expected images"):
        segmentation.train([(image[0], labels)], CLASSES, tmp_path)
    with pytest.raises(ValueError, match="network: expected one for 2 classes, got one for 3"):
        segmentation.train([(image, labels)], CLASSES, tmp_path, network=segmentation.UNet(3))
    with pytest.raises(ValueError, match="pairs: expected images scaled to about"):
        segmentation.train([(255 * image, labels)], CLASSES, tmp_path)
    with pytest.raises(ValueError, match="validation: expected labels below 2"):
        segmentation.train([(image, labels)], CLASSES, tmp_path, validation=[(image, labels * 3)])
    with pytest.raises(ValueError, match="validation: expected as many channels"):
        segmentation.train([(image, labels)], CLASSES, tmp_path, validation=[(image[None], labels)])
    with pytest.raises(ValueError, match="network: expected one for 1 channels, got one for 3"):
        segmentation.train([(image, labels)], CLASSES, tmp_path, network=segmentation.UNet(2, 3))
    with pytest.raises(ValueError, match="network: expected one with num_classes and settings, got Conv2d"):
        segmentation.train([(image, labels)], CLASSES, tmp_path, network=torch.nn.Conv2d(1, 2, 1))
    with pytest.raises(ValueError, match="classes: expected the background and at least one more"):
        segmentation.train([(image, 0 * labels)], CLASSES[:1], tmp_path)


def test_resuming_asks_for_the_same_arguments(tmp_path):
    pairs = blobs(4, 0)
    segmentation.train(pairs, CLASSES, tmp_path, network=unet(), **QUICK)
    for changed in ({"seed": 5}, {"epochs": QUICK.get("epochs", 2) + 1}):
        with pytest.raises(ValueError, match=f"out: .* holds a run with {next(iter(changed))}"):
            segmentation.train(pairs, CLASSES, tmp_path, network=unet(), **QUICK | changed)
    with pytest.raises(ValueError, match="holds a run with data"):
        segmentation.train(blobs(4, 1), CLASSES, tmp_path, network=unet(), **QUICK)
    with pytest.raises(ValueError, match="holds a run with validation"):
        segmentation.train(pairs, CLASSES, tmp_path, network=unet(), validation=blobs(1, 1), **QUICK)
    with pytest.raises(ValueError, match="holds a run with settings"):
        segmentation.train(pairs, CLASSES, tmp_path, network=segmentation.UNet(2, widths=(4, 8)), **QUICK)
    with pytest.raises(ValueError, match="holds a run with classes"):
        segmentation.train(pairs, ("background", "other"), tmp_path, network=unet(), **QUICK)


def test_a_run_that_stopped_early_stays_so(tmp_path):
    """And a class that the validation slices do not show does not count."""
    names, options = (*CLASSES, "never"), QUICK | {"epochs": 6, "patience": 1, "learning_rate": 1e-9}
    for _ in range(2):
        torch.manual_seed(0)
        made = segmentation.UNet(3, widths=(4, 8))
        segmentation.train(blobs(4, 0), names, tmp_path, network=made, validation=blobs(2, 1), **options)
        epochs = len((tmp_path / "log.csv").read_text().splitlines()) - 1
        assert epochs < 6
    assert segmentation.load(tmp_path / "weights.safetensors").classes == names


def test_interrupted_after_the_last_step_of_an_epoch(tmp_path, monkeypatch):
    """The log has each epoch once, and the weights are those of a run that nobody interrupted."""
    pairs, calls = blobs(4, 0), []
    options = QUICK | {"epochs": 3, "batch": 2, "save_minutes": 0.0}
    whole = segmentation.train(pairs, CLASSES, tmp_path / "whole", network=unet(), **options)
    augment = training.augment

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return augment(*arguments)

    monkeypatch.setattr(training, "augment", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segmentation.train(pairs, CLASSES, tmp_path / "parts", network=unet(), **options)
    parts = segmentation.train(pairs, CLASSES, tmp_path / "parts", network=unet(), **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))
    assert len((tmp_path / "parts" / "log.csv").read_text().splitlines()) == 4


def test_any_part_of_large_slices_is_seen():
    image, labels = np.zeros((300, 200), np.float32), np.zeros((300, 200), np.uint8)
    labels[280:, 180:] = 1
    random = torch.Generator().manual_seed(0)
    seen = [training._batch([(image, labels)], 48, "cpu", random)[1].sum().item() for _ in range(200)]
    assert 0 < np.count_nonzero(seen) < 100


@pytest.mark.parametrize("model", ["light", "ukan"])
def test_two_processes(tmp_path, model):
    """torchrun with two processes on gloo, from the command line; their averaged gradients teach as one's do, and the
    statistics of batch normalisation are averaged, too, so that both choose the same epoch."""
    pairs = blobs(8, 0)
    np.savez(tmp_path / "blobs.npz", images=[p[0] for p in pairs], masks=[p[1] for p in pairs])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["segmentation.train", str(tmp_path / "blobs.npz"), "--out", str(tmp_path / "out"), "--epochs", "2"]
    command += ["--batch", "4", "--size", "48", "--classes", "background,blob", "--model", model, "--test", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert segmentation.load(tmp_path / "out" / "weights.safetensors").classes == CLASSES
    assert len((tmp_path / "out" / "log.csv").read_text().splitlines()) == 3
    split = json.loads((tmp_path / "out" / "split.json").read_text())
    assert len(split["training"]) == 7
    assert len(split["validation"]) == 1


@pytest.mark.parametrize("size", [32, 48, 50, 64, 160])
def test_without_augmentation_pixels_stay(size):
    """Labels that are the columns' numbers stay with their pixels: the images."""
    labels = np.tile(np.arange(250, dtype=np.uint8), (250, 1))[: size + 9, : size + 9]
    random = torch.Generator().manual_seed(0)
    images, found = training._batch([(labels.astype(np.float32), labels)], size, "cpu", random)
    images, found = augment(images, found, size, random, 0.0)
    torch.testing.assert_close(images[0, 0], found[0].float(), atol=0.01, rtol=0)
    assert (found[0, :, 1:] - found[0, :, :-1] == 1).float().mean() > 0.75  # beside what is beyond the slice


def test_scores_and_comparison():
    pairs = blobs(6, 0)
    perfect = evaluate(lambda x: (x[:, 0] > 0.5).long(), pairs, CLASSES)
    assert perfect.images("dice") == pytest.approx(np.ones(6))
    assert perfect.frame["volume_error"].abs().max() == 0
    fat = evaluate(lambda x: torch.nn.functional.max_pool2d((x > 0.5).float(), 3, 1, 1)[:, 0].long(), pairs, CLASSES)
    assert fat.images("dice") == pytest.approx(np.full(6, 2 * 120 / (120 + 14 * 12)))
    assert fat.images("volume_error") == pytest.approx(np.full(6, 14 * 12 / 120 - 1))
    assert fat.images("hd95") == pytest.approx(np.ones(6), abs=0.5)
    compared = perfect.compare(fat)
    assert compared["difference"] == pytest.approx(1 - 240 / 288)
    assert compared["low"] > 0
    assert compared["better"] == 1
    summary = perfect.summary().set_index("score")
    assert summary.loc["dice", "mean"] == 1
    with pytest.raises(ValueError, match="other: expected scores of 6"):
        perfect.compare(Scores(fat.frame[:3]))
    with pytest.raises(ValueError, match="other: expected scores of 6"):
        perfect.compare(Scores(fat.frame.assign(**{"class": "other"})))
    with pytest.raises(ValueError, match="score: expected one of dice"):
        perfect.compare(fat, "jaccard")


def test_comparison_of_errors_and_of_missed_structures():
    """Half too small is as wrong as half too large; lower is better; distances are of what both found."""
    frame = evaluate(lambda x: (x[:, 0] > 0.5).long(), blobs(4, 0), CLASSES).frame
    small, large = (Scores(frame.assign(volume_error=error)) for error in (-0.5, 0.6))
    assert small.compare(large, "volume_error")["difference"] == pytest.approx(-0.1)
    assert small.compare(large, "volume_error")["better"] == 1
    near, far = (Scores(frame.assign(hd95=distances)) for distances in ([1, 1, 1, np.nan], [2, 2, np.nan, 1]))
    compared = near.compare(far, "hd95")
    assert (compared["difference"], compared["better"], compared["images"]) == (-1, 1, 2)
    nothing = near.compare(Scores(frame.assign(hd95=np.nan)), "hd95")
    assert nothing["images"] == 0
    assert np.isnan(nothing["difference"])


def test_saved_segmenters_keep_their_temperature(tmp_path):
    segmenter = segmentation.Segmenter(unet().eval(), CLASSES, 1.7)
    segmentation.save(segmenter, tmp_path / "own.safetensors", {"data": "made up"})
    loaded = segmentation.load(tmp_path / "own.safetensors")
    assert (loaded.temperature, loaded.classes) == (1.7, tuple(CLASSES))
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(loaded.probabilities(image), segmenter.probabilities(image), atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match="pairs: expected at least one"):
        loaded.calibrate([])
    assert loaded.temperature == 1.7
    with pytest.raises(ValueError, match="card: expected the names of 2 classes"):
        segmentation.save(unet(), tmp_path / "own.safetensors", {"classes": ["one"]})


def test_bootstrap_interval_covers_the_mean():
    """Of 200 samples of 40 normal numbers, about 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    inside = [low <= 1 <= high for low, high in (interval(rng.normal(1, 2, 40), draws=500) for _ in range(200))]
    assert 0.88 <= np.mean(inside) <= 0.99
    assert np.isnan(interval([])).all()


def test_pooled_scores_and_probabilities():
    truth = torch.zeros(2, 10, 10, dtype=torch.long)
    truth[0, :8], truth[1, :1] = 1, 1
    found = truth.clone()
    found[1, :2] = 1
    assert metrics.dice(found, truth, 2).flatten().tolist() == pytest.approx([1, 2 / 3])
    assert metrics.dice(found, truth, 2, pooled=True).item() == pytest.approx(180 / 190)
    assert metrics.iou(found, truth, 2, pooled=True).item() == pytest.approx(90 / 100)
    assert metrics.volume_error(found, truth, 2).flatten().tolist() == pytest.approx([0, 1])
    certain = torch.nn.functional.one_hot(found, 2).movedim(-1, 1).float()
    assert metrics.brier(certain, truth) == pytest.approx(2 * 10 / 200)
    assert metrics.calibration_error(certain, truth) == pytest.approx(0.05)
    doubtful = certain.clone()
    doubtful[1, :, 1] = torch.tensor([0.4, 0.6])[:, None]
    for score in (metrics.brier, metrics.risk_coverage, metrics.calibration_error):
        with pytest.raises(ValueError, match="probabilities"):
            score(5 * doubtful, truth)
        with pytest.raises(ValueError, match="probabilities"):
            score(doubtful, truth[:, None])
    with pytest.raises(ValueError, match="true: expected class numbers from 0 to"):
        metrics.brier(doubtful, truth + 9)
    with pytest.raises(ValueError, match="points: expected at least 1"):
        metrics.risk_coverage(doubtful, truth, 0)
    with pytest.raises(ValueError, match="bins: expected at least 1"):
        metrics.calibration_error(doubtful, truth, 0)
    alike = torch.full_like(doubtful, 1 / doubtful.shape[1])  # of no pixel more than of another
    assert metrics.risk_coverage(alike, truth)[1].std() < 1e-6
    coverage, risk = metrics.risk_coverage(doubtful, truth, 20)
    assert coverage[-1] == 1
    assert risk[:-1].abs().max() == 0
    assert risk[-1] == pytest.approx(0.05)
