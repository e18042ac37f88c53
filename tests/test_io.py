"""Reading and writing files, and finding an operator in raw data."""

from __future__ import annotations

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

import operators
import pnp
from operators import masks
from pnp import io, quality, raw


def write_cfl(path, array):
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel("F").tofile(path.with_suffix(".cfl"))


@pytest.fixture
def undersampled(kspace):
    return kspace * masks.poisson(kspace.shape[1:], 3, 16, seed=0).numpy()


def test_raw_files_of_either_format_are_the_same(undersampled, tmp_path):
    np.save(tmp_path / "scan.npy", undersampled)
    write_cfl(tmp_path / "scan", undersampled.transpose(1, 2, 0)[None])  # as scanners' readout is the first
    write_cfl(tmp_path / "other", undersampled.transpose(1, 2, 0)[:, :, None])
    first, second, third = (io.load(tmp_path / name) for name in ("scan.npy", "scan.cfl", "other.hdr"))
    assert torch.equal(first.y, second.y)
    assert torch.equal(first.y, third.y)
    assert torch.equal(first.op.maps, second.op.maps)
    assert first.metadata["coils"] == 4
    assert first.metadata["acceleration"] == pytest.approx(3, rel=0.02)
    assert min(first.metadata["calibration"]) >= 16


def test_raw_data_is_white(kspace):
    """Noise that is correlated between the coils, and strong enough to be all there is in the periphery."""
    rng = np.random.default_rng(0)
    mixing = 0.05 * (np.eye(4) + 0.4 * rng.standard_normal((4, 4)))
    noise = rng.standard_normal((4, 96, 80)) + 1j * rng.standard_normal((4, 96, 80))
    noisy = kspace + np.einsum("ij,jhw->ihw", mixing, noise).astype(np.complex64)
    _, y, found = raw.cartesian_mri(torch.from_numpy(noisy))
    assert found["noise"] == pytest.approx(np.linalg.norm(mixing, axis=1), rel=0.25)
    periphery = torch.cat([y[..., :6, :].flatten(3), y[..., -6:, :].flatten(3)], -1)[0]
    covariance = operators.coils.noise_covariance(torch.complex(*periphery))
    assert (covariance - torch.eye(4)).abs().max() < 0.3


def test_raw_data_is_reconstructed(kspace, undersampled, medical):
    whole = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    reference = torch.from_numpy(np.sqrt((np.abs(whole) ** 2).sum(0)))[None, None].float()
    op, y, _ = raw.cartesian_mri(torch.from_numpy(undersampled))
    x = pnp.solve(op, y, medical).x
    signal = reference[:, 0] > 0.1 * reference.max()
    zero_filled = operators.MRI(op.mask, operators.coils.espirit(torch.from_numpy(kspace))).A_adjoint(
        torch.view_as_real(torch.from_numpy(undersampled)[None]).movedim(-1, 1).contiguous()
    )
    assert quality.psnr(x, reference, signal) > 28
    assert quality.psnr(x, reference, signal) > quality.psnr(zero_filled, reference, signal) + 3


def test_few_calibration_lines(kspace, brain, medical):
    """Windows of k-space as large as the calibration region would leave no null space, and hardly a pixel."""
    mask = masks.cartesian((96, 80), 2, 10, seed=0)
    op, y, found = raw.cartesian_mri(torch.from_numpy(kspace) * mask)
    assert found["calibration"][1] == 10
    x = pnp.solve(op, y, medical).x
    assert quality.psnr(x * brain.max() / quality.magnitude(x).max(), brain) > 30


def test_many_coils_are_compressed(kspace):
    mixing = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 4)))[0]
    rng = np.random.default_rng(1)
    noise = 0.003 * (rng.standard_normal((20, 96, 80)) + 1j * rng.standard_normal((20, 96, 80)))
    many = np.einsum("ij,jhw->ihw", mixing, kspace) + noise
    op, y, found = raw.cartesian_mri(torch.from_numpy(many.astype(np.complex64)))
    assert found["virtual coils"] == y.shape[2] == op.maps.shape[1] == 12


