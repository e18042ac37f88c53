"""Files of the field: raw k-space, NIfTI and DICOM in; NIfTI, PNG and NumPy out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from denoisers.data import is_dicom
from pnp import dicom
from pnp.raw import cartesian_mri


@dataclass
class Scan:
    """What a file holds.

    :param path: the file or folder.
    :param y: measurements (1, 2, [N,] H, W) of a raw-data file, whitened, else None.
    :param op: the forward operator of ``y``, so that ``pnp.solve(scan.op, scan.y, denoiser)`` reconstructs.
    :param image: slices (B, 1, H, W) of an image file, in its units, else None.
    :param affine: 4 x 4 map from voxel numbers to millimetres (right, anterior, superior), of image files.
    :param spacing: voxel size in mm, of image files that tell it, else None.
    :param slice_axis: array axis of the volume that ``image`` runs through with its first axis.
    :param metadata: what else was found; of DICOM, the ``files`` of the slices.
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
WRITTEN = (".nii", ".nii.gz", ".dcm", ".npy", ".png")


def readable(path: Path) -> bool:
    """Whether :func:`load` takes a file or folder, by its name."""
    named = path.name.lower().endswith(ENDINGS) and not path.name.startswith(".")
    return bool(dicom.series(path)) if path.is_dir() else named


