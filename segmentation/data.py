"""Slices with labels to train segmentation networks on, from the formats of the field, and their splits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from denoisers import weights as files

Pair = tuple[np.ndarray, np.ndarray]  # image (H, W) or (C, H, W) float32, labels (H, W) uint8
Labelled = tuple[str, np.ndarray, np.ndarray]  # case, image (C, H, W[, D]), labels (H, W[, D])
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def read(path: str | Path, window: tuple[float, float] | None = None) -> dict[str, list[Pair]]:
    """Read labelled images: the slices of each case by the case's name.

    :param path: ``.npz`` with ``images`` (N, H, W) or (N, H, W, 3) and ``masks`` (N, H, W), where ``names`` may name
        them; a folder in nnU-Net's layout (``dataset.json``, ``imagesTr``, ``labelsTr``); or a folder with ``images``
        and ``masks`` (or ``labels``) that hold pictures or NIfTI volumes of the same names. Volumes are cut along their
        last axis, slices of one name are one case. Labels are class numbers (in pictures, grey values or numbers of a
        palette); but for nnU-Net's, those that have 0 and a single other value in all cases together are read as 0 and
        1, and JPEG masks are cut at half of the range.
    :param window: range of intensities that is seen, such as (-160, 240) Hounsfield units; default from 0, or the 0.1th
        percentile where that is negative, to the 99.9th percentile of each case, of all its slices and channels.
    :raises FileNotFoundError: where there is nothing at ``path``.
    :raises ValueError: for another layout, shapes or grids that do not agree, or labels that are no class numbers:
        coloured masks, shades of grey, nnU-Net's regions and ignored pixels.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    if path.suffix == ".npz":
        found = _read_stack(path)
    elif (path / "dataset.json").exists():
        found = _read_nnunet(path)
    elif (path / "images").is_dir():
        found = _read_folder(path)
    else:
        raise ValueError(f"path: expected .npz, nnU-Net's layout, or a folder with images and masks, got {path}")
    if window and not window[0] < window[1]:
        raise ValueError(f"window: expected a lower and a higher intensity, got {window}")
    values = np.unique(np.concatenate([_class_numbers(name, labels) for name, _, labels in found]))
    mask = len(values) == 2 and values[0] == 0 and not (path / "dataset.json").exists()
    if not mask and (values[-1] > 2 * len(values) + 8 or len(values) > 128):  # smooth outlines, codes; some may miss
        raise ValueError(
            f"path: expected class numbers 0, 1, 2, ... as labels, got {len(values)} values up to {values[-1]}"
        )
    cases: dict[str, list[Pair]] = {}
    for name, image, labels in found:
        if image.shape[1:] != labels.shape:
            raise ValueError(f"path: {name}: expected labels {image.shape[1:]} like the image, got {labels.shape}")
        cases.setdefault(name, []).extend(_slices(image, labels > 0 if mask else labels, window))
    return cases


def _class_numbers(name: str, labels: np.ndarray) -> np.ndarray:
    values = np.unique(labels)
    if (values != values.round()).any() or values[0] < 0 or values[-1] > 255:
        raise ValueError(f"path: {name}: expected whole class numbers from 0 to 255, got {values[0]} to {values[-1]}")
    return values


def _read_stack(path: Path) -> list[Labelled]:
    with np.load(path) as arrays:
        missing = {"images", "masks"} - set(arrays.files)
        if missing:
            raise ValueError(f"path: expected arrays images and masks in {path}, {' and '.join(missing)} missing")
        images, masks = arrays["images"], arrays["masks"]
        names = [str(name) for name in (arrays["names"] if "names" in arrays.files else range(len(images)))]
    if images.shape[:3] != masks.shape or not len(images):
        raise ValueError(f"path: expected masks {images.shape[:3]} like the images, got {masks.shape}")
    if len(names) != len(images):
        raise ValueError(f"path: expected {len(images)} names like the images in {path}, got {len(names)}")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return [
        (name, np.stack([_channels_first(images[k], 2) for k in chosen], -1), np.moveaxis(masks[chosen], 0, -1))
        for name, chosen in rows.items()
    ]


