"""Three joint tasks, ready to be evaluated: brain tissue from MRI, vertebrae from CT, breast lesions from ultrasound.

Their images come from folders of the user's, laid out as described at each; the segmenters are the bundled ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import operators
import segmentation
from operators import coils, masks, trajectories
from pnp import demo
from pnp.joint.evaluation import evaluate
from pnp.joint.table import Table
from segmentation.data import fit, read, read_volume

SOLVERS = ("oracle", "direct", "cg", "tv", "wavelet", "hqs", "pnp")


@dataclass
class Task:
    """Cases, operators of rising difficulty with their noise, and a segmenter.

    :param name: name.
    :param cases: (image (1, C, H, W), labels (1, H, W)) pairs.
    :param operators: operators by name.
    :param noise: standard deviation of Gaussian noise by the operator's name, None for its own noise model.
    :param segmenter: the segmenter.
    """

    name: str
    cases: list[tuple[Tensor, Tensor]]
    operators: Mapping[str, object]
    noise: dict[str, float | None]
    segmenter: object
    solvers: tuple[str, ...] = field(default=SOLVERS)

    def evaluate(self, solvers=None, **settings) -> Table:
        """:func:`pnp.joint.evaluate` of this task; ``settings`` are its other arguments."""
        settings = {"noise": self.noise} | settings
        return evaluate(self.cases, self.operators, solvers or self.solvers, self.segmenter, **settings)


def brain_tissue(
    images: Sequence[str | Path] = (),
    labels: Sequence[str | Path] = (),
    *,
    count: int | None = None,
    size: int = 192,
    model: str = "light",
) -> Task:
    """T1 brains by multi-coil MRI: Cartesian 4x and 8x, radial 8x; 8 coils, 1 % noise, a smooth phase.

    :param images: NIfTI volumes, skull-stripped or not; slices are taken along the second axis. Without any, the three
        slices of the ICBM152 template that are in the package.
    :param labels: NIfTI volumes of 0 background, 1 ventricular CSF, 2 grey matter, 3 white matter.
    :param count: slices in all, evenly spread over the volumes, default 20 or what there is.
    :param size: side of the square images in pixels.
    :param model: the segmenter's network.
    """
    if len(images) != len(labels):
        raise ValueError(f"labels: expected a volume for each of {len(images)} images, got {len(labels)}")
    slices = [pair for paths in zip(images, labels) for pair in read_volume(*paths, axes=(1,))[15:-15]]
    if len(images) and not slices:
        raise ValueError("images: expected volumes of more than 30 labelled slices along the second axis, got fewer")
    if not slices:
        slices = [(image[0].numpy(), tissue.numpy()) for image, tissue in zip(*demo.brain())]
    cases = []
    for image, classes in _spread(slices, min(20, len(slices)) if count is None else count):
        magnitude = torch.from_numpy(fit(image, size))[None, None].clamp_min(0)
        cases.append((demo.with_phase(magnitude), torch.from_numpy(fit(classes, size))[None].long()))
    shape, maps = (size, size), coils.birdcage((size, size), 8)
    spokes = round(size * math.pi / 2 / 8)
    scanners = {
        "4x": operators.MRI(masks.cartesian(shape, 4, 20, seed=0), maps),
        "8x": operators.MRI(masks.cartesian(shape, 8, 16, seed=0), maps),
        "radial 8x": operators.NonCartesianMRI(trajectories.radial(spokes, 2 * size), shape, maps),
    }
    return Task(
        "brain tissue", cases, scanners, dict.fromkeys(scanners, 0.01), segmentation.load("brain-tissue", model=model)
    )


def vertebra(path: str | Path, *, first: int = 0, count: int = 20, model: str = "light") -> Task:
    """CT slices by parallel beams: 60 and 30 views with little noise, and 180 views at low dose (2000 photons a bin).

    :param path: images and masks as :func:`segmentation.data.read` reads them.
    :param first: first slice that is used.
    :param count: slices in all, evenly spread.
    :param model: the segmenter's network.
    """
    cases, shape = _cases(path, first, count)

    def views(number, **settings):
        return operators.ParallelBeamCT(shape, torch.arange(number) * math.pi / number, **settings)

    scanners = {
        "60 views": views(60),
        "30 views": views(30),
        "low dose": views(180, noise_model=operators.LowDose(2e3, mu=4.0 / shape[0])),
    }
    noise = {"60 views": 0.003 * shape[0], "30 views": 0.003 * shape[0], "low dose": None}
    return Task("vertebra", cases, scanners, noise, segmentation.load("vertebra", model=model))


def breast_lesion(path: str | Path, *, first: int = 0, count: int = 20, model: str = "light") -> Task:
    """Breast ultrasound, degraded further: blur that widens with depth, and noise.

    A stand-in, not a simulation of a scanner: the images are B-mode, which compresses the envelope, and the
    point-spread functions are applied to it as they are.

    :param path: images and masks as :func:`segmentation.data.read` reads them.
    :param first: first image that is used.
    :param count: images in all, evenly spread.
    :param model: the segmenter's network.
    """
    cases, shape = _cases(path, first, count)
    scanners = {f"blur {width:g}": operators.PSFUltrasound(_psf(width), shape) for width in (2, 4, 6)}
    return Task(
        "breast lesion", cases, scanners, dict.fromkeys(scanners, 0.03), segmentation.load("breast-lesion", model=model)
    )


def _psf(width: float) -> Tensor:
    """Gaussian of standard deviation ``width`` across at the deepest row, half of that at the first and along."""
    reach = 2 * math.ceil(2 * width)
    z, x = torch.meshgrid(*2 * [torch.arange(-reach, reach + 1.0)], indexing="ij")
    widths = torch.linspace(width / 2, width, 3)[:, None, None]
    psf = torch.exp(-(z**2) / 2 / (width / 2) ** 2 - x**2 / 2 / widths**2)
    return psf / psf.sum((1, 2), keepdim=True)


def _cases(path: str | Path, first: int, count: int) -> tuple[list[tuple[Tensor, Tensor]], tuple[int, int]]:
    """Images (1, 1, H, W) with labels (1, H, W), and their size."""
    pairs = [pair for pairs in read(path).values() for pair in pairs][first:]
    cases = [(torch.from_numpy(i)[None], torch.from_numpy(l)[None].long()) for i, l in _spread(pairs, count)]
    return cases, tuple(cases[0][0].shape[-2:])


def _spread(pairs: list, count: int) -> list:
    if not 1 <= count <= len(pairs):
        raise ValueError(f"count: expected 1 to {len(pairs)}, the number of slices, got {count}")
    return [pairs[k] for k in np.linspace(0, len(pairs) - 1, count).round().astype(int)]