def test_single_coil(kspace):
    op, y, found = raw.cartesian_mri(torch.from_numpy(kspace[0]))
    assert op.maps is None
    assert y.shape == (1, 2, 96, 80)
    assert found["calibration"] is None


def test_real_scan(data, medical):
    """Accelerated raw data as a scanner wrote it, against the fully sampled scan."""
    scan = io.load(data / "kspace8ch" / "und2x2.cfl")
    assert scan.metadata["acceleration"] == pytest.approx(3.6, abs=0.5)
    full = np.load(data / "kspace8ch" / "full.npy")
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(full, axes=(1, 2)), norm="ortho"), axes=(1, 2))
    reference = torch.from_numpy(np.sqrt((np.abs(images) ** 2).sum(0)))[None, None]
    signal = reference[:, 0] > 0.06 * reference.max()
    x = pnp.solve(scan.op, scan.y, medical).x
    assert quality.psnr(x, reference, signal) > 33


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.nii.gz", None, FileNotFoundError, "does not exist"),
        ("missing.cfl", None, FileNotFoundError, "pair of .hdr and .cfl"),
        ("text.txt", b"hello", ValueError, "expected .cfl, .npy"),
        ("broken.nii.gz", b"hello", ValueError, "not a complete NIfTI"),
        ("broken.npy", b"\x93NUMPY\x01\x00", ValueError, "not a complete .npy"),
        ("broken.dcm", b"hello", ValueError, "not a complete DICOM"),
    ],
)
def test_bad_files(name, content, error, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        io.load(tmp_path / name)


def test_bad_raw_data(kspace, tmp_path):
    write_cfl(tmp_path / "scan", kspace.transpose(1, 2, 0)[None])
    file = tmp_path / "scan.cfl"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match="truncated: expected 30720 values"):
        io.load(file)
    write_cfl(tmp_path / "volume", np.ones((4, 8, 8, 2)))
    with pytest.raises(ValueError, match="expected 2-D k-space"):
        io.load(tmp_path / "volume.cfl")
    for array, message in [
        (np.zeros((4, 32, 32), np.complex64), "only zeros"),
        (np.full((4, 32, 32), np.nan, np.complex64), "finite"),
        (np.ones((2, 2, 32, 32), np.complex64), r"shape \(N, H, W\)"),
    ]:
        np.save(tmp_path / "bad.npy", array)
        with pytest.raises(ValueError, match=message):
            io.load(tmp_path / "bad.npy")
    kspace = kspace.copy()
    kspace[:, :, 1::2] = 0
    np.save(tmp_path / "bad.npy", kspace)
    with pytest.raises(ValueError, match="fully sampled centre"):
        io.load(tmp_path / "bad.npy")