def load(path: str | Path) -> Scan:
    """Read raw k-space or an image.

    Complex ``.npy`` arrays (N, H, W), coils first, or (H, W), and BART's ``.cfl``/``.hdr`` are raw data: mask, coil
    sensitivities and noise are found, see :func:`pnp.raw.cartesian_mri`. NIfTI (complex ones by their magnitude), DICOM
    (a file or a folder of a series) and real ``.npy`` arrays are images. Volumes become slices across their coarsest
    axis.

    :raises FileNotFoundError: where there is no such file.
    :raises ValueError: for a damaged file, or one of another kind.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending in (".cfl", ".hdr"):
        return _raw(path, read_cfl(path))
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    if ending == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"path: {path} is not a complete .npy file: {error}") from None
        if np.iscomplexobj(array):
            return _raw(path, array)
        if array.ndim not in (2, 3) or array.dtype.kind not in "iuf" or not array.size:
            raise ValueError(
                f"path: expected a numeric array (H, W) or (D, H, W) in {path}, got {array.dtype} {array.shape}"
            )
        if array.ndim == 3 and array.dtype == np.uint8 and array.shape[-1] in (3, 4):
            raise ValueError(f"path: expected grey images (H, W) or (D, H, W) in {path}, got colours {array.shape}")
        volume, axis = (array[..., None], 2) if array.ndim == 2 else (array, 0)
        return _image(path, volume, np.eye(4), axis, told=False)
    if path.name.lower().endswith((".nii", ".nii.gz")):
        return _nifti(path)
    if path.is_dir() or path.suffix.lower() == ".dcm" or is_dicom(path):
        volume, affine, told, metadata = dicom.read(path)
        return _image(path, volume, affine, 0, metadata, told)
    raise ValueError(f"path: expected .cfl, .npy, .nii, .nii.gz, DICOM or a folder of DICOM files, got {path.name}")


def save(
    path: str | Path,
    image_or_labels: Tensor | np.ndarray,
    like: Scan | None = None,
    classes: tuple[str, ...] | None = None,
) -> Path:
    """Write an image or a label map; an existing file is replaced only once the new one is complete.

    :param path: ``.nii`` or ``.nii.gz`` (keeps the affine of ``like``); ``.dcm``: of one image a file, of several a
        folder of that name with a file for each, in the study of ``like``, of labels a DICOM segmentation; ``.npy``; or
        ``.png`` (the middle slice).
    :param image_or_labels: images (B, 1, H, W), complex ones (B, 2, H, W), whose magnitude is written, a volume
        (1, 1 or 2, D, H, W), or labels (B, H, W) of integers; integers of other shapes are an image.
    :param like: the scan that it belongs to, which gives the geometry.
    :param classes: names of the classes, the background first, for a DICOM segmentation.
    :raises ValueError: for another file name or shape, or one that is not that of ``like``.
    :raises FileExistsError: for DICOM, where ``path`` is a folder already.
    """
    path, array, integer = Path(path), *_array(image_or_labels)
    if like is not None and like.image is not None and (like.image.shape[0], *like.image.shape[2:]) != array.shape:
        raise ValueError(
            f"like: expected a scan of {array.shape[0]} slices of {array.shape[1:]}, got {tuple(like.image.shape)}"
        )
    name = path.name.lower()
    ending = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    if ending not in WRITTEN:
        raise ValueError(f"path: expected a name ending in .nii, .nii.gz, .dcm, .npy or .png, got {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if ending == ".dcm":
        if integer:
            return dicom.write_segmentation(path, array, like, classes)
        return dicom.write_series(path, array, like)
    temporary = path.with_name(f".{path.name[: -len(ending)]}.part{ending}")
    if ending in (".nii", ".nii.gz"):
        axis, affine = (2, np.eye(4)) if like is None or like.affine is None else (like.slice_axis, like.affine)
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(array, 0, axis), affine), temporary)
    elif ending == ".npy":
        np.save(temporary, array)
    else:
        _save_picture(temporary, array[len(array) // 2], integer)
    os.replace(temporary, path)
    return path


def _array(image_or_labels: Tensor | np.ndarray) -> tuple[np.ndarray, bool]:
    """Slices (B, H, W), of complex images magnitudes, of labels small integers; and whether they are labels."""
    if not isinstance(image_or_labels, Tensor):  # torch knows neither all integers nor the other order of bytes
        array = np.asarray(image_or_labels)
        known = np.int64 if array.dtype.kind in "iub" else array.dtype.newbyteorder("=")
        image_or_labels = torch.from_numpy(array.astype(known))
    values = image_or_labels.detach().cpu()
    labels = values.ndim == 3 and not (values.is_floating_point() or values.is_complex())
    shape = tuple(values.shape)
    values = values.abs() if values.is_complex() else values
    if values.ndim == 5 and len(values) == 1:
        values = values[0].movedim(1, 0)
    if values.ndim == 4 and values.shape[1] == 2:
        values = torch.linalg.vector_norm(values.float(), dim=1, keepdim=True)
    if values.ndim == 4 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 3 or not values.numel():
        raise ValueError(f"image_or_labels: expected (B, 1, H, W), (B, 2, H, W) or (B, H, W), got {shape}")
    if values.is_floating_point():
        return values.float().numpy(), labels
    small = values.min().item() >= 0 and values.max().item() < 256
    return values.numpy().astype(np.uint8 if small else np.int32), labels


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
    elif array.ndim == 3 and array.shape[-1] < min(32, array.shape[0] / 2):
        raise ValueError(f"path: expected k-space with coils first (N, H, W) in {path}, got {array.shape}: coils last?")
    op, y, metadata = cartesian_mri(torch.from_numpy(np.ascontiguousarray(array, np.complex64)))
    return Scan(path, y, op, metadata=metadata)


def _image(path: Path, volume: np.ndarray, affine: np.ndarray, axis=None, metadata=None, told: bool = True) -> Scan:
    spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    if axis is None:  # across the shortest axis of a slab, or the coarsest one; of isotropic volumes, axial slices
        thin = int(np.argmin(volume.shape))
        if 4 * volume.shape[thin] <= sorted(volume.shape)[1]:  # a slab's slices, whatever their distance
            axis = thin
        else:
            uneven = max(spacing) > 1.2 * min(spacing)
            axis = int(np.argmax(spacing)) if uneven else int(np.argmax(np.abs(affine[2, :3])))
    slices = np.ascontiguousarray(np.moveaxis(volume, axis, 0), np.float32)
    image = torch.from_numpy(slices)[:, None]
    return Scan(path, None, None, image, affine, spacing if told else None, axis, metadata or {})


def _nifti(path: Path) -> Scan:
    try:
        file = nibabel.load(path)
        if (kind := file.get_data_dtype().kind) == "V":
            raise ValueError("expected grey values, got colours")
        volume = np.abs(file.dataobj).astype(np.float32) if kind == "c" else file.get_fdata(dtype=np.float32)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"path: {path} is not a complete NIfTI file: {error}") from None
    volume = volume.reshape(volume.shape[:3] + tuple(n for n in volume.shape[3:] if n > 1))
    if volume.ndim == 2:
        volume = volume[..., None]
    if volume.ndim != 3:
        raise ValueError(f"path: expected an image or a volume in {path.name}, got shape {volume.shape}")
    return _image(path, volume, file.affine, metadata={"orientation": "".join(nibabel.aff2axcodes(file.affine))})


def _save_picture(path: Path, image: np.ndarray, labels: bool) -> None:
    from matplotlib import image as pictures

    if labels:
        pictures.imsave(path, image, cmap="viridis")
    else:
        low, high = min(float(image.min()), 0.0), float(np.percentile(image, 99.8))
        pictures.imsave(path, image, cmap="gray", vmin=low, vmax=high if high > low else low + 1)
