"""The main job on a brain that ships with the package: measure, reconstruct, segment, compare."""

from __future__ import annotations

import json
import time
from importlib import resources
from pathlib import Path

import numpy as np
import torch

import denoisers
import operators
import segmentation
from denoisers.weights import replace
from operators.mri import to_complex
from pnp import quality, report
from pnp.solver import solve
from segmentation import metrics

METHODS = {"zero filling": "direct", "CG-SENSE": "cg", "pnp.solve": None}


def brain() -> tuple[torch.Tensor, torch.Tensor]:
    """T1 slices (B, 1, H, W) in [0, 1] and tissue labels (B, H, W) of the ICBM152 template (``pnp/data/NOTICE``)."""
    with resources.as_file(resources.files("pnp") / "data" / "icbm152.npz") as path, np.load(path) as arrays:
        image, labels = arrays["image"], arrays["labels"]
    return torch.from_numpy(image).float()[:, None] / image.max(), torch.from_numpy(labels).long()


def with_phase(image: torch.Tensor) -> torch.Tensor:
    """Complex images (B, 2, H, W) of magnitudes (B, 1, H, W), with a smooth phase as scanners leave it."""
    v, u = torch.meshgrid(*(torch.linspace(-1, 1, n, device=image.device) for n in image.shape[-2:]), indexing="ij")
    phase = 0.6 * u - 0.9 * v + 0.8 * u * v + 0.5 * v**2
    return torch.cat([image * phase.cos(), image * phase.sin()], 1)


def measure(image: torch.Tensor, acceleration: float, coils: int = 8, noise: float = 0.01, seed: int = 0):
    """Simulated undersampled multi-coil k-space of magnitude images, coil sensitivities estimated from it.

    :param image: (B, 1, H, W), in [0, 1].
    :param acceleration: of the random Cartesian mask with 24 calibration lines.
    :param coils: coils on a ring around the image.
    :param noise: standard deviation of real and imaginary part of the noise in k-space.
    :return: operator, measurements (B, 2, N, H, W), and the complex image (B, 2, H, W) that was measured.
    """
    height, width = image.shape[-2:]
    truth = with_phase(image)
    mask = operators.masks.cartesian((height, width), acceleration, calibration=24, seed=seed)
    scanner = operators.MRI(mask, operators.coils.birdcage((height, width), coils))
    y = scanner.A(truth)
    y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)) * mask
    maps = torch.stack([operators.coils.espirit(kspace) for kspace in to_complex(y)])
    return operators.MRI(mask, maps), y, truth


def run(out: str | Path = "pnp-demo", acceleration: float = 4, noise: float = 0.01, progress: bool = True) -> dict:
    """Measure the template with 8 coils, reconstruct it in three ways, segment each, and write a report.

    :param out: folder for ``report.html`` (self-contained), ``figure.png`` and ``results.json``.
    :param acceleration: undersampling factor.
    :param noise: noise in k-space, relative to the brightest pixel.
    :return: what ``results.json`` holds.
    """
    began = time.perf_counter()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    image, labels = brain()
    body = image[:, 0] > 0
    denoiser, segmenter = denoisers.load("medical"), segmentation.load("brain-tissue")
    classes = segmenter.classes
    op, y, truth = measure(image, acceleration, noise=noise)

    rows, pictures, maps = [], {}, {}
    solutions = {}
    for name, algorithm in METHODS.items():
        solutions[name] = solve(op, y, denoiser, algorithm=algorithm, progress=progress and algorithm is None)
    images = {"fully sampled": truth} | {name: solution.x for name, solution in solutions.items()}
    for name, x in images.items():
        found = segmenter.predict(x)
        dice = metrics.dice(found, labels, len(classes), pooled=True)[0]
        row = {"method": name, "psnr": None, "ssim": None, "seconds": None}
        if name in solutions:
            row["psnr"] = quality.psnr(x, truth, body).mean().item()
            row["ssim"] = quality.ssim(x, truth, body).mean().item()
            row["seconds"] = solutions[name].seconds / len(x)
        rows.append(row | {f"dice {tissue}": value for tissue, value in zip(classes[1:], dice.tolist())})
        pictures[name], maps[name] = quality.magnitude(x), found

    results = {
        "data": "ICBM152 2009a T1 template, three axial slices",
        "acceleration": acceleration,
        "coils": y.shape[2],
        "noise": noise,
        "noise_estimated": float(torch.as_tensor(solutions["pnp.solve"].noise).mean()),
        "rows": rows,
        "seconds": round(time.perf_counter() - began, 1),
    }
    figure = report.comparison(pictures, maps, labels, classes)
    report.write_figure(figure, out / "figure.png")
    report.write(
        out / "report.html",
        title=f"A brain from {acceleration:g} times fewer measurements",
        introduction=(
            f"The ICBM152 T1 template, measured with {y.shape[2]} coils, {acceleration:g}x undersampled, with noise; "
            "coil sensitivities and noise level estimated from the measurements. Each reconstruction is segmented by "
            "the same network. PSNR and SSIM within the brain; Dice against the template's own tissue maps."
        ),
        rows=rows,
        figure=figure,
        sliders=[("zero filling", "pnp.solve", pictures["zero filling"][1], pictures["pnp.solve"][1])],
    )
    replace(out / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    return results