def _read_nnunet(path: Path) -> list[Labelled]:
    described = json.loads((path / "dataset.json").read_text())
    ending, classes = described.get("file_ending", ".nii.gz"), described.get("labels", {})
    if "ignore" in classes or any(isinstance(value, (list, tuple)) for value in classes.values()):
        raise ValueError(f"path: expected plain classes, got regions or ignored pixels in {path / 'dataset.json'}")
    found = []
    for labels in sorted((path / "labelsTr").glob(f"*{ending}")):
        name = labels.name.removesuffix(ending)
        channels = sorted((path / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))
        if not channels:
            raise FileNotFoundError(f"path: no image {name}_0000{ending} in {path / 'imagesTr'}")
        for file in channels:
            _check_grid(file, labels)
        found.append((name, np.concatenate([_read_image(file) for file in channels]), _read_image(labels, True)[0]))
    if not found:
        raise FileNotFoundError(f"path: no labels *{ending} in {path / 'labelsTr'}")
    return found


def _read_folder(path: Path) -> list[Labelled]:
    masks = next((path / name for name in ("masks", "labels") if (path / name).is_dir()), None)
    if masks is None:
        raise ValueError(f"path: expected a folder masks or labels beside {path / 'images'}")
    images, named = _named(path / "images"), _named(masks)
    for these, others, kind, folder in ((images, named, "labels", masks), (named, images, "image", path / "images")):
        if missing := sorted(set(these) - set(others)):
            raise FileNotFoundError(f"path: no {kind} for {these[missing[0]].name} in {folder}")
    if not images:
        raise FileNotFoundError(f"path: no images in {path / 'images'}")
    for name, file in images.items():
        _check_grid(file, named[name])
    return [(name, _read_image(file), _read_image(named[name], labels=True)[0]) for name, file in images.items()]


def _named(folder: Path) -> dict[str, Path]:
    """Files by their name without what tells the format."""
    named: dict[str, Path] = {}
    for file in sorted(file for file in folder.iterdir() if not file.name.startswith(".")):
        name = file.name.removesuffix(".gz").rpartition(".")[0] or file.name
        if name in named:
            raise ValueError(f"path: expected one file of each name, got {named[name].name} and {file.name}")
        named[name] = file
    return named


def _check_grid(image: Path, labels: Path) -> None:
    """That voxels of two NIfTI files are at the same places."""
    if not all(file.name.endswith((".nii", ".nii.gz")) for file in (image, labels)):
        return
    import nibabel

    if not np.allclose(*(nibabel.load(file).affine for file in (image, labels)), atol=1e-2):
        raise ValueError(f"labels: expected {labels} on the image's grid, got another affine: resample it first")


def _read_image(file: Path, labels: bool = False) -> np.ndarray:
    """Channels first: (C, H, W), or (C, H, W, D)."""
    if file.name.endswith((".nii", ".nii.gz")):
        import nibabel

        return np.squeeze(np.asarray(nibabel.load(file).dataobj))[None]
    if file.suffix.lower() not in PICTURES:
        raise ValueError(f"path: expected pictures or NIfTI, got {file}")
    from PIL import Image

    picture = Image.open(file)
    if not labels:
        if picture.mode in ("1", "P", "RGBA", "LA", "PA", "CMYK"):
            picture = picture.convert("L" if picture.mode in ("1", "LA") else "RGB")
        return _channels_first(np.asarray(picture), 2)
    if picture.format == "JPEG":  # whose rounding leaves more than two values of a mask
        mask = np.asarray(picture.convert("L"))
        if 0 < mask.max() < 128:
            raise ValueError(f"path: expected white objects in JPEG masks, {file} has values up to {mask.max()}")
        return np.where(mask >= 128, 255, 0)[None]
    mask = np.asarray(picture)
    if mask.ndim == 3:  # opacity is the fourth channel, or the second beside grey
        mask = mask[..., : 3 if mask.shape[-1] > 2 else 1]
        if (mask != mask[..., :1]).any():
            raise ValueError(f"path: expected class numbers in masks, got colours in {file}")
        mask = mask[..., 0]
    return mask[None]


def _channels_first(image: np.ndarray, dimensions: int) -> np.ndarray:
    return np.moveaxis(image, -1, 0) if image.ndim > dimensions else image[None]


def _slices(image: np.ndarray, labels: np.ndarray, window) -> list[Pair]:
    """Images scaled to about [0, 1]; volumes cut along their last axis."""
    low, high = map(float, window or np.percentile(image, (0.1, 99.9)))
    if window is None:
        low = min(low, 0.0)
        high = high if high > low else low + 1.0
    image = (image.astype(np.float32) - low) / (high - low)
    if window:
        image = image.clip(0, 1)
    if labels.ndim == 2:
        image, labels = image[..., None], labels[..., None]
    return [
        (np.ascontiguousarray(image[..., k]), np.ascontiguousarray(labels[..., k], np.uint8))
        for k in range(labels.shape[-1])
    ]


