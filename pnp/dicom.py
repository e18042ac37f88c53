"""DICOM: series in; derived series and segmentations out, with the geometry of the scan that they belong to."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from denoisers.data import is_dicom, rescaled

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # between DICOM's left-posterior and right-anterior coordinates
EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "Laterality", "PatientPosition",
    "ScanOptions", "EchoTime", "EchoTrainLength", "RepetitionTime",
)  # fmt: skip  # that a file must have, but need not tell


def series(path: Path) -> list[Path]:
    """The files of a folder that are DICOM images, with or without a suffix, or the one file."""
    if not path.is_dir():
        return [path]
    files = [f for f in sorted(path.iterdir()) if f.is_file() and (f.suffix.lower() == ".dcm" or is_dicom(f))]
    return [file for file in files if not file.name.startswith(".") and file.name.upper() != "DICOMDIR"]


def read(path: Path) -> tuple[np.ndarray, np.ndarray, bool, dict]:
    """Slices of a series in its units (D, H, W), in the order of their positions; the map from (slice, row, column) to
    millimetres (right, anterior, superior); whether the pixels' size is told; and metadata, with the ``files``.

    :raises ValueError: for what is no series of grey slices of one size, one orientation and even distances.
    """
    files = series(path)
    if not files:
        raise ValueError(f"path: no DICOM files in {path}")
    try:
        slices = [pydicom.dcmread(file) for file in files]
        pixels = [rescaled(s) for s in slices]
    except (pydicom.errors.InvalidDicomError, AttributeError, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(f"path: {path} holds a file that is not a complete DICOM image: {error}") from None
    first = slices[0]
    if "SharedFunctionalGroupsSequence" in first and "ImagePositionPatient" not in first:
        raise ValueError(f"path: expected slices with a position in {path}, got a multi-frame object or a segmentation")
    if len({array.shape for array in pixels}) > 1 or pixels[0].ndim != 2:
        raise ValueError(f"path: expected grey slices of one size in {path}, got {sorted({a.shape for a in pixels})}")
    if len(found := {str(s.get("SeriesInstanceUID", "")) for s in slices}) > 1:
        raise ValueError(f"path: expected the slices of one series in {path}, got those of {len(found)}")
    orientation = np.array(first.get("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), float)
    for s in slices:
        if not np.allclose(s.get("ImageOrientationPatient", orientation), orientation, atol=1e-3):
            raise ValueError(f"path: expected slices of one orientation in {path}, got several, as of a localiser")
    row, column = np.split(orientation, 2)
    normal = np.cross(row, column)
    positions = np.array([s.get("ImagePositionPatient", [0, 0, i]) for i, s in enumerate(slices)], float)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    steps = np.diff(positions @ normal)
    if len(steps) and not np.allclose(steps, np.median(steps), atol=max(0.1 * abs(np.median(steps)), 1e-3)):
        raise ValueError(
            f"path: expected slices at even distances in {path}, got {steps.min():.3g} to {steps.max():.3g} mm: some "
            "may be missing"
        )
    if len(steps) and not abs(steps).max() > 1e-3:
        raise ValueError(f"path: expected slices at different positions in {path}, got {len(order)} at the same one")
    height, width = (float(s) for s in first.get("PixelSpacing", [1, 1]))
    along = normal * float(first.get("SliceThickness", 0) or 1)  # of a single slice
    if len(order) > 1:  # not the normal itself, where the gantry is tilted
        along = (positions[-1] - positions[0]) / (len(order) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([along, column * height, row * width, positions[0]], 1)
    metadata = {
        "modality": str(first.get("Modality", "")),
        "series": str(first.get("SeriesInstanceUID", "")),
        "files": [files[k] for k in order],
    }
    return np.stack([pixels[k] for k in order]), FLIP @ affine, "PixelSpacing" in first, metadata


def write_series(path: Path, images: np.ndarray, like=None) -> Path:
    """Write images (B, H, W): one as a file, several as a folder of files ``0001.dcm`` and so on.

    They are 16-bit, with slope and intercept, as a new series of the scan's study.

    :raises ValueError: for images with NaN or infinity, which the format does not have.
    :raises FileExistsError: where ``path`` is a folder already, of which nothing is lost.
    """
    _check_free(path)
    if not np.isfinite(images).all():
        raise ValueError("image_or_labels: expected finite values for DICOM, got NaN or infinity")
    low, high = float(images.min()), float(images.max())
    slope = (high - low) / 65535 or 1.0
    datasets = headers(like, images.shape, "reconstruction")
    for dataset, image in zip(datasets, images):
        kinds = list(dataset.get("ImageType") or ())[2:] or ["AXIAL" if dataset.get("Modality") == "CT" else "OTHER"]
        dataset.ImageType = ["DERIVED", "SECONDARY", *kinds]
        dataset.SeriesDescription = (f"{dataset.get('SeriesDescription', '')} pnp").strip()
        dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", f"{low:.10g}"
        dataset.RescaleType = dataset.get("RescaleType") or ("HU" if dataset.get("Modality") == "CT" else "US")
        dataset.WindowCenter, dataset.WindowWidth = f"{(low + high) / 2:.8g}", f"{(high - low) or 1:.8g}"
        dataset.PixelData = np.round((image - low) / slope).clip(0, 65535).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
    if len(datasets) == 1:
        return _replaced(path, datasets[0])
    temporary = path.with_name(f".{path.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for number, dataset in enumerate(datasets, 1):
        dataset.save_as(temporary / f"{number:04d}.dcm", enforce_file_format=True)
    path.unlink(missing_ok=True)
    os.replace(temporary, path)
    return path


def write_segmentation(path: Path, labels: np.ndarray, like=None, classes: tuple[str, ...] | None = None) -> Path:
    """Write labels (B, H, W) as a DICOM segmentation, by highdicom, with a segment for each class but the background.

    :param classes: their names, the background first; default numbers.
    :raises ValueError: for labels that are not within 0 to 255, or names of fewer classes.
    :raises FileExistsError: where ``path`` is a folder.
    """
    _check_free(path)
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(
            f"image_or_labels: expected labels from 0 to 255 for DICOM, got {labels.min()} to {labels.max()}; number "
            "the classes anew, or write NIfTI"
        )
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    count = max(int(labels.max()), 1 if classes is None else len(classes) - 1)
    names = [str(k) for k in range(count + 1)] if classes is None else list(classes)
    if len(names) <= count:
        raise ValueError(f"classes: expected names of {count + 1} classes, got {len(names)}")
    segments = [
        SegmentDescription(
            segment_number=k,
            segment_label=names[k],
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=AlgorithmIdentificationSequence("pnp", codes.DCM.ArtificialIntelligence, "0.1"),
        )
        for k in range(1, count + 1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of patients' names that are not in today's form
        dataset = Segmentation(
            source_images=headers(like, labels.shape, None),
            pixel_array=labels.astype(np.uint8),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=900,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="pnp",
            manufacturer_model_name="pnp",
            software_versions="0.1",
            device_serial_number="0",
            omit_empty_frames=bool(labels.any()),
        )
    return _replaced(path, dataset)


def headers(like, shape: tuple[int, ...], kind: str | None) -> list[Dataset]:
    """A dataset without pixels for each of the slices (B, H, W): the scan's own, or new ones of its geometry.

    :param kind: makes them those of a new series; None for the series itself.
    """
    files = [] if like is None else like.metadata.get("files", [])
    if files:
        if len(files) != shape[0]:
            raise ValueError(f"like: expected a scan of {shape[0]} slices, got {len(files)}")
        datasets = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        for dataset in datasets:
            if not dataset.get("SpecificCharacterSet", "ISO_IR 6"):  # there, but empty, is not allowed
                del dataset.SpecificCharacterSet
    else:
        datasets = [_header(like, shape, number) for number in range(shape[0])]
    if kind is None:
        return datasets
    datasets, new = copy.deepcopy(datasets), generate_uid()
    for number, dataset in enumerate(datasets, 1):
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = new, generate_uid()
        dataset.SeriesNumber, dataset.InstanceNumber = 901, number
        dataset.Rows, dataset.Columns = shape[1:]
        dataset.file_meta = _meta(dataset)
        for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
            if name in dataset:
                delattr(dataset, name)
    return datasets


def _header(like, shape: tuple[int, ...], number: int) -> Dataset:
    """That of a slice of a scan that was no DICOM; the same whenever it is made."""
    affine, axis = (np.eye(4), 0) if like is None or like.affine is None else (like.affine, like.slice_axis)
    source = "pnp" if like is None else str(Path(like.path).resolve())
    along, down, right = _axes(affine, axis)
    position = (FLIP @ affine)[:3, 3] + number * along
    height, width = np.linalg.norm(down), np.linalg.norm(right)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[source, "image", str(number)])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[source, "study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[source, "series"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[source, "frame"])
    for name in EMPTY:
        setattr(dataset, name, None)
    dataset.PatientID = Path(source).name.split(".")[0][:60] or "pnp"
    dataset.PatientName = f"{dataset.PatientID}^"
    dataset.SeriesNumber, dataset.InstanceNumber, dataset.Manufacturer = 1, number + 1, "pnp"
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.MRAcquisitionType = "RM", "NONE", "2D"
    dataset.Rows, dataset.Columns = shape[1:]
    dataset.PixelSpacing = [f"{height:.8g}", f"{width:.8g}"]
    dataset.SliceThickness = f"{np.linalg.norm(along):.8g}"
    dataset.ImageOrientationPatient = [f"{v:.8g}" for v in (*right / width, *down / height)]
    dataset.ImagePositionPatient = [f"{v:.8g}" for v in position]
    dataset.file_meta = _meta(dataset)
    return dataset


def _axes(affine: np.ndarray, axis: int) -> np.ndarray:
    """Steps in DICOM's millimetres along the slices, the rows and the columns, which are the other two axes."""
    columns = (FLIP @ affine)[:3, :3].T
    return np.stack([columns[axis], *np.delete(columns, axis, 0)])


def _meta(dataset: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def _replaced(path: Path, dataset: Dataset) -> Path:
    temporary = path.with_name(f".{path.name}.part")
    dataset.save_as(temporary, enforce_file_format=True)
    os.replace(temporary, path)
    return path


def _check_free(path: Path) -> None:
    if path.is_dir():
        raise FileExistsError(f"path: {path} is a folder already; take another name")
