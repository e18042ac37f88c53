"""Which algorithms converge with which denoisers: the change from iteration to iteration at a constant level.

    python examples/convergence.py [--iterations 150] [--out examples]      # the gallery's figure has 500

A T1 slice measured with 4 coils, 4x undersampled, 1 % noise; every algorithm keeps one denoiser level and one data
weight. A curve ends where the solver stops because nothing moves any more; bfloat16 rounds to about 2e-4, below which
"medical" cannot fall where it runs in it. Below, the objective of gradient-step descent, which decreases by
construction, on MRI and on CT from 60 views. Local Lipschitz constants at the slice with noise are printed first:
theorems ask for less than 1 of I - D, or at most 1 of 2 D - I.
"""

import argparse
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F

import denoisers
import operators
import pnp
from pnp import demo
from pnp.algorithms import ALGORITHMS, GradientStep, PrimalDual

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ("hqs", "admm", "drs", "pgd", "fista", "primal-dual", "red", "red-gradient")
NOISE = 0.01


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--descent", type=int, default=200, help="iterations of gradient-step descent")
    parser.add_argument("--out", type=Path, default=Path("examples"), help="folder of the figure")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    slice_ = F.avg_pool2d(demo.brain()[0][:1], 3)
    slice_ = slice_ / slice_.max()
    image = torch.cat([slice_, torch.zeros_like(slice_)], 1)
    shape = tuple(image.shape[-2:])
    mri = operators.MRI(operators.masks.cartesian(shape, 4, 12, seed=0), operators.coils.birdcage(shape, 4))
    ct = operators.ParallelBeamCT(shape, torch.arange(60) * math.pi / 60)
    generator = torch.Generator().manual_seed(0)
    y = mri.A(image)
    y = y + NOISE * torch.randn(y.shape, generator=generator) * mri.mask[:, :, None]
    sinogram = ct.A(slice_)
    spread = 0.005 * sinogram.max().item()
    sinogram = sinogram + spread * torch.randn(sinogram.shape, generator=generator)

    networks = {
        "medical": denoisers.load("medical"),
        "gradient-step": denoisers.load("gradient-step"),
        "equivariant medical": denoisers.Equivariant(denoisers.load("medical"), average=True),
    }
    print("| denoiser | level | Lipschitz constant of I - D | of 2 D - I |\n|---|---|---|---|")
    for label in ("medical", "gradient-step"):
        for level in (0.02, 0.1):
            noisy = slice_ + level * torch.randn(slice_.shape, generator=generator)
            found = [denoisers.lipschitz(networks[label], noisy, level, of=of) for of in ("residual", "reflection")]
            print(f"| {label} | {level} | " + " | ".join(f"{value.item():.2f}" for value in found) + " |", flush=True)
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    print("| denoiser | algorithm | iterations | last relative change |\n|---|---|---|---|")
    for axis, (label, network) in zip(axes[0], networks.items()):
        for name in NAMES:
            changes = run(name, mri, y, network, options.iterations)
            axis.semilogy(range(1, len(changes) + 1), changes, label=name)
            print(f"| {label} | {name} | {len(changes)} | {changes[-1]:.1e} |", flush=True)
        axis.set_title(f"{label}: relative change")
        axis.set_ylim(1e-7, 1)
    axes[1, 2].legend(*axes[0, 0].get_legend_handles_labels(), loc="upper left", title="upper row")
    cases = {"MRI": (mri, y, NOISE), "CT": (ct, sinogram, spread)}
    for axis, (label, (op, data, noise)) in zip(axes[1], cases.items()):
        for proximal in (True, False):
            algorithm = GradientStep(iterations=options.descent, proximal=proximal)
            solution = pnp.solve(op, data, networks["gradient-step"], algorithm=algorithm, noise=noise)
            values = solution.history["objective"]
            falls = all(after <= before for before, after in pairwise(values))
            kind = "proximal" if proximal else "gradient"
            axis.plot(range(1, len(values) + 1), values, label=kind)
            print(
                f"gradient-step descent, {label}, {kind}: {values[0]:.4f} to {values[-1]:.4f} in {len(values)}, {falls}"
            )
        axis.set_title(f"gradient-step descent, {label}: objective")
        axis.legend()
    axes[1, 2].axis("off")
    figure.savefig(options.out / "convergence.png", dpi=80)


def run(name, op, y, denoiser, iterations):
    """Relative change of the image in each iteration, at a level twice the noise."""
    algorithm = ALGORITHMS[name]
    rho = 0.23 / 4 if not isinstance(algorithm, (PrimalDual, type(ALGORITHMS["pgd"]))) else 1.0
    problem = pnp.problem.Problem(op, y, None, NOISE)
    sigma = 2 * NOISE / problem.norm.sqrt().item()
    algorithm = replace(algorithm, sigma=[sigma] * iterations, rho=[rho * problem.norm.item()] * iterations)
    return pnp.solve(op, y, denoiser, algorithm=algorithm, noise=NOISE, on_divergence="warn").history["change"]


if __name__ == "__main__":
    main()