def test_nifti_keeps_its_geometry(tmp_path):
    rng = np.random.default_rng(0)
    volume = rng.random((12, 6, 10)).astype(np.float32)
    affine = np.array([[0, 0, -1.0, 5], [2.0, 0, 0, -3], [0, 3.0, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "image.nii.gz")
    scan = io.load(tmp_path / "image.nii.gz")
    assert scan.slice_axis == 1  # the coarsest
    assert scan.image.shape == (6, 1, 12, 10)
    assert scan.spacing == pytest.approx((2, 3, 1))
    for written in (scan.image, (scan.image[:, 0] > 0.5).long()):
        back = nibabel.load(io.save(tmp_path / "out.nii.gz", written, like=scan))
        assert np.allclose(back.affine, affine)
        expected = volume if written.is_floating_point() else volume > 0.5
        assert np.allclose(back.get_fdata(), expected)
    assert not list(tmp_path.glob(".*part*"))


def test_dicom_series(tmp_path):
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    original = template.pixel_array
    for i, z in enumerate((10.0, 0.0, 5.0)):
        template.ImagePositionPatient = [1.0, 2.0, z]
        template.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        template.PixelData = (original + int(z)).astype(original.dtype).tobytes()
        template.save_as(tmp_path / f"{i}.dcm")
    scan = io.load(tmp_path)
    shift = float(template.RescaleIntercept)
    assert scan.image.shape == (3, 1, 128, 128)
    assert [(scan.image[i, 0].numpy() - original - shift).mean() for i in range(3)] == pytest.approx([0, 5, 10])
    row, column = (float(s) for s in template.PixelSpacing)
    assert scan.spacing == pytest.approx((5, row, column))
    assert np.allclose(scan.affine @ [1, 0, 0, 1], [-1, -2, 5, 1])  # the second slice, in right-anterior-superior
    assert scan.metadata["modality"] == "CT"


def test_saving_errors(tmp_path):
    with pytest.raises(ValueError, match="path: expected a name"):
        io.save(tmp_path / "image.xyz", torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="image_or_labels: expected"):
        io.save(tmp_path / "image.png", torch.zeros(4))
    io.save(tmp_path / "image.png", torch.rand(1, 2, 8, 8))
    assert io.load(io.save(tmp_path / "image.npy", torch.rand(3, 1, 8, 8))).image.shape == (3, 1, 8, 8)


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 1), (64, 48, 3)])
def test_slabs_are_cut_across_their_shortest_axis(shape, tmp_path):
    """Whatever the distance of their slices is said to be."""
    volume = np.random.default_rng(0).random(shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.5, 1.5, 1, 1])), tmp_path / "slab.nii.gz")
    scan = io.load(tmp_path / "slab.nii.gz")
    assert scan.image.shape == (1 if len(shape) < 3 else shape[2], 1, 64, 48)


