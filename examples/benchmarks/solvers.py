"""What is lost by not tuning: pnp.solve beside an oracle that tunes the same algorithm with the truth, and DPIR.

    python examples/benchmarks/solvers.py DATA [--algorithm hqs] [--only "CT 30 views" "ultrasound PSF"] [--noise]

For each operator, 8 real images of the fitting kind that training never saw. ``pnp.solve`` is given the operator, the
measurements and the denoiser; the oracle picks, for each image, the best of 60 settings of the same algorithm with the
same number of denoiser calls; deepinv's DPIR is given the true noise level and, where it needs it, the operator's norm.
PSNR in dB, peak 1, of the magnitude of complex images. ``--noise`` shows instead how well noise levels from 0.005 to
0.05 are found, in the units of ``OPERATORS``: the estimate in units of the truth, median of the images, lowest and
highest.
"""

import argparse
import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import deepinv
import numpy as np
import pydicom.data
import torch
import torch.nn.functional as F
from deepinv.physics.functional.blur import gaussian_blur

import denoisers
import operators
import pnp
from denoisers.data import read_images
from operators import coils, masks, trajectories
from pnp.algorithms import DouglasRachford, find
from pnp.problem import Problem

COILS = 6
NOISE_LEVELS = (0.005, 0.01, 0.02, 0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--algorithm", help="default the recommended one")
    parser.add_argument("--iterations", type=int, help="default the algorithm's")
    parser.add_argument("--denoiser", default="medical")
    parser.add_argument("--only", nargs="+", choices=list(OPERATORS), metavar="OPERATOR")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--without-oracle", action="store_true")
    parser.add_argument("--noise", action="store_true", help="noise levels instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.noise:
        return noise_levels(options)
    denoiser = denoisers.load(options.denoiser)
    algorithm = find(options.algorithm, options.iterations)
    print("| operator | noise, estimated / true | pnp.solve | oracle | loss | DPIR, true noise |\n" + "|---" * 6 + "|")
    losses = []
    for name in options.only or OPERATORS:
        op, truth, y, sigma = case(name, options)
        solution = pnp.solve(op, y, denoiser, algorithm=algorithm)
        found = scores(solution.x, truth)
        best = found if options.without_oracle else oracle(algorithm, op, y, denoiser, sigma, truth)
        losses.append((best - found).mean().item())
        peer = scores(dpir(op, y, denoiser, sigma, truth), truth)
        ratio = torch.as_tensor(solution.noise).square().mean().sqrt() / torch.as_tensor(sigma).square().mean().sqrt()
        figures = (f"{value:.2f}" for value in (ratio, found.mean(), best.mean(), losses[-1], peer.mean()))
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)
    print(f"loss: mean {np.mean(losses):.2f}, worst {max(losses):.2f} dB")


def noise_levels(options):
    print("| operator | " + " | ".join(map(str, NOISE_LEVELS)) + " |\n" + "|---" * (1 + len(NOISE_LEVELS)) + "|")
    for name in options.only or OPERATORS:
        if isinstance(OPERATORS[name][2], operators.LowDose):
            continue  # which tells
        figures = []
        for level in NOISE_LEVELS:
            op, _, y, sigma = case(name, options, level)
            found = torch.as_tensor(Problem(op, y, None).measured_noise).flatten() / sigma
            figures.append(f"{found.median():.2f} ({found.min():.2f} to {found.max():.2f})")
        print(f"| {name} | " + " | ".join(figures) + " |", flush=True)


def case(name, options, noise=None):
    """Operator, images, measurements, and the standard deviation of their noise."""
    kind, make, usual = OPERATORS[name]
    noise = usual if noise is None else noise
    truth = images(kind, options)
    op = make((options.size, options.size))
    if kind == "mri":
        truth = with_phase(truth)
    generator = torch.Generator().manual_seed(0)
    y = op.A(truth)
    if isinstance(noise, operators.LowDose):
        op.set_noise_model(noise)
        return op, truth, noise(y, seed=0), noise.std(y)
    sigma = noise * (y.abs().amax() if kind == "ct" else 1.0)
    measured = y != 0 if isinstance(op, (operators.MRI, deepinv.physics.Inpainting)) else 1.0
    return op, truth, y + sigma * torch.randn(y.shape, generator=generator) * measured, float(sigma)


def images(kind, options):
    """(B, 1, size, size) in [0, 1]."""
    data, size = options.data, options.size
    if kind == "mri":
        volume = read_images(data / "ibsr18/IBSR_04.nii.gz")[0]
        volume = volume / np.percentile(volume, 99.9)
        places = [(share, axis) for share in (0.4, 0.47, 0.54, 0.6) for axis in (0, 1, 2)]
        found = [np.take(volume, int(share * volume.shape[axis]), axis) for share, axis in places]
    elif kind == "ct":
        abdomen = hounsfield(read_images(data / "ct_hu/dcmqi_abdomen_03.dcm")[0])
        chest = hounsfield(read_images(pydicom.data.get_testdata_file("CT_small.dcm"))[0])
        vertebrae = [image / image.max() for image in read_images(data / "ct_vertebra/train.npz")[1520:1600:15]]
        found = [abdomen, abdomen[128:384, 128:384], chest, *vertebrae]
    elif kind == "ultrasound":
        found = [image / image.max() for image in read_images(data / "busi256/train.npz")[0:516][-20:]]
    else:
        found = [image / 255 for image in read_images(data / "natural/set12.npz")]
    return torch.cat([fitted(torch.from_numpy(np.array(image, np.float32)), size) for image in found[: options.images]])


def hounsfield(image):
    return (np.clip(image, -1000, 1000) + 1000) / 2000


def fitted(image, size):
    """Shrunk by a whole factor, and the middle cut out or filled up."""
    factor = max(min(image.shape) // size, 1)
    image = F.avg_pool2d(image[None, None], factor)
    height, width = image.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(image, (left, size - width - left, top, size - height - top)).clamp(0, 1)


def with_phase(image):
    rows, columns = (torch.linspace(-1, 1, n) for n in image.shape[-2:])
    phase = 0.8 * columns[None, :] + 0.6 * rows[:, None] ** 2
    return torch.cat([image * phase.cos(), image * phase.sin()], 1)


def radial(shape):
    spokes = round(shape[0] * math.pi / 2 / 8)
    return operators.NonCartesianMRI(trajectories.radial(spokes, 2 * shape[0]), shape, coils.birdcage(shape, COILS))


def cartesian(acceleration, count=COILS):
    return lambda shape: operators.MRI(
        masks.cartesian(shape, acceleration, shape[0] // 10, seed=0),
        coils.birdcage(shape, count) if count > 1 else None,
    )


def ct(views, degrees=180):
    return lambda shape: operators.ParallelBeamCT(shape, torch.arange(views) * math.radians(degrees) / views)


def low_dose(shape):
    return operators.ParallelBeamCT(shape, torch.arange(180) * math.pi / 180)


def motion(shape):
    kernel = torch.zeros(1, 1, 15, 15)
    for t in torch.linspace(-1, 1, 200).tolist():
        kernel[0, 0, round(7 + 3 * t * t), round(7 + 6 * t)] += 1
    return deepinv.physics.BlurFFT((1, *shape), kernel / kernel.sum())


def point_spread(shape):
    """Envelope of a pulse, wider across than along, and wider with depth."""
    z, x = torch.meshgrid(torch.arange(-7.0, 8), torch.arange(-7.0, 8), indexing="ij")
    psf = torch.stack([torch.exp(-(z**2) / 2 / 1.2**2 - x**2 / 2 / width**2) for width in (1.5, 2.5)])
    return operators.PSFUltrasound(psf / psf.sum((1, 2), keepdim=True), shape)


def half(shape):
    mask = (torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    return deepinv.physics.Inpainting((1, *shape), mask=mask)


OPERATORS = {  # kind of images, operator, noise: in units of the images, for CT of the sinogram's largest value
    "radial MRI x8": ("mri", radial, 0.02),
    "Cartesian MRI x4": ("mri", cartesian(4), 0.02),
    "Cartesian MRI x8": ("mri", cartesian(8), 0.01),
    "Cartesian MRI x4 one coil": ("mri", cartesian(4, 1), 0.02),
    "CT 60 views": ("ct", ct(60), 0.005),
    "CT 30 views": ("ct", ct(30), 0.005),
    "CT 120 degrees": ("ct", ct(80, 120), 0.005),
    "CT low dose": ("ct", low_dose, operators.LowDose(1e4, mu=0.04)),
    "Gaussian blur": ("natural", lambda s: deepinv.physics.BlurFFT((1, *s), gaussian_blur(sigma=(1.6, 1.6))), 0.01),
    "motion blur": ("natural", motion, 0.02),
    "ultrasound PSF": ("ultrasound", point_spread, 0.01),
    "inpainting 50 %": ("natural", half, 0.05),
}


def oracle(algorithm, op, y, denoiser, sigma, truth):
    """The best of the settings for each image, with the true noise level."""
    best = None
    starts = [*(pnp.solve(op, y, None, algorithm=name, noise=sigma).x for name in ("direct", "cg")), None]
    for setting in settings(algorithm):
        for start in starts:
            found = scores(pnp.solve(op, y, denoiser, algorithm=setting, noise=sigma, start=start).x, truth)
            best = found if best is None else torch.maximum(best, found)
    return best


def settings(algorithm):
    if isinstance(algorithm, DouglasRachford):
        weights = [(w, w) for w in (0.1, 0.23, 0.5, 1.0)] + [algorithm.weights]
        return [
            replace(algorithm, weights=w, reflection=r) for w, r in itertools.product(weights, (0.2, 0.4, 0.6, 0.8))
        ]
    return [
        replace(algorithm, weight=w, last=last)
        for w, last in itertools.product((0.05, 0.12, 0.23, 0.5, 1.0), (0.25, 0.5, 0.75, 1.0))
    ]


def dpir(op, y, denoiser, sigma, truth):
    """deepinv's, with its own schedule for the true noise level, the operator scaled to norm 1."""
    single = float(torch.as_tensor(sigma).square().mean().sqrt())
    norm = op.compute_sqnorm(truth, verbose=False).sqrt() if hasattr(op, "compute_sqnorm") else 1.0
    channels = denoisers.adapt(denoiser, channels=truth.shape[1] > 1)
    levels, steps, count = deepinv.optim.dpir.get_DPIR_params(single / norm, device="cpu")[:3]
    prior = deepinv.optim.PnP(denoiser=channels)
    model = deepinv.optim.HQS(
        data_fidelity=deepinv.optim.L2(), prior=prior, max_iter=count,
        params_algo={"stepsize": [s / norm**2 for s in steps], "g_param": levels, "lambda": 1.0, "beta": 1.0},
        custom_init=lambda y, physics: physics.A_adjoint(y) / norm**2,
    )  # fmt: skip
    with torch.no_grad():
        return model(y, op)


def scores(x, truth):
    x, truth = (image.square().sum(1).sqrt() if image.shape[1] == 2 else image[:, 0] for image in (x, truth))
    return -10 * torch.log10((x - truth).square().mean((1, 2)))


if __name__ == "__main__":
    main()
