"""Reading labelled images and splitting them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segmentation.data import fit, read, read_volume, split


def test_reading_volumes(tmp_path):
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
    nibabel.save(nibabel.Nifti1Image(labels[::-1], np.diag([-1, 2, 1, 1])), tmp_path / "mirrored.nii.gz")
    with pytest.raises(ValueError, match=r"labels: expected .* on the image's grid"):
        read_volume(tmp_path / "image.nii.gz", tmp_path / "mirrored.nii.gz")
    nibabel.save(nibabel.Nifti1Image(0 * labels, affine), tmp_path / "empty.nii.gz")
    with pytest.raises(ValueError, match="labels: expected at least one class"):
        read_volume(tmp_path / "image.nii.gz", tmp_path / "empty.nii.gz")
    with pytest.raises(ValueError, match="image: expected positive values"):
        read_volume(tmp_path / "empty.nii.gz", tmp_path / "labels.nii.gz")
    assert fit(np.ones((5, 20)), 10).sum() == 50
    assert fit(np.ones((3, 5, 20)), 10).sum() == 150


def test_reading_stacks(tmp_path):
    np.savez(tmp_path / "grey.npz", images=np.full((3, 8, 9), 200, np.uint8), masks=np.ones((3, 8, 9), bool))
    cases = read(tmp_path / "grey.npz")
    assert list(cases) == ["0", "1", "2"]
    assert [(image.shape, image.max(), labels.sum()) for image, labels in cases["1"]] == [((1, 8, 9), 1.0, 72)]
    names = np.array(["a", "b"])
    np.savez(tmp_path / "rgb.npz", images=np.ones((2, 8, 9, 3)), masks=np.ones((2, 8, 9), bool), names=names)
    assert read(tmp_path / "rgb.npz")["b"][0][0].shape == (3, 8, 9)
    np.savez(tmp_path / "bad.npz", images=np.ones((2, 8, 9)), masks=np.ones((2, 8, 8)))
    with pytest.raises(ValueError, match="path: expected masks"):
        read(tmp_path / "bad.npz")
    np.savez(tmp_path / "half.npz", images=np.ones((2, 8, 9)))
    with pytest.raises(ValueError, match="masks missing"):
        read(tmp_path / "half.npz")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.npz")


def test_labels_are_read_alike_in_all_cases(tmp_path):
    """Class numbers stay where a single case has two of them; slices of one name are one case."""
    masks = np.zeros((3, 8, 9), np.uint8)
    masks[:, 0, 0], masks[0, 1, 1] = 2, 1
    np.savez(tmp_path / "classes.npz", images=np.ones((3, 8, 9)), masks=masks, names=["p", "p", "q"])
    cases = read(tmp_path / "classes.npz")
    assert [len(pairs) for pairs in cases.values()] == [2, 1]
    assert [sorted(np.unique(labels)) for pairs in cases.values() for _, labels in pairs] == [[0, 1, 2], [0, 2], [0, 2]]
    np.savez(tmp_path / "mask.npz", images=np.ones((2, 8, 9)), masks=255 * np.stack([0 * masks[0], 0 * masks[0] + 1]))
    assert [pairs[0][1].max() for pairs in read(tmp_path / "mask.npz").values()] == [0, 1]
    for wrong in (masks - 1.0, masks + 0.5, masks + 300.0):
        np.savez(tmp_path / "wrong.npz", images=np.ones((3, 8, 9)), masks=wrong)
        with pytest.raises(ValueError, match="expected whole class numbers"):
            read(tmp_path / "wrong.npz")
    np.savez(tmp_path / "names.npz", images=np.ones((3, 8, 9)), masks=masks, names=["p", "q"])
    with pytest.raises(ValueError, match="path: expected 3 names"):
        read(tmp_path / "names.npz")


def test_reading_hounsfield_units_without_a_window(tmp_path):
    images = np.linspace(-1000, 1000, 144).reshape(1, 12, 12)
    np.savez(tmp_path / "ct.npz", images=images, masks=np.eye(12, dtype=np.uint8)[None])
    image = read(tmp_path / "ct.npz")["0"][0][0]
    assert image.dtype == np.float32
    assert (abs(image.min()), image.max()) == pytest.approx((0, 1), abs=0.01)
    with pytest.raises(ValueError, match="window: expected a lower and a higher"):
        read(tmp_path / "ct.npz", window=(240, -160))


def test_reading_folders(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    colours = np.random.default_rng(0).integers(0, 255, (12, 10, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "images" / "first.png")
    Image.fromarray(np.eye(12, 10, dtype=np.uint8) * 255).save(tmp_path / "masks" / "first.png")
    ((image, labels),) = read(tmp_path)["first"]
    np.testing.assert_allclose(image, colours.transpose(2, 0, 1) / np.percentile(colours, 99.9), atol=1e-6)
    assert labels.tolist() == np.eye(12, 10).tolist()
    (tmp_path / "images" / ".DS_Store").write_text("")
    Image.fromarray(colours).save(tmp_path / "images" / "scan.1.png")
    Image.fromarray(np.eye(12, 10, dtype=np.uint8) * 255).convert("RGB").save(
        tmp_path / "masks" / "scan.1.jpg", quality=60
    )
    pairs = read(tmp_path)
    assert list(pairs) == ["first", "scan.1"]
    assert set(np.unique(pairs["scan.1"][0][1])) == {0, 1}
    Image.fromarray(colours).save(tmp_path / "images" / "second.png")
    with pytest.raises(FileNotFoundError, match="no labels for second"):
        read(tmp_path)
    (tmp_path / "images" / "second.png").rename(tmp_path / "masks" / "second.png")
    with pytest.raises(FileNotFoundError, match="no image for second"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"path: expected \.npz, nnU-Net's layout"):
        read(tmp_path / "masks")


def test_pictures_of_masks(tmp_path):
    """Palettes hold class numbers; colours and smooth outlines are no class numbers."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    classes = np.arange(120, dtype=np.uint8).reshape(12, 10) % 3
    Image.fromarray(classes * 100).convert("1").save(tmp_path / "images" / "a.png")
    palette = Image.fromarray(classes, "L")
    palette.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
    palette.save(tmp_path / "masks" / "a.png")
    ((image, labels),) = read(tmp_path)["a"]
    assert labels.tolist() == classes.tolist()
    assert image.dtype == np.float32
    palette.save(tmp_path / "images" / "a.png")  # an image of a palette is its colours
    assert read(tmp_path)["a"][0][0].shape == (3, 12, 10)
    palette.convert("RGB").save(tmp_path / "masks" / "a.png")
    with pytest.raises(ValueError, match="path: expected class numbers in masks, got colours"):
        read(tmp_path)
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(12, 10) // 30 * 85).save(tmp_path / "masks" / "a.png")
    with pytest.raises(ValueError, match="got 4 values up to 255"):
        read(tmp_path)
    palette.save(tmp_path / "images" / "a.bmp")
    with pytest.raises(ValueError, match=r"path: expected one file of each name, got a.bmp and a.png"):
        read(tmp_path)


