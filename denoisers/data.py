"""Images to train denoisers on: read from the formats of the field, cut into augmented patches."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from denoisers.noise import estimate_noise

HOUNSFIELD_WINDOWS = {"full": (-1000, 1000), "soft tissue": (-160, 240), "lung": (-1200, 400), "bone": (-500, 1300)}


def read_images(path: str | Path) -> list[np.ndarray]:
    """Read every image of a file or folder as float32 arrays: (H, W) slices or (D, H, W) volumes, in the file's units.

    Colours become grey.

    :param path: ``.npy``, ``.npz`` (every numeric array of images in it; boolean arrays and those named like labels,
        masks, segmentations or annotations are left out), NIfTI, DICOM (with or without a suffix), PNG, JPEG or TIFF,
        or a folder of those (searched through its subfolders; hidden files, DICOM without pixels or of segmentations,
        and files and subfolders named like labels are left out).
    :raises FileNotFoundError: where there is nothing at ``path``.
    :raises ValueError: for a file of another kind or that cannot be read, or an array that is not one of images.
    """
    path = Path(path)
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if not _left_out(file.relative_to(path)))
        images = [image for file in files if _readable(file) for image in read_images(file)]
        if not images:
            raise ValueError(f"path: no image files in {path}")
        return images
    if not path.exists():
        raise FileNotFoundError(f"path: {path} does not exist")
    try:
        return _read(path)
    except (
        OSError,
        AttributeError,
        EOFError,
        RuntimeError,
    ) as error:  # what the readers raise for files that are not what they seem
        raise ValueError(f"path: {path} cannot be read as an image: {error}") from error


def _read(path: Path) -> list[np.ndarray]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return _split(np.load(path), path)
    if suffix == ".npz":
        with np.load(path) as arrays:
            keys = [key for key in arrays.files if not _named_like_labels(key)]
            found = [_numbers(arrays, key) for key in keys]
        kept = [array for array in found if array is not None and array.ndim > 1 and max(array.shape) > 8]
        return [image for array in kept for image in _split(array, path)]
    if path.name.lower().endswith((".nii", ".nii.gz")):
        import nibabel

        array = np.squeeze(nibabel.load(path).get_fdata(dtype=np.float32))
        return [array] if array.ndim < 4 else list(np.moveaxis(array.reshape(*array.shape[:3], -1), -1, 0))
    if suffix in _PICTURES:
        from PIL import Image, ImageSequence

        with Image.open(path) as pages:
            # the modes of 16 and 32 bits are grey, and would be cut off by a conversion to 8
            grey = [page if page.mode[0] in "IF" else page.convert("L") for page in ImageSequence.Iterator(pages)]
            return [np.array(page, np.float32) for page in grey]
    if is_dicom(path):
        import pydicom

        dataset = pydicom.dcmread(path)
        if "PixelData" not in dataset:
            raise ValueError(f"path: expected DICOM with pixels, got {path}")
        return _split(rescaled(dataset), path)
    raise ValueError(f"path: expected npy, npz, NIfTI, DICOM or a picture, got {path.name}")


def rescaled(dataset) -> np.ndarray:
    """The pixels of a DICOM dataset in its units, such as Hounsfield's: (H, W), or (N, H, W) for several frames, whose
    slope and intercept may be in the functional groups, of all frames or of each."""
    photometric = dataset.get("PhotometricInterpretation", "MONOCHROME2")
    if photometric == "PALETTE COLOR":
        raise ValueError("expected grey values or colours in DICOM, got the numbers of a palette")
    pixels = dataset.pixel_array.astype(np.float32)
    if photometric == "MONOCHROME1":  # where the lowest value is white
        pixels = 2.0**dataset.BitsStored - 1 - pixels if dataset.PixelRepresentation == 0 else -1 - pixels

    def transformation(groups) -> tuple[float, float] | None:
        found = groups[0].get("PixelValueTransformationSequence") if groups else None
        return (float(found[0].RescaleSlope), float(found[0].RescaleIntercept)) if found else None

    if "RescaleSlope" in dataset:
        return pixels * float(dataset.RescaleSlope) + float(dataset.get("RescaleIntercept", 0))
    if shared := transformation(dataset.get("SharedFunctionalGroupsSequence")):
        return pixels * shared[0] + shared[1]
    frames = [transformation([frame]) for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ()]
    if frames and all(frames):
        slope, intercept = (np.array(part, np.float32).reshape(-1, 1, 1) for part in zip(*frames))
        return pixels.reshape(len(frames), *pixels.shape[-2:]) * slope + intercept
    return pixels


_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_LABELS = ("label", "mask", "seg", "annotation")


def _named_like_labels(name: str) -> bool:
    return any(word in name.lower() for word in _LABELS) or Path(name).stem.lower() == "gt"


def _left_out(file: Path) -> bool:
    """Of what a folder holds, by the names below it."""
    return any(part.startswith(".") or _named_like_labels(part) for part in file.parts)


def _numbers(arrays, key: str) -> np.ndarray | None:
    """An array of an npz file, or None for one that is not of real numbers."""
    try:
        array = arrays[key]
    except ValueError:  # of Python objects
        return None
    if np.iscomplexobj(array):
        raise ValueError(f"path: expected real images, got complex ones in {key}: take their magnitude")
    return array if array.dtype.kind in "iuf" else None


def _readable(file: Path) -> bool:
    known = {".npy", ".npz"} | _PICTURES
    name = file.name.lower()
    return file.is_file() and (file.suffix.lower() in known or name.endswith((".nii", ".nii.gz")) or _shows(file))


def _shows(file: Path) -> bool:
    """Whether a file is DICOM with pixels that are not labels."""
    if not is_dicom(file):
        return False
    import pydicom

    header = pydicom.dcmread(file, stop_before_pixels=True)
    return "Rows" in header and header.get("Modality") != "SEG"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its first bytes."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _split(array: np.ndarray, path: Path) -> list[np.ndarray]:
    """The images in an array: a plain image is one, a stack (N, H, W) is N; the last axis may be one of colours."""
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    elif array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4) and min(array.shape[-3:-1]) > 4:
        array = array[..., :3].mean(-1)
    if array.ndim not in (2, 3) or 0 in array.shape or np.iscomplexobj(array):
        found = f"{array.shape} {array.dtype}"
        raise ValueError(f"path: expected real images (H, W), (N, H, W) or with colours in {path}, got {found}")
    return [np.asarray(image, np.float32) for image in (array if array.ndim == 3 else array[None])]


@dataclass
class Source:
    """Images of one kind, with their share in the training mix.

    :param images: slices (H, W) or volumes (D, H, W), which are cut along all three axes.
    :param weight: share in the mix, relative to the other sources'.
    :param hounsfield: True for CT in Hounsfield units, which is seen through the full range half of the time and
        through random windows otherwise. Other images are scaled by their 99.9th percentile.
    :param complex: True for magnitudes of complex images (MRI): a part of the patches is multiplied by the cosine of a
        random smooth phase, since real and imaginary parts are what a solver denoises there.
    :param noisy: True for images that are themselves noisy, where clean ones are not to be had: each one's noise is
        estimated, and training recorrupts the patches (see :func:`denoisers.train`). Such CT is not windowed, since
        that would clip its noise, and nothing is kept for validation.
    :param validation: share of the images, from the end of the list, that is kept for validation: at least one where
        there are several. A lone volume gives slices nine tenths of the way through what it shows; none beyond trains.
    """

    images: list[np.ndarray]
    weight: float = 1.0
    hounsfield: bool = False
    complex: bool = False
    noisy: bool = False
    validation: float = 0.05
    held_out: list[np.ndarray] = field(init=False)
    noise: list[float] = field(init=False)

    def __post_init__(self):
        wrong = [type(image).__name__ for image in self.images if not isinstance(image, np.ndarray)]
        if not isinstance(self.images, (list, tuple)) or wrong:
            found = f"a list with {wrong[0]}" if wrong else type(self.images).__name__
            raise TypeError(f"images: expected a list of NumPy arrays, got {found}")
        if not self.images:
            raise ValueError("images: expected at least one image, got none")
        shown = [image for image in self.images if not image.size or image.min() != image.max()]
        if 0 < len(shown) < len(self.images):
            blank = len(self.images) - len(shown)
            warnings.warn(f"images: {blank} of {len(self.images)} have a single value and are left out", stacklevel=3)
            self.images = shown
        for number, image in enumerate(self.images):
            if image.ndim not in (2, 3) or 0 in image.shape or not np.isfinite(image).all():
                raise ValueError(
                    f"images: expected slices (H, W) or volumes (D, H, W) of finite values, number {number} has shape "
                    f"{image.shape} and {np.count_nonzero(~np.isfinite(image))} values that are not finite"
                )
            if not self.hounsfield and not np.percentile(image, 99.9) > 0:
                raise ValueError(
                    f"images: expected positive values, by which they are scaled, number {number} has up to "
                    f"{image.max():.4g}; for Hounsfield units set hounsfield"
                )
        if not 0 <= self.validation <= 1:
            raise ValueError(f"validation: expected a share from 0 to 1, got {self.validation}")
        if self.complex and self.noisy:
            raise ValueError("complex, noisy: expected one of the two, since random phases make noise uneven")
        if not self.hounsfield:
            self.images = [image / float(np.percentile(image, 99.9)) for image in self.images]
        if self.noisy:
            if self.hounsfield:
                low, high = HOUNSFIELD_WINDOWS["full"]
                self.images = [(image - low) / (high - low) for image in self.images]
            self.held_out, self.noise = [], [_noise(image) for image in self.images]
            return
        self.noise = [0.0] * len(self.images)
        lone_volume = len(self.images) == 1 and self.images[0].ndim == 3
        images = _shown(self.images[0]) if lone_volume else self.images
        kept = max(round(self.validation * len(images)), self.validation > 0)
        kept = kept if len(images) > 1 or self.validation == 1 else 0
        kept, self.held_out = images[: len(images) - kept], list(images[len(images) - kept :])
        self.images = [kept] if lone_volume else kept

    @property
    def described(self) -> str:
        """Flags, weight and a checksum of the images, by which a training knows its data."""
        pixels = b"".join(image.flat[:: max(image.size // 1000, 1)].tobytes() for image in self.images)
        flags = [name for name in ("hounsfield", "complex", "noisy") if getattr(self, name)]
        return " ".join((f"{len(self.images)} images", f"weight {self.weight:g}", *flags, f"{zlib.crc32(pixels):08x}"))

    def patch(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """One random patch (size, size), augmented, and its own noise; flat ones are drawn again, up to a point."""
        window = self._window(rng)
        for _ in range(6):
            patch, noise = self._crop(size, rng)
            patch = window(patch)
            if patch.std() > 0.02 + noise:
                break
        return self._augment(patch, noise, rng)

    def validation_slices(self, count: int = 4) -> list[np.ndarray]:
        """Up to ``count`` held-out slices, evenly spread, in the range of the training patches."""
        slices = [image if image.ndim == 2 else image[len(image) // 2] for image in self.held_out]
        picked = [slices[i] for i in np.linspace(0, len(slices) - 1, min(count, len(slices))).astype(int)]
        return [_scale(image, *HOUNSFIELD_WINDOWS["full"]) if self.hounsfield else image for image in picked]

    def _window(self, rng):
        if not self.hounsfield or self.noisy:
            return lambda patch: patch
        if rng.random() < 0.5:
            low, high = HOUNSFIELD_WINDOWS["full"]
        else:
            width = np.exp(rng.uniform(np.log(250), np.log(2500)))
            low = rng.uniform(-1000, 300)
            high = low + width
        return lambda patch: _scale(patch, low, high)

    def _crop(self, size: int, rng) -> tuple[np.ndarray, float]:
        index = rng.integers(len(self.images))
        image = self.images[index]
        if image.ndim == 3:
            # thin slabs are cut along their short axis only
            axes = [axis for axis in range(3) if min(np.delete(image.shape, axis)) >= size // 2]
            axis = rng.choice(axes or [int(np.argmin(image.shape))])
            # the outer slices of a volume rarely show anything
            depth = image.shape[axis]
            image = np.moveaxis(image, axis, 0)[rng.integers(depth // 10, depth - depth // 10)]
        short = [max(size - n, 0) for n in image.shape]
        if any(short):
            image = np.pad(image, [(s // 2, s - s // 2) for s in short], mode="symmetric")
        row, column = (rng.integers(n - size + 1) for n in image.shape)
        return image[row : row + size, column : column + size], self.noise[index]

    def _augment(self, patch: np.ndarray, noise: float, rng) -> tuple[np.ndarray, float]:
        patch = np.rot90(patch, rng.integers(4))
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        if self.complex and rng.random() < 0.3:
            patch = patch * np.cos(_smooth_phase(len(patch), rng))
        elif rng.random() < 0.05:
            patch = 1 - patch
        gain = rng.uniform(0.5, 1.15)
        offset = rng.uniform(-0.1, 0.3) if rng.random() < 0.2 else 0.0
        return (gain * patch + offset).astype(np.float32), gain * noise


def _shown(volume: np.ndarray) -> np.ndarray:
    """A volume without its last slices that show little: the outer tenth, and what is empty beyond."""
    contrast = volume.std((1, 2))
    shown = np.flatnonzero(contrast > 0.1 * contrast.max())
    return volume[: shown[-1] + 1 - len(shown) // 10] if len(shown) else volume


def _noise(image: np.ndarray) -> float:
    """Standard deviation of the noise of an image, or of a volume's slices."""
    if image.ndim == 3:
        image = np.moveaxis(image, int(np.argmin(image.shape)), 0)
    found = estimate_noise(torch.from_numpy(image.astype(np.float32)).reshape(-1, 1, *image.shape[-2:]))
    found = found[found > 0]  # empty slices tell nothing
    return float(found.median()) if len(found) else 0.0


