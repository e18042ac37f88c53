"""Quality against the number of denoiser calls: diffusion samplers and splittings, with constants and with an oracle.

    python examples/benchmarks/diffusion.py DATA [--only "CT 30 views"] [--images 8] [--samplers diffpir daps]
        [--calls 10 100] [--tuned 10] [--dps]

Operators and images are those of solvers.py, and real 8-coil k-space, 4x undersampled by as many masks as there are
images; the noise level is not given. Mean PSNR in dB and SSIM of point estimates and of single samples, with each
method's own constants; then with those of its ``SETTINGS`` that have the best mean PSNR on the operator, and with those
that suit each image best, both picked with the truth; coverage and spread of samples are in samples.py.
``deepinv-diffpir`` is deepinv's DiffPIR, given the noise level that is found here. ``--dps`` adds DPS with 1000 calls,
and deepinv's with its own settings, the operator scaled to norm 1.
"""

import argparse
import itertools
import runpy
import sys
from dataclasses import replace
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import deepinv
import numpy as np
import torch

import denoisers
import operators
import pnp
from operators.mri import from_complex, to_complex
from pnp import quality
from pnp.algorithms import DiffPIR, find
from pnp.problem import Problem

SOLVERS, KSPACE = (runpy.run_path(str(Path(__file__).with_name(f"{name}.py"))) for name in ("solvers", "kspace"))
OPERATORS = ["radial MRI x8", "Cartesian MRI x8", "CT 30 views", "ultrasound PSF", "k-space"]
CALLS = (3, 5, 8, 10, 16, 24, 50, 100)
TUNED = (10, 100)
TUNED_BY = ("operator", "image")
SETTINGS = {
    "drs": {"reflection": (None, 0.0, 0.3, 0.6, 0.9), "first": (None, 0.12, 0.294)},
    "hqs": {"weight": (0.1, 0.23, 0.5, 1.0), "last": (0.5, 1.0)},
    "diffpir": {"weight": (0.1, 0.25, 0.5, 1.0, 3.0), "renewal": (0.3, 1.0), "last": (0.5, 1.0)},
    "dds": {"gamma": (1.0, 5.0, 20.0, 100.0), "renewal": (0.3, 0.72)},
    "ddnm": {"renewal": (0.4, 1.0), "contrast": (0.05, 0.1, 0.2)},
    "daps": {"weight": (3.0, 10.0, 30.0), "last": (0.5, 1.0)},
    "fire": {"weight": (0.12, 0.25, 0.5, 1.0, 2.0), "last": (0.5, 1.0)},
    "pigdm": {"range": (0.5, 1.0), "renewal": (None, 0.3)},
    "dps": {"guidance": (0.1, 0.3, 1.0, 3.0)},
    "red-diff": {"weight": (0.02, 0.05, 0.25), "learning_rate": (0.05, 0.1)},
    "deepinv-diffpir": {"lambda_": (1.0, 7.0, 25.0), "zeta": (0.1, 0.3, 1.0)},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=OPERATORS, metavar="OPERATOR")
    parser.add_argument("--samplers", nargs="*", choices=SETTINGS, default=list(SETTINGS), metavar="METHOD")
    parser.add_argument("--calls", nargs="+", type=int, default=CALLS, help="numbers of denoiser calls")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--tuned", nargs="*", type=int, default=TUNED, help="those for which settings are picked, too")
    parser.add_argument("--dps", action="store_true", help="deepinv's DPS with 1000 calls, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = denoisers.load("medical")
    columns = [*map(str, options.calls), *(f"{n}, tuned by {what}" for n in options.tuned for what in TUNED_BY)]
    print("| operator | method | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
    for name in options.only or OPERATORS:
        op, y, score = case(name, options)
        for method in options.samplers:
            figures = [text(scores(method, op, y, denoiser, score, count)) for count in options.calls]
            for count in options.tuned:
                figures += map(text, oracle(method, op, y, denoiser, score, count))
            print(f"| {name} | {method} | " + " | ".join(figures) + " |", flush=True)
        if options.dps:
            print(f"| {name} | dps, 1000 calls | {text(scores('dps', op, y, denoiser, score, 1000))} |", flush=True)
            if options.tuned:
                for what, best in zip(TUNED_BY, oracle("dps", op, y, denoiser, score, 1000)):
                    print(f"| {name} | dps, 1000 calls, tuned by {what} | {text(best)} |", flush=True)
            print(f"| {name} | deepinv's DPS, 1000 calls | {text(score(deepinv_dps(op, y, denoiser)))} |", flush=True)


def text(found):
    """Means over the images of PSNR and SSIM."""
    psnr, ssim = found.mean(0)
    return f"{psnr:.3f}, {ssim:.3f}"


def case(name, options):
    """Operator, measurements and a function that gives PSNR and SSIM of images, (B, 2)."""
    if name != "k-space":
        op, truth, y, _ = SOLVERS["case"](name, options)
        return op, y, lambda x: torch.stack([SOLVERS["scores"](x, truth), quality.ssim(x, truth)], 1)
    full = torch.from_numpy(np.load(options.data / "kspace8ch" / "full.npy"))
    shape, seeds = full.shape[1:], range(options.images)
    mask = torch.stack([operators.masks.cartesian(shape, 4, calibration=24, seed=seed) for seed in seeds])[:, None]
    y = full * mask
    maps = torch.stack([operators.coils.espirit(k) for k in y])
    references, head = [KSPACE["combine"](full, m) for m in maps], KSPACE["head_mask"](full)

    def score(x):
        images = to_complex(x).abs().numpy()
        return torch.tensor([KSPACE["scores"](image, own, head) for image, own in zip(images, references)])

    return operators.MRI(mask, maps), from_complex(y), score


def scores(method, op, y, denoiser, score, count, **settings):
    """PSNR in dB and SSIM of each image, NaN where the iteration diverges."""
    if method == "deepinv-diffpir":
        return score(deepinv_diffpir(op, y, denoiser, count, **settings))
    algorithm = replace(find(method, count), **settings)
    try:
        if isinstance(algorithm, DiffPIR):
            x = pnp.sample(op, y, denoiser, n=1, steps=count, algorithm=algorithm, seed=0).x[0]
        else:
            x = pnp.solve(op, y, denoiser, algorithm=algorithm, seed=0).x
    except pnp.DivergenceError:
        return torch.full((len(y), 2), torch.nan)
    return score(x)


def oracle(method, op, y, denoiser, score, count):
    """Scores with the settings that are best for all images together, and with those best for each."""
    grid = SETTINGS[method]
    tried = (dict(zip(grid, values)) for values in itertools.product(*grid.values()))
    found = [scores(method, op, y, denoiser, score, count, **settings) for settings in tried]
    found = torch.stack(found).nan_to_num(-torch.inf)  # (settings, images, 2)
    psnr = found[..., 0]
    return found[psnr.mean(1).argmax()], found[psnr.argmax(0), torch.arange(psnr.shape[1])]


def deepinv_dps(op, y, denoiser):
    norm = Problem(op, y, None).norm.mean().sqrt().item()
    channels = denoisers.adapt(denoiser, channels=op.A_adjoint(y).shape[1] > 1)
    sampler = deepinv.sampling.DPS(channels, num_steps=1000, weight=1 / norm, dtype=torch.float32)
    return sampler(y, op, x_init=op.A_adjoint(y).shape, seed=0)


def deepinv_diffpir(op, y, denoiser, count, **settings):
    """Of (x + 1) / 2, since it cuts off what is outside [0, 1], where x, of range 1, is not when it is complex."""
    problem = Problem(op, y, None)
    channels = denoisers.adapt(denoiser, channels=problem.first.shape[1] > 1)

    def halved(x, sigma):
        return (channels(2 * x - 1, 2 * sigma) + 1) / 2

    sigma = (problem.noise * problem.norm.sqrt()).mean().item() / 2
    sampler = deepinv.sampling.DiffPIR(halved, deepinv.optim.L2(), sigma, count, **settings)
    scaled = y / problem.scale.reshape(-1, *[1] * (y.ndim - 1))
    x = sampler((scaled + op.A(torch.ones_like(problem.first))) / 2, op, seed=1)
    return (2 * x - 1) * problem.scale


if __name__ == "__main__":
    main()
