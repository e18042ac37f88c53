"""How much the settings matter: PSNR over two parameters of an algorithm, and where the call without any lands.

    python examples/sensitivity.py [--algorithm hqs] [--size 128] [--out examples/sensitivity.png]

Half-quadratic splitting (DPIR: Zhang et al., TPAMI 2021) has a weight of the data and a last denoiser level; the
default, annealed Douglas-Rachford splitting, a weight and how far it reflects. For a brain (MRI, 8 coils, 4x) and a
chest (CT, 60 views), each is run over a grid of the two, with the noise level found from the measurements. The star is
`pnp.solve` with nothing set; the default's rule changes the weight along the way, so that no point of the grid is like
it: its star is at the mean over the iterations, and its colour is its PSNR.
"""

import argparse
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pydicom.data
import torch
import torch.nn.functional as F

import denoisers
import operators
import pnp
from denoisers.data import read_images
from pnp import demo, quality
from pnp.algorithms import ALGORITHMS

GRIDS = {  # name: the axes' labels and values, and the settings that they make
    "hqs": (
        ("weight", (0.03, 0.06, 0.12, 0.23, 0.5, 1.0, 2.0)),
        ("last level / noise", (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)),
        lambda weight, last: {"weight": weight, "last": last},
    ),
    "drs": (
        ("weight", (0.03, 0.06, 0.12, 0.23, 0.5, 1.0, 2.0)),
        ("reflection", (0.0, 0.2, 0.4, 0.6, 0.75, 0.9, 1.0)),
        lambda weight, reflection: {"weights": (weight, weight), "reflection": reflection},
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--algorithm", choices=GRIDS, help="default both")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", default="examples/sensitivity.png")
    options = parser.parse_args()
    names = [options.algorithm] if options.algorithm else list(GRIDS)
    denoiser = denoisers.load("medical")
    figure, axes = plt.subplots(2, len(names), figsize=(4.4 * len(names), 7.2), layout="constrained", squeeze=False)
    print("| problem | algorithm | nothing set | best of the grid | worst | within 0.5 dB of the best |")
    print("|---|---|---|---|---|---|")
    for row, (problem, (op, y, truth)) in zip(axes, problems(options.size).items()):
        for axis, name in zip(row, names):

            def psnr(algorithm, op=op, y=y, truth=truth):
                return quality.psnr(pnp.solve(op, y, denoiser, algorithm=algorithm).x, truth).item()

            (label_x, across), (label_y, up), settings = GRIDS[name]
            algorithm = ALGORITHMS[name]
            grid = np.array([[psnr(replace(algorithm, **settings(a, b))) for a in across] for b in up])
            found, best = psnr(name), grid.max()
            cells = (f"{found:.2f} dB", f"{best:.2f} dB", f"{grid.min():.2f} dB", f"{(grid > best - 0.5).mean():.0%}")
            print(f"| {problem} | {name} | " + " | ".join(cells) + " |", flush=True)

            picture = axis.pcolormesh(grid, vmin=best - 6, vmax=best, edgecolors="white", linewidth=0.3)
            place = landing(op, y, name)
            at = [np.interp(value, values, np.arange(len(values)) + 0.5) for value, values in zip(place, (across, up))]
            style = {"marker": "*", "s": 320, "edgecolors": "red", "linewidths": 1.5}
            axis.scatter(*at, c=[found], vmin=best - 6, vmax=best, **style)
            axis.set(xlabel=label_x, ylabel=label_y)
            axis.set_title(f"{problem}, {name}: {found:.2f} dB (best of the grid: {best:.2f})", fontsize=10)
            axis.set_xticks(np.arange(len(across)) + 0.5, across)
            axis.set_yticks(np.arange(len(up)) + 0.5, up)
            figure.colorbar(picture, ax=axis, extend="min", label="PSNR in dB")
    figure.savefig(options.out, dpi=80)


def problems(size):
    """Operator, measurements and truth of a brain and of a chest."""
    brain = F.interpolate(demo.brain()[0][1:2], (size, size), mode="area")
    hounsfield = torch.from_numpy(read_images(pydicom.data.get_testdata_file("CT_small.dcm"))[0])[None, None]
    chest = F.interpolate((hounsfield.clamp(-1000, 1000) + 1000) / 2000, (size, size), mode="area")
    ct = operators.ParallelBeamCT((size, size), torch.arange(60) * math.pi / 60)
    sinogram = ct.A(chest)
    noise = 0.005 * sinogram.max() * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(0))
    return {"MRI": demo.measure(brain, 4), "CT": (ct, sinogram + noise, chest)}


def landing(op, y, name):
    """Where on the grid the algorithm's own rule is, its weight on average over the iterations."""
    algorithm = ALGORITHMS[name]
    if name == "hqs":
        return algorithm.weight, algorithm.last
    problem = pnp.problem.Problem(op, y, None)
    sigma, rho, (reflection, *_), _ = (torch.stack(values).flatten() for values in zip(*algorithm.schedule(problem)))
    weight = rho * (sigma / problem.noise.item()) ** 2
    return weight.log().mean().exp().item(), reflection.item()


if __name__ == "__main__":
    main()