def split(
    names: Sequence[str],
    path: str | Path | None = None,
    *,
    validation: float = 0.15,
    test: float = 0.15,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
) -> dict[str, list[str]]:
    """Share out cases at random among ``"training"``, ``"validation"`` and ``"test"``.

    :param names: names of the cases.
    :param path: JSON file that keeps the split; where it exists, its split is returned, and shares and seed ignored.
    :param validation: share of the cases for validation, one case at least unless it is 0.
    :param test: share of the cases that is set aside for testing, likewise; it is the same for all folds.
    :param folds: cut what is not set aside into that many folds, one of which validates.
    :param fold: which one, from 0.
    :param seed: seed of the order.
    :raises ValueError: for shares below 0 or above 1, where nothing would be left to train on, or where a kept split
        is of other cases or another fold.
    """
    for name, share in (("validation", validation), ("test", test)):
        if not 0 <= share < 1:
            raise ValueError(f"{name}: expected a share from 0 to 1, got {share}")
    if path is not None and Path(path).exists():
        kept = json.loads(Path(path).read_text())
        settings = {"validation": validation, "test": test, "folds": folds, "fold": fold, "seed": seed}
        if folds is not None and kept != split(names, **settings):
            raise ValueError(f"fold: {path} keeps another split; give each fold a folder of its own")
        if differing := {name for part in kept.values() for name in part} ^ set(names):
            raise ValueError(f"path: {path} is of other cases, they differ by {', '.join(sorted(differing)[:5])}")
        return kept
    order = [sorted(names)[k] for k in np.random.default_rng(seed).permutation(len(names))]
    validated, tested = (max(round(share * len(order)), int(share > 0)) for share in (validation, test))
    count, tested, rest = validated, order[:tested], order[tested:]
    if folds is None:
        validated, training = rest[:count], rest[count:]
    elif not 2 <= folds <= len(rest) or not 0 <= fold < folds:
        raise ValueError(f"folds, fold: expected 2 to {len(rest)} folds and one of them, got {folds} and {fold}")
    else:
        validated, training = rest[fold::folds], [name for k, name in enumerate(rest) if k % folds != fold]
    if not training:
        raise ValueError(f"validation, test: nothing left to train on of {len(order)} cases")
    parts = {"training": sorted(training), "validation": sorted(validated), "test": sorted(tested)}
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, (json.dumps(parts, indent=1) + "\n").encode())
    return parts


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
    truth = nibabel.load(labels)
    classes = np.squeeze(np.asarray(truth.dataobj))
    if volume.shape != classes.shape or volume.ndim != 3:
        raise ValueError(f"labels: expected a volume like the image's {volume.shape}, got {classes.shape}")
    _check_grid(Path(image), Path(labels))
    if not _class_numbers(str(labels), classes).any():
        raise ValueError(f"labels: expected at least one class in {labels}, got background only")
    classes = classes.astype(np.uint8)
    box = tuple(slice(max(p.min() - margin, 0), p.max() + margin + 1) for p in np.nonzero(classes))
    volume, classes = volume[box], classes[box]
    scale = np.percentile(volume[classes > 0], 99.5)
    if not 0 < scale < np.inf:
        raise ValueError(f"image: expected positive values where labels are, got {scale:g} in {image}")
    volume = volume / scale
    spacing = file.header.get_zooms()[:3]
    pairs = []
    for axis in axes:
        in_plane = np.delete(spacing, axis)
        zoom = in_plane / in_plane.min()
        for plane, plane_classes in zip(np.moveaxis(volume, axis, 0), np.moveaxis(classes, axis, 0)):
            if plane_classes.any():
                pairs.append((_resample(plane, zoom, 1), _resample(plane_classes, zoom, 0)))
    return pairs


def fit(array: np.ndarray, size: int) -> np.ndarray:
    """Centre the last two dimensions in a square of zeros, or cut the square out of their middle."""
    out = np.zeros((*array.shape[:-2], size, size), array.dtype)
    source, target = [...], [...]
    for n in array.shape[-2:]:
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
