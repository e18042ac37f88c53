"""Joint evaluation: training through reconstructions, fine-tuning and the built-in tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SIZE, phantom, scanner

import pnp
from pnp.joint import evaluate, finetune, through

OPERATORS = {"2x": scanner(2), "4x": scanner(4)}


def test_training_through_reconstructions():
    pairs = [(image[0, :1].numpy(), labels[0].numpy().astype(np.uint8)) for image, labels in map(phantom, range(8))]
    seen = through(pairs, OPERATORS, "direct", noise=0.05, share=0.5, seed=1)
    changed = [not np.array_equal(before[0], after[0]) for before, after in zip(pairs, seen)]
    assert 0 < sum(changed) < 8
    assert all(before[1] is after[1] for before, after in zip(pairs, seen))
    assert all(after[0].shape == (1, *SIZE) and (after[0] >= 0).all() for after in seen)
    again = through(pairs, OPERATORS, "direct", noise=0.05, share=0.5, seed=1)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(seen, again))
    with pytest.raises(ValueError, match="share: expected 0 to 1"):
        through(pairs, OPERATORS, share=2)


def test_finetuning_lowers_its_loss(segmenter, medical):
    """On two cases and one operator; the given denoiser stays as it is."""
    cases, operator = [phantom(0), phantom(1)], {"4x": OPERATORS["4x"]}
    before = [p.clone() for p in medical.parameters()]
    options = {"iterations": 3, "steps": 12, "learning_rate": 3e-4}
    trained, _ = finetune(cases, operator, medical, segmenter, weight=0.0, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, medical.parameters()))
    solvers = {
        name: (lambda op, y, network=network: pnp.solve(op, y, network, algorithm="hqs", iterations=3).x)
        for name, network in (("before", medical), ("after", trained))
    }
    means = evaluate(cases, operator, solvers, segmenter).frame.groupby("solver")["psnr"].mean()
    assert means["after"] > means["before"] + 0.2
    with pytest.raises(ValueError, match="weight: expected 0 to 1"):
        finetune(cases, operator, medical, segmenter, weight=2)


def test_finetuning_on_measurements(segmenter, medical):
    """The same whether noiseless measurements are made or given."""
    operator = {"4x": OPERATORS["4x"]}
    image, labels = phantom(0)
    measured = {"4x": operator["4x"].A(image)}
    options = {"iterations": 2, "steps": 2, "noise": 0.0}
    pair = [
        finetune([case], operator, medical, segmenter, **options)[0]
        for case in ((image, labels), (measured, labels, image))
    ]
    for first, second in zip(*(network.parameters() for network in pair)):
        torch.testing.assert_close(first, second)
    with pytest.raises(ValueError, match="cases: expected an image in each case to learn from, got none in case 0"):
        finetune([(measured, labels)], operator, medical, segmenter)


def test_vertebra_task(tmp_path, monkeypatch, segmenter):
    """Made-up slices through the built-in task: operators of rising difficulty, each with its own noise."""
    from pnp.joint import tasks

    monkeypatch.setattr(tasks.segmentation, "load", lambda task, model: segmenter)
    pairs = [phantom(seed) for seed in range(3)]
    images, labels = (np.stack([part.numpy()[(0,) * (part.ndim - 2)] for part in parts]) for parts in zip(*pairs))
    np.savez(tmp_path / "slices.npz", images=images, masks=labels.astype(np.uint8))
    task = tasks.vertebra(tmp_path / "slices.npz", count=2)
    assert [tuple(image.shape) for image, _ in task.cases] == [(1, 1, *SIZE)] * 2
    frame = task.evaluate(["direct", "oracle"]).frame
    psnr = frame[frame.solver == "direct"].groupby("operator", sort=False)["psnr"].mean()
    assert list(psnr.index) == ["60 views", "30 views", "low dose"]
    assert psnr["60 views"] > psnr["30 views"] > 10
    with pytest.raises(ValueError, match="count: expected 1 to 3"):
        tasks.vertebra(tmp_path / "slices.npz", count=9)


def test_brain_task_of_the_bundled_template():
    from pnp.joint import tasks

    task = tasks.brain_tissue()
    assert [tuple(image.shape) for image, _ in task.cases] == [(1, 2, 192, 192)] * 3
    frame = task.evaluate(["direct", "oracle"]).frame
    assert (frame[frame.solver == "oracle"]["dice"] > 0.8).all()


def test_brain_task_wants_enough_slices(tmp_path):
    import nibabel

    from pnp.joint import tasks

    for name in ("image", "labels"):
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 28, 8), np.uint8), np.eye(4)), tmp_path / f"{name}.nii.gz")
    with pytest.raises(ValueError, match="images: expected volumes of more than 30 labelled slices"):
        tasks.brain_tissue([tmp_path / "image.nii.gz"], [tmp_path / "labels.nii.gz"])
    with pytest.raises(ValueError, match="labels: expected a volume for each of 2 images, got 1"):
        tasks.brain_tissue([tmp_path / "image.nii.gz"] * 2, [tmp_path / "labels.nii.gz"])


def test_brain_and_breast_tasks(data):
    from pnp.joint import tasks

    volume = data / "ibsr18" / "IBSR_04.nii.gz"
    brain = tasks.brain_tissue([volume], [volume.with_name("IBSR_04_seg.nii.gz")], count=1, size=128)
    assert brain.cases[0][0].shape == (1, 2, 128, 128)
    frame = brain.evaluate(["direct", "oracle"]).frame
    assert (frame[frame.solver == "oracle"]["dice"] > 0.6).all()
    breast = tasks.breast_lesion(data / "busi256" / "train.npz", count=1)
    assert breast.cases[0][0].shape == (1, 1, 256, 256)
    assert len(breast.operators) == 3