def test_slices_of_a_case_are_scaled_together(tmp_path):
    images = np.stack([np.full((8, 9), value) for value in (1.0, 2.0, 5.0)])
    masks = np.eye(8, 9, dtype=np.uint8)[None].repeat(3, 0)
    np.savez(tmp_path / "case.npz", images=images, masks=masks, names=["a", "b", "a"])
    cases = read(tmp_path / "case.npz")
    assert [image.max() for image, _ in cases["a"]] == pytest.approx([0.2, 1.0])
    assert [image.max() for image, _ in cases["b"]] == pytest.approx([1.0])


def test_reading_nnunet(tmp_path):
    import nibabel

    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
    (tmp_path / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    hounsfield = np.linspace(-1000, 1000, 8 * 9 * 4).reshape(8, 9, 4)
    for channel in range(2):
        file = tmp_path / "imagesTr" / f"case_000{channel}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(hounsfield, np.eye(4)), file)
    labels = np.random.default_rng(0).integers(0, 3, (8, 9, 4)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / "labelsTr" / "case.nii.gz")
    pairs = read(tmp_path, window=(-160, 240))["case"]
    assert len(pairs) == 4
    for k, (image, found) in enumerate(pairs):
        assert found.tolist() == labels[..., k].tolist()
        np.testing.assert_allclose(image[1], ((hounsfield[..., k] + 160) / 400).clip(0, 1), atol=1e-4)
    nibabel.save(nibabel.Nifti1Image(labels, np.diag([-1, 1, 1, 1])), tmp_path / "labelsTr" / "case.nii.gz")
    with pytest.raises(ValueError, match="on the image's grid"):
        read(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "lesion": 1, "ignore": 2}}')
    with pytest.raises(ValueError, match="got regions or ignored pixels"):
        read(tmp_path)


def test_splits_are_kept(tmp_path):
    names = [f"case{k}" for k in range(20)]
    parts = split(names, tmp_path / "split.json", validation=0.2, test=0.1, seed=3)
    assert [len(parts[key]) for key in ("training", "validation", "test")] == [14, 4, 2]
    assert sorted(name for part in parts.values() for name in part) == sorted(names)
    assert split(names, tmp_path / "split.json", validation=0.5, seed=9) == parts
    with pytest.raises(ValueError, match="is of other cases"):
        split(names[1:5], tmp_path / "split.json")
    with pytest.raises(ValueError, match="differ by new"):
        split([*names, "new"], tmp_path / "split.json")
    split(names, tmp_path / "fold.json", folds=3, fold=0)
    with pytest.raises(ValueError, match="keeps another split"):
        split(names, tmp_path / "fold.json", folds=3, fold=1)
    assert [len(part) for part in split(["a", "b", "c"]).values()] == [1, 1, 1]
    with pytest.raises(ValueError, match="validation: expected a share"):
        split(names, validation=-0.2)
    folds = [split(names, folds=3, fold=k, test=0.1) for k in range(3)]
    assert sorted(name for fold in folds for name in fold["validation"]) == sorted(set(names) - set(folds[0]["test"]))
    assert all(not set(fold["training"]) & set(fold["validation"]) for fold in folds)
    with pytest.raises(ValueError, match="folds, fold"):
        split(names, folds=3, fold=3)
