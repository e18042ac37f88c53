"""Slices with labels to train segmentation networks on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]  # image (H, W) float32, labels (H, W) uint8


def read_volume(
    image: str | Path, labels: str | Path, axes: tuple[int, ...] = (0, 1, 2), margin: int = 16
) -> list[Pair]:
    """Labelled slices of a NIfTI volume along some of its axes, resampled so that the pixels are square.

    The volume is cut to the bounding box of its labels and scaled by its 99.5th percentile there.

    :param image: NIfTI file of the image.
    :param labels: NIfTI file of the class numbers, on the same grid.
    :param axes: array axes to slice along; slices without any label are left out.
    :param margin: voxels around the labels that are kept.
    """
    import nibabel

    file = nibabel.load(image)
    volume = np.squeeze(file.get_fdata(dtype=np.float32))
    classes = np.squeeze(np.asarray(nibabel.load(labels).dataobj)).astype(np.uint8)
    if volume.shape != classes.shape or volume.ndim != 3:
        raise ValueError(f"labels: expected a volume like the image's {volume.shape}, got {classes.shape}")
    box = tuple(slice(max(p.min() - margin, 0), p.max() + margin + 1) for p in np.nonzero(classes))
    volume, classes = volume[box], classes[box]
    volume = volume / np.percentile(volume[classes > 0], 99.5)
    spacing = file.header.get_zooms()[:3]
    pairs = []
    for axis in axes:
        in_plane = np.delete(spacing, axis)
        zoom = in_plane / in_plane.min()
        for plane, plane_classes in zip(np.moveaxis(volume, axis, 0), np.moveaxis(classes, axis, 0)):
            if plane_classes.any():
                pairs.append((_resample(plane, zoom, 1), _resample(plane_classes, zoom, 0)))
    return pairs


def read_stack(path: str | Path, images: str = "images", labels: str = "masks") -> list[Pair]:
    """Labelled slices of an ``.npz`` file: ``images`` (N, H, W) and ``masks`` (N, H, W) of class numbers."""
    with np.load(path) as arrays:
        stack, classes = arrays[images], arrays[labels]
    if stack.shape != classes.shape or stack.ndim != 3:
        raise ValueError(f"path: expected (N, H, W) images and labels, got {stack.shape} and {classes.shape}")
    peak = float(stack.max()) or 1.0
    return [(image.astype(np.float32) / peak, mask.astype(np.uint8)) for image, mask in zip(stack, classes)]


def fit(array: np.ndarray, size: int) -> np.ndarray:
    """Centre an array in a square of zeros, or cut the square out of its middle."""
    out = np.zeros((size, size), array.dtype)
    source, target = [], []
    for n in array.shape:
        start, room = max((n - size) // 2, 0), max((size - n) // 2, 0)
        source.append(slice(start, start + min(n, size)))
        target.append(slice(room, room + min(n, size)))
    out[tuple(target)] = array[tuple(source)]
    return out


def _resample(plane: np.ndarray, zoom: np.ndarray, order: int) -> np.ndarray:
    if np.allclose(zoom, 1, atol=0.02):
        return np.ascontiguousarray(plane)
    from scipy import ndimage

    return ndimage.zoom(plane, zoom, order=order, grid_mode=True, mode="nearest")
