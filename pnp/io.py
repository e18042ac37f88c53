"""Files of the field: raw k-space, NIfTI and DICOM in; NIfTI, PNG and NumPy out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from denoisers.data import rescaled
from pnp.raw import cartesian_mri


@dataclass
class Scan:
    """What a file holds.

    :param path: the file or folder.
    :param y: measurements (1, 2, [N,] H, W) of a raw-data file, whitened, else None.
    :param op: the forward operator of ``y``, so that ``pnp.solve(scan.op, scan.y, denoiser)`` reconstructs.
    :param image: slices (B, 1, H, W) of an image file, in its units, else None.
    :param affine: 4 x 4 map from voxel numbers to millimetres (right, anterior, superior), of image files.
    :param spacing: voxel size in mm, of image files.
    :param slice_axis: array axis of the volume that ``image`` runs through with its first axis.
    :param metadata: what else was found.
    """

    path: Path
    y: Tensor | None = None
    op: LinearPhysics | None = None
    image: Tensor | None = None
    affine: np.ndarray | None = None
    spacing: tuple[float, ...] | None = None
    slice_axis: int = 2
    metadata: dict = field(default_factory=dict)


ENDINGS = (".cfl", ".npy", ".nii", ".nii.gz", ".dcm")


def readable(path: Path) -> bool:
    """Whether :func:`load` takes a file or folder, by its name."""
    named = path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")
    return any(path.glob("*.dcm")) if path.is_dir() else named


def load(path: str | Path) -> Scan:
    """Read raw k-space or an image.

    Complex ``.npy`` arrays (N, H, W), coils first, or (H, W), and BART's ``.cfl``/``.hdr`` are raw data: mask, coil
    sensitivities and noise are found, see :func:`pnp.raw.cartesian_mri`. NIfTI, DICOM (a file or a folder of a series)
    and real ``.npy`` arrays are images. Volumes become slices across their coarsest axis.

    :raises FileNotFoundError: where there is no such file.
    :raises ValueError: for a damaged file, or one of another kind.
    """
    path = Path(path)
    if path.suffix in (".cfl", ".hdr"):
        return _raw(path, read_cfl(path))
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"path: {path} is not a complete .npy file: {error}") from None
        if np.iscomplexobj(array):
            return _raw(path, array)
        if array.ndim not in (2, 3) or array.dtype.kind not in "iuf":
            raise ValueError(
                f"path: expected a numeric array (H, W) or (D, H, W) in {path}, got {array.dtype} {array.shape}"
            )
        return _image(path, np.atleast_3d(array) if array.ndim == 2 else array, np.eye(4), 2 if array.ndim == 2 else 0)
    if path.name.endswith((".nii", ".nii.gz")):
        return _nifti(path)
    if path.is_dir() or path.suffix.lower() == ".dcm":
        return _dicom(path)
    raise ValueError(f"path: expected .cfl, .npy, .nii, .nii.gz, .dcm or a folder of DICOM files, got {path.name}")


def save(path: str | Path, image_or_labels: Tensor | np.ndarray, like: Scan | None = None) -> Path:
    """Write an image or a label map; an existing file is replaced only once the new one is complete.

    :param path: ``.nii`` or ``.nii.gz`` (keeps the affine of ``like``), ``.npy``, or ``.png`` (the middle slice).
    :param image_or_labels: images (B, 1, H, W), complex ones (B, 2, H, W), whose magnitude is written, or labels
        (B, H, W) of integers.
    :param like: the scan that it belongs to, which gives the geometry.
    :raises ValueError: for another file name or shape.
    """
    path = Path(path)
    values = torch.as_tensor(image_or_labels).detach().cpu()
    if values.ndim == 4 and values.shape[1] == 2:
        values = torch.linalg.vector_norm(values, dim=1, keepdim=True)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3:
        raise ValueError(
            f"image_or_labels: expected (B, 1, H, W), (B, 2, H, W) or (B, H, W), got {tuple(values.shape)}"
        )
    integer = not values.is_floating_point()
    small = integer and values.min().item() >= 0 and values.max().item() < 256
    array = values.numpy().astype(np.uint8 if small else np.int32 if integer else np.float32)
    ending = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    temporary = path.with_name(f".{path.name.removesuffix(ending)}.part{ending}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending in (".nii", ".nii.gz"):
        axis, affine = (2, np.eye(4)) if like is None or like.affine is None else (like.slice_axis, like.affine)
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(array, 0, axis), affine), temporary)
    elif ending == ".npy":
        np.save(temporary, array)
    elif ending == ".png":
        _save_picture(temporary, array[len(array) // 2], integer)
    else:
        raise ValueError(f"path: expected a name ending in .nii, .nii.gz, .npy or .png, got {path.name}")
    os.replace(temporary, path)
    return path


def read_cfl(path: str | Path) -> np.ndarray:
    """BART's array ``name.cfl`` with its ``name.hdr``, as complex64 in BART's order of dimensions."""
    header, data = Path(path).with_suffix(".hdr"), Path(path).with_suffix(".cfl")
    for file in (header, data):
        if not file.exists():
            raise FileNotFoundError(f"path: {file} does not exist; BART's arrays are a pair of .hdr and .cfl")
    lines = [line for line in header.read_text().splitlines() if line and not line.startswith("#")]
    try:
        shape = [int(number) for number in lines[0].split()]
    except (IndexError, ValueError):
        raise ValueError(f"path: {header} does not hold the array's dimensions") from None
    array = np.fromfile(data, np.complex64)
    if array.size != np.prod(shape):
        raise ValueError(f"path: {data} is truncated: expected {np.prod(shape)} values for {shape}, got {array.size}")
    return array.reshape(shape, order="F")


def _raw(path: Path, array: np.ndarray) -> Scan:
    if path.suffix != ".npy":  # BART: readout, phase encoding 1 and 2, coils, ...
        shape = array.shape + (1,) * (4 - array.ndim)
        array = array.reshape(shape)
        spatial = [n for n in shape[:3] if n > 1]
        if len(spatial) != 2 or np.prod(shape[4:]) != 1:
            raise ValueError(
                f"path: expected 2-D k-space of one set in {path.name}, got dimensions {array.shape}; transform the "
                "readout of 3-D data first and save its slices one by one"
            )
        array = array.reshape(*spatial, shape[3]).transpose(2, 0, 1)
    op, y, metadata = cartesian_mri(torch.from_numpy(np.ascontiguousarray(array)).to(torch.complex64))
    return Scan(path, y, op, metadata=metadata)


def _image(path: Path, volume: np.ndarray, affine: np.ndarray, axis: int | None = None, metadata: dict | None = None):
    spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    if axis is None:  # across the shortest axis of a slab, or the coarsest one; of isotropic volumes, axial slices
        thin = int(np.argmin(volume.shape))
        if 4 * volume.shape[thin] <= sorted(volume.shape)[1]:  # a slab's slices, whatever their distance
            axis = thin
        else:
            uneven = max(spacing) > 1.2 * min(spacing)
            axis = int(np.argmax(spacing)) if uneven else int(np.argmax(np.abs(affine[2, :3])))
    slices = np.ascontiguousarray(np.moveaxis(volume, axis, 0), np.float32)
    return Scan(path, None, None, torch.from_numpy(slices)[:, None], affine, spacing, axis, metadata or {})


def _nifti(path: Path) -> Scan:
    try:
        file = nibabel.load(path)
        volume = file.get_fdata(dtype=np.float32)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"path: {path} is not a complete NIfTI file: {error}") from None
    volume = volume.reshape(volume.shape[:3] + tuple(n for n in volume.shape[3:] if n > 1))
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.ndim != 3:
        raise ValueError(f"path: expected an image or a volume in {path.name}, got shape {volume.shape}")
    return _image(path, volume, file.affine, metadata={"orientation": "".join(nibabel.aff2axcodes(file.affine))})


def _dicom(path: Path) -> Scan:
    files = sorted(path.glob("*.dcm")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"path: no .dcm files in {path}")
    try:
        slices = [pydicom.dcmread(file) for file in files]
        pixels = [rescaled(s) for s in slices]
    except (pydicom.errors.InvalidDicomError, AttributeError, ValueError, EOFError) as error:
        raise ValueError(f"path: {path} holds a file that is not a complete DICOM image: {error}") from None
    if len({array.shape for array in pixels}) > 1 or pixels[0].ndim != 2:
        raise ValueError(f"path: expected grey slices of one size in {path}, got {sorted({a.shape for a in pixels})}")
    first = slices[0]
    row, column = (
        np.array(v, float) for v in np.split(np.array(first.get("ImageOrientationPatient", [1, 0, 0, 0, 1, 0])), 2)
    )
    normal = np.cross(row, column)
    positions = [np.array(s.get("ImagePositionPatient", [0, 0, i]), float) for i, s in enumerate(slices)]
    order = np.argsort([position @ normal for position in positions])
    volume = np.stack([pixels[i] for i in order])
    height, width = (float(s) for s in first.get("PixelSpacing", [1, 1]))
    depth = (positions[order[-1]] - positions[order[0]]) @ normal / (len(order) - 1) if len(order) > 1 else 0
    depth = depth or float(first.get("SliceThickness", 0) or 1)
    affine = np.eye(4)  # of (slice, row, column), from DICOM's left-posterior to right-anterior
    affine[:3, :3] = np.stack([normal * depth, column * height, row * width], 1)
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1
    metadata = {"modality": str(first.get("Modality", "")), "series": str(first.get("SeriesInstanceUID", ""))}
    return _image(path, volume, affine, 0, metadata)


def _save_picture(path: Path, image: np.ndarray, labels: bool) -> None:
    from matplotlib import image as pictures

    if labels:
        pictures.imsave(path, image, cmap="viridis")
    else:
        low, high = min(float(image.min()), 0.0), float(np.percentile(image, 99.8))
        pictures.imsave(path, image, cmap="gray", vmin=low, vmax=high if high > low else low + 1)