def scan_of(tmp_path):
    """A volume along patient axes in an order and with signs of their own."""
    volume = np.random.default_rng(0).random((12, 6, 10)).astype(np.float32)
    affine = np.array([[0, 0, -1.0, 5], [-2.0, 0, 0, -3], [0, 3.0, 0, 7], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "head.nii.gz")
    return io.load(tmp_path / "head.nii.gz")


def test_dicom_out_and_in(tmp_path):
    scan = scan_of(tmp_path)
    back = io.load(io.save(tmp_path / "series.dcm", scan.image, like=scan))
    torch.testing.assert_close(back.image, scan.image, atol=1e-4, rtol=0)  # 16 bits
    voxel = np.array([2, 3, 4, 1])  # slice, row and column; the file has rows, slices and columns
    np.testing.assert_allclose(back.affine @ voxel, scan.affine @ voxel[[1, 0, 2, 3]], atol=1e-5)
    assert back.spacing == pytest.approx((3, 2, 1))
    derived = io.load(io.save(tmp_path / "again.dcm", 2 * back.image, like=back))
    first, second = (pydicom.dcmread(s.metadata["files"][0]) for s in (back, derived))
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    one = io.save(tmp_path / "one.dcm", scan.image[:1])
    assert one.is_file()
    torch.testing.assert_close(io.load(one).image, scan.image[:1], atol=1e-4, rtol=0)
    for written in (scan.image, (scan.image[:, 0] > 0.5).long()):  # a folder may hold what cannot be had again
        with pytest.raises(FileExistsError, match="is a folder already"):
            io.save(tmp_path / "series.dcm", written, like=scan)
    assert len(list((tmp_path / "series.dcm").iterdir())) == 6
    assert not list(tmp_path.glob(".*part*"))


def test_dicom_segmentations(tmp_path):
    """Each slice's labels are found by the slice that they refer to."""
    from highdicom.seg import segread

    scan = scan_of(tmp_path)
    series = io.load(io.save(tmp_path / "series.dcm", scan.image, like=scan))
    labels = (series.image[:, 0] > 0.3).long() + (series.image[:, 0] > 0.8).long()
    path = io.save(tmp_path / "labels.dcm", labels, like=series, classes=("background", "grey", "white"))
    found = segread(path)
    assert [found.get_segment_description(k).segment_label for k in (1, 2)] == ["grey", "white"]
    instances = [pydicom.dcmread(file).SOPInstanceUID for file in series.metadata["files"]]
    pixels = found.get_pixels_by_source_instance(instances, combine_segments=True)
    assert np.array_equal(pixels, labels.numpy())
    assert segread(io.save(tmp_path / "plain.dcm", labels, like=scan)).number_of_segments == 2
    assert segread(io.save(tmp_path / "none.dcm", 0 * labels, like=scan)).Modality == "SEG"
    with pytest.raises(ValueError, match="classes: expected names of 3 classes, got 2"):
        io.save(tmp_path / "labels.dcm", labels, like=series, classes=("background", "grey"))
    with pytest.raises(ValueError, match="like: expected a scan of 5 slices"):
        io.save(tmp_path / "labels.dcm", labels[:5], like=series)


def write_slices(folder, positions, **changes):
    folder.mkdir()
    template = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for number, position in enumerate(positions):
        template.ImagePositionPatient = position
        template.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        for name, values in changes.items():
            setattr(template, name, values[number])
        template.save_as(folder / f"IM{number:04d}")
    return folder


def test_dicom_series_that_are_none(tmp_path):
    at = [[0, 0, z] for z in (0, 1, 2, 3)]
    assert io.load(write_slices(tmp_path / "plain", at)).image.shape[0] == 4  # whatever the files are called
    with pytest.raises(ValueError, match="slices of one series"):
        io.load(write_slices(tmp_path / "two", at, SeriesInstanceUID=["1.2", "1.2", "1.3", "1.3"]))
    with pytest.raises(ValueError, match=r"at even distances .* some may be missing"):
        io.load(write_slices(tmp_path / "gap", [[0, 0, z] for z in (0, 1, 2, 5)]))
    with pytest.raises(ValueError, match="at different positions"):
        io.load(write_slices(tmp_path / "same", [[0, 0, 0]] * 4))
    unnamed = io.load(write_slices(tmp_path / "unnamed", at, SpecificCharacterSet=[""] * 4))
    labels = (unnamed.image[:, 0] > 0).long()
    assert pydicom.dcmread(io.save(tmp_path / "labels.dcm", labels, like=unnamed)).Modality == "SEG"
    tilted = io.load(write_slices(tmp_path / "tilted", [[0, -z, 3 * z] for z in range(4)]))
    np.testing.assert_allclose(tilted.affine @ [3, 0, 0, 1], [0, 3, 9, 1], atol=1e-6)
    white = io.load(write_slices(tmp_path / "white", at[:1], PhotometricInterpretation=["MONOCHROME1"])).image
    plain = io.load(write_slices(tmp_path / "black", at[:1])).image
    assert torch.corrcoef(torch.stack([white.flatten(), plain.flatten()]))[0, 1] < -0.99
    with pytest.raises(ValueError, match="numbers of a palette"):
        io.load(write_slices(tmp_path / "palette", at[:1], PhotometricInterpretation=["PALETTE COLOR"]))


def test_spacing_that_nothing_tells(tmp_path):
    assert io.load(io.save(tmp_path / "image.npy", torch.rand(3, 1, 8, 8))).spacing is None


def test_whatever_is_saved(tmp_path):
    complex_image = torch.randn(2, 8, 8, dtype=torch.complex64)
    torch.testing.assert_close(
        torch.from_numpy(np.load(io.save(tmp_path / "a.npy", complex_image))), complex_image.abs()
    )
    assert np.load(io.save(tmp_path / "b.npy", torch.rand(1, 2, 4, 8, 8))).shape == (4, 8, 8)
    assert np.load(io.save(tmp_path / "c.npy", torch.rand(1, 1, 8, 8).bfloat16())).dtype == np.float32
    with pytest.raises(ValueError, match="image_or_labels: expected"):
        io.save(tmp_path / "d.npy", torch.zeros(0, 1, 8, 8))


def test_coils_without_a_signal_are_left_out(undersampled):
    kspace = torch.as_tensor(undersampled)
    op, y, found = raw.cartesian_mri(torch.cat([kspace[:2], 0 * kspace[:1], kspace[2:]]))
    expected = raw.cartesian_mri(kspace)
    assert found["coils"] == len(kspace)
    torch.testing.assert_close(y, expected[1])
    torch.testing.assert_close(op.maps, expected[0].maps)


def test_labels_and_values_that_dicom_does_not_hold(tmp_path):
    labels = torch.zeros(2, 24, 24, dtype=torch.long)
    for value in (300, -1):
        labels[0, :5] = value
        with pytest.raises(ValueError, match="image_or_labels: expected labels from 0 to 255"):
            io.save(tmp_path / "labels.dcm", labels)
    image = torch.rand(2, 1, 24, 24)
    image[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image_or_labels: expected finite"):
        io.save(tmp_path / "image.dcm", image)
    assert not list(tmp_path.iterdir())
    hounsfield = torch.arange(-288, 288, dtype=torch.int16).reshape(1, 1, 24, 24)  # integers, but no labels
    torch.testing.assert_close(
        io.load(io.save(tmp_path / "ct.dcm", hounsfield)).image, hounsfield.float(), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_segmentations_are_no_series(frames, tmp_path):
    path = io.save(tmp_path / "labels.dcm", torch.ones(frames, 24, 24, dtype=torch.long))
    with pytest.raises(ValueError, match="path: expected slices with a position"):
        io.load(path)


@pytest.mark.parametrize("make", [lambda a: a.astype(np.uint16), lambda a: a[:, ::-1], lambda a: a.astype(">f4")])
def test_arrays_that_torch_does_not_know(make, tmp_path):
    array = make(100 * np.random.default_rng(0).random((2, 16, 12)).astype(np.float32))
    assert np.array_equal(np.load(io.save(tmp_path / "a.npy", array)), array)


def test_complex_and_coloured_nifti(tmp_path):
    image = (np.random.default_rng(0).standard_normal((16, 12, 2)) * (1 + 2j)).astype(np.complex64)
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "complex.nii.gz")
    found = io.load(tmp_path / "complex.nii.gz").image
    assert np.allclose(np.sort(found.flatten()), np.sort(np.abs(image).ravel()))
    colours = np.zeros((16, 12, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "colours.nii.gz")
    with pytest.raises(ValueError, match="got colours"):
        io.load(tmp_path / "colours.nii.gz")


def test_axes_in_the_wrong_order(kspace, tmp_path):
    np.save(tmp_path / "raw.npy", np.tile(kspace, (2, 1, 1)).transpose(1, 2, 0))
    with pytest.raises(ValueError, match="coils first"):
        io.load(tmp_path / "raw.npy")
    np.save(tmp_path / "picture.npy", np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="got colours"):
        io.load(tmp_path / "picture.npy")


@pytest.mark.parametrize("coils", [16, 32])
def test_many_simulated_coils_without_noise(coils, brain, medical):
    truth = torch.cat([brain, torch.zeros_like(brain)], 1)
    op = operators.MRI(masks.poisson((96, 80), 2, 24, seed=0), operators.coils.birdcage((96, 80), coils))
    y = op.A(truth)[0]
    found = pnp.solve(*raw.cartesian_mri(torch.complex(y[0], y[1]))[:2], medical, iterations=4).x
    signal = truth.norm(dim=1, keepdim=True) > 0.1
    assert quality.psnr(found * signal, truth * signal).item() > 36


def test_raw_data_in_small_units(undersampled, medical):
    one, other = (
        pnp.solve(*raw.cartesian_mri(torch.from_numpy(undersampled) * factor)[:2], medical, iterations=2).x
        for factor in (1, 1e-12)
    )
    assert (other * 1e12 - one).norm() < 1e-2 * one.norm()
