"""The command line, end to end."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel
import numpy as np
import pandas
import pydicom
import pytest

from operators import masks
from pnp import demo
from pnp.cli import main


def test_demo(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == ["fully sampled", "zero filling", "CG-SENSE", "pnp.solve"]
    assert rows["pnp.solve"]["psnr"] > max(rows["zero filling"]["psnr"], rows["CG-SENSE"]["psnr"]) + 4
    for tissue in ("CSF", "grey matter", "white matter"):
        reference = rows["fully sampled"][f"dice {tissue}"]
        assert reference > 0.7
        assert rows["pnp.solve"][f"dice {tissue}"] > reference - 0.05
    assert results["noise_estimated"] == pytest.approx(0.01, rel=0.3)
    page = (tmp_path / "report.html").read_text()
    assert 'src="data:image/png' in page
    assert "://" not in page  # nothing is fetched
    assert (tmp_path / "figure.png").stat().st_size > 50_000
    assert "pnp.solve" in capsys.readouterr().out


def test_reconstruct_and_segment(kspace, tmp_path, capsys):
    scan = tmp_path / "scan.npy"
    np.save(scan, kspace * masks.poisson(kspace.shape[1:], 3, 16, seed=0).numpy())
    assert main(["reconstruct", str(scan)]) == 0
    printed = capsys.readouterr().out
    assert "4 coils, 96 x 80" in printed
    image = nibabel.load(tmp_path / "scan-pnp.nii.gz")
    assert image.shape == (96, 80, 1)
    assert (tmp_path / "scan-pnp.png").exists()
    assert main(["reconstruct", str(scan), "--out", str(tmp_path / "array.npy")]) == 0
    assert np.allclose(
        np.load(tmp_path / "array.npy")[0], image.get_fdata()[..., 0], atol=1e-3 * image.get_fdata().max()
    )
    assert sorted(path.name for path in tmp_path.glob("array*")) == ["array.npy", "array.png"]
    assert main(["segment", str(scan), "--out", str(tmp_path / "labels.nii.gz")]) == 0
    labels = nibabel.load(tmp_path / "labels.nii.gz").get_fdata()
    assert labels.shape == (96, 80, 1)
    assert set(np.unique(labels)) <= {0, 1, 2, 3}


def test_segment_keeps_the_geometry(tmp_path, capsys):
    image, _ = demo.brain()
    affine = np.diag([1, 1, 4, 1])
    volume = np.moveaxis(image[:, 0].numpy(), 0, 2)
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "t1.nii.gz")
    assert main(["segment", str(tmp_path / "t1.nii.gz"), "--model", "brain-tissue"]) == 0
    labels = nibabel.load(tmp_path / "t1-labels.nii.gz")
    assert np.array_equal(labels.affine, affine)
    assert labels.shape == volume.shape
    assert labels.get_data_dtype() == np.uint8
    assert "white matter" in capsys.readouterr().out


def test_models(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "denoiser medical" in printed
    assert "segmenter brain-tissue-unet" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reconstruct", "missing.cfl"], "missing.hdr does not exist"),
        (["segment", "missing.nii.gz"], "missing.nii.gz does not exist"),
        (["reconstruct", "{image}"], "expected raw k-space"),
        (["segment", "{image}", "--model", "nonsense"], "no bundled weights"),
    ],
)
def test_wrong_input_is_one_line(arguments, message, tmp_path, capsys):
    np.save(tmp_path / "image.npy", np.ones((32, 32)))
    assert main([argument.format(image=tmp_path / "image.npy") for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_module_runs():
    shown = subprocess.run([sys.executable, "-m", "pnp", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(command in shown for command in ("demo", "reconstruct", "segment", "models"))


def test_evaluate(tmp_path, capsys):
    image, labels = demo.brain()
    slices = {"images": image[:2, 0, 50:114, 50:114].numpy(), "masks": (labels[:2, 50:114, 50:114] == 3).numpy()}
    np.savez(tmp_path / "slices.npz", **slices)
    command = ["evaluate", "vertebra", str(tmp_path / "slices.npz"), "--count", "2", "--out", str(tmp_path / "out")]
    assert main([*command, "--solvers", "oracle,direct,cg,tv"]) == 0
    assert "Table of 2 cases x 3 operators x 4 solvers" in capsys.readouterr().out
    assert len((tmp_path / "out" / "rows.csv").read_text().splitlines()) == 1 + 2 * 3 * 4
    assert (tmp_path / "out" / "dice-psnr.png").exists()
    assert main(["evaluate", "brain-tissue", str(tmp_path / "slices.npz")]) == 2
    assert "--labels: expected" in capsys.readouterr().err


def test_batch(kspace, tmp_path, capsys):
    folder = tmp_path / "scans"
    folder.mkdir()
    np.save(folder / "raw.npy", kspace)
    np.save(folder / "image.npy", np.abs(np.fft.ifft2(kspace[0])).astype(np.float32))
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("not an image")
    assert main(["batch", str(folder)]) == 2
    shown = capsys.readouterr()
    assert "1 of 3 files failed: broken.nii.gz" in shown.err
    out = tmp_path / "scans-pnp"
    assert {path.name for path in out.iterdir()} == {
        "batch.csv", "raw.nii.gz", "raw-labels.nii.gz", "image-labels.nii.gz"
    }  # fmt: skip
    table = pandas.read_csv(out / "batch.csv").set_index("file")
    assert table.loc["raw.npy", ["CSF", "grey matter", "white matter"]].sum() > 0
    (folder / "broken.nii.gz").unlink()
    assert main(["batch", str(folder)]) == 0  # nothing is left to do
    assert capsys.readouterr().out.startswith("2 of 2 files are done already")
    np.save(folder / "image.npy", np.zeros((8, 40, 40), np.float32) + kspace.real[0, :40, :40])
    assert main(["batch", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "image.npy: done" in shown
    assert "raw.npy: done" not in shown
    assert len(pandas.read_csv(out / "batch.csv")) == 2


def test_batch_with_another_model_and_files_of_one_name(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "scans"
    folder.mkdir()
    image = np.random.default_rng(0).random((1, 32, 32)).astype(np.float32)
    np.save(folder / "a.npy", image)
    nibabel.save(nibabel.Nifti1Image(image[0], np.eye(4)), folder / "a.nii.gz")
    monkeypatch.chdir(folder)
    for model in ("brain-tissue", "vertebra"):
        assert main(["batch", ".", "--model", model]) == 0
        table = pandas.read_csv(tmp_path / "scans-pnp" / "batch.csv").set_index("file")
        assert list(table["model"]) == [model] * 2
    assert "vertebra" in table.columns
    assert table.loc["a.npy", "unit"] == "pixels"
    assert {path.name for path in (tmp_path / "scans-pnp").glob("*labels*")} == {
        "a.npy-labels.nii.gz", "a.nii.gz-labels.nii.gz"
    }  # fmt: skip


def test_labels_as_dicom(tmp_path, capsys):
    np.save(tmp_path / "image.npy", np.random.default_rng(0).random((2, 32, 32)).astype(np.float32))
    out = tmp_path / "labels.dcm"
    assert main(["segment", str(tmp_path / "image.npy"), "--out", str(out)]) == 0
    assert pydicom.dcmread(out).SegmentSequence[0].SegmentLabel == "CSF"