def _scale(image: np.ndarray, low: float, high: float) -> np.ndarray:
    return (np.clip(image, low, high) - low) / (high - low)


def _smooth_phase(size: int, rng) -> np.ndarray:
    u, v = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    a, b, c, d, e = rng.normal(0, [1.0, 1.0, 0.5, 0.5, 0.5])
    return rng.uniform(-np.pi, np.pi) + a * u + b * v + c * u * v + d * u**2 + e * v**2


class Patches(torch.utils.data.Dataset):
    """Endless batches of patches from several sources; batch ``patches[k]`` is the same whenever it is drawn."""

    def __init__(
        self,
        sources: dict[str, Source],
        size: int = 64,
        batch: int = 16,
        seed: int | Sequence[int] = 0,
        sigma_max: float = 1.0,
        below: bool = False,
    ):
        if not sources:
            raise ValueError("sources: expected at least one, got none")
        self.names, self.sources = list(sources), list(sources.values())
        weights = np.array([source.weight for source in self.sources], float)
        if (weights < 0).any() or weights.sum() <= 0:
            raise ValueError(f"sources: expected weights >= 0 that do not all vanish, got {weights.tolist()}")
        self.shares = weights / weights.sum()
        self.size, self.batch, self.seed, self.sigma_max, self.below = size, batch, seed, sigma_max, below

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One batch: patches (B, 1, size, size), the noise that they have (B,), the index of each one's source (B,) and
        the noise levels to train at (B,), above their own, or with ``below`` half of it at most."""
        rng = np.random.default_rng(np.append(self.seed, number))
        kinds = rng.choice(len(self.sources), self.batch, p=self.shares)
        patches, own = zip(*(self.sources[kind].patch(self.size, rng) for kind in kinds))
        own = np.array(own, np.float32)
        sigma = _noise_levels(self.batch, self.sigma_max, rng)
        sigma = np.where(self.below & (sigma < own / 2), sigma, np.maximum(sigma, 1.1 * own))
        return tuple(map(torch.from_numpy, (np.stack(patches)[:, None], own, kinds, sigma)))


def _noise_levels(count: int, highest: float, rng: np.random.Generator) -> np.ndarray:
    """60 % log-uniform over [0.5/255, highest], 40 % uniform over the range that restoration uses most."""
    wide = np.exp(rng.uniform(np.log(0.5 / 255), np.log(highest), count))
    common = rng.uniform(min(5 / 255, highest / 2), min(60 / 255, highest), count)
    return np.where(rng.random(count) < 0.6, wide, common).astype(np.float32)


def parse_source(text: str) -> tuple[str, Source]:
    """A source from the command line: ``name=path[,path...][:weight][:hu][:complex][:noisy]``."""
    name, _, rest = text.partition("=")
    if not rest:
        raise ValueError(f"source: expected name=path[,path...][:weight][:hu][:complex][:noisy], got {text!r}")
    paths, *options = rest.split(":")
    images = [image for path in paths.split(",") for image in read_images(path)]
    try:
        numbers = [float(option) for option in options if option not in ("hu", "complex", "noisy")]
    except ValueError:
        raise ValueError(f"source: expected a weight, hu, complex or noisy after the colons, got {text!r}") from None
    lowest = min(image.min() for image in images)
    source = Source(images, numbers[0] if numbers else 1.0, *(flag in options for flag in ("hu", "complex", "noisy")))
    if not source.hounsfield and lowest < -100:
        warnings.warn(f"source {name}: negative values; if these are Hounsfield units, append ':hu'", stacklevel=2)
    return name, source
