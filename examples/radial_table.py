"""Radial MRI at three accelerations and three noise levels: PSNR of four methods, one of which is told nothing.

    python examples/radial_table.py [--data IBSR_04.nii.gz IBSR_09.nii.gz] [--images 3] [--out radial_table.png]

The table's layout is that of Wei et al., *Tuning-free plug-and-play proximal algorithm for inverse imaging problems*
(TFPnP), ICML 2020: one coil, spokes on the Cartesian grid, x2, x4 and x8 undersampled, noise of 5, 10 and 15 (of 255)
in real and imaginary part of k-space. Their policy network learns to set the parameters; here nothing is learnt or set
for that. Images and denoiser are others than theirs, and so are the numbers: the ICBM152 template, or with `--data`
the images in files or folders, of volumes the middle slice. PSNR is that of the magnitude, over the whole image as in
the paper and, in brackets, where the truth is not 0: methods differ much in the noise that they leave outside.

Total variation finds the noise level itself, as does `pnp.solve`; DPIR (Zhang et al., TPAMI 2021), deepinv's, is told
the true one and uses the same bundled denoiser.
"""

import argparse
from pathlib import Path

import deepinv
import matplotlib.pyplot as plt
import numpy as np
import torch

import denoisers
import operators
import pnp
from denoisers.data import read_images
from operators import masks
from pnp import demo, quality

SETTINGS = [(acceleration, level) for acceleration in (2, 4, 8) for level in (5, 10, 15)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, nargs="+", help="files or folders with images")
    parser.add_argument("--images", type=int, default=3, help="how many of them")
    parser.add_argument("--out", default="examples/radial_table.png")
    options = parser.parse_args()
    images = [image[None] for image in demo.brain()[0]]
    if options.data:
        images = [prepared(image) for path in options.data for image in read_images(path)]
    denoiser = denoisers.load("medical")

    print("| | noise | noise found | zero filling | TV | DPIR, true noise | pnp.solve |\n" + "|---" * 7 + "|")
    scores = []
    for acceleration, level in SETTINGS:
        rows, found = [], []
        for k, image in enumerate(images[: options.images]):
            truth = torch.cat([image, torch.zeros_like(image)], 1)
            op = operators.MRI(mask(image.shape[-2:], acceleration))
            generator = torch.Generator().manual_seed(k)
            y = op.A(truth) + level / 255 * torch.randn(truth.shape, generator=generator) * op.mask
            solution = pnp.solve(op, y, denoiser)
            dpir = deepinv.optim.DPIR(level / 255, denoiser=denoisers.adapt(denoiser, channels=True), device="cpu")
            with torch.no_grad():
                results = {
                    "zero filling": op.A_adjoint(y),
                    "TV": pnp.solve(op, y, None, algorithm="tv").x,
                    "DPIR, true noise": dpir(y, op),
                    "pnp.solve": solution.x,
                }
            occupied = quality.magnitude(truth) > 0
            rows.append(
                [[quality.psnr(x, truth, where).item() for where in (None, occupied)] for x in results.values()]
            )
            found.append(255 * solution.noise)
        scores.append(np.mean(rows, 0))
        cells = " | ".join(f"{whole:.2f} dB ({inside:.2f})" for whole, inside in scores[-1])
        print(f"| x{acceleration} | {level} | {np.mean(found):.1f} | {cells} |", flush=True)

    shown = {"truth": truth} | results  # of the last image, at the highest acceleration and noise
    figure = plt.figure(figsize=(9, 5), layout="constrained")
    pictures, bars = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    for axis, (name, x) in zip(pictures.subplots(1, len(shown)), shown.items()):
        axis.imshow(quality.magnitude(x)[0], cmap="gray", vmin=0, vmax=image.max())
        axis.set_title(name if x is truth else f"{name}\n{quality.psnr(x, truth).item():.2f} dB", fontsize=9)
        axis.axis("off")
    whole = np.array(scores)[..., 0]
    axis = bars.subplots()
    for k, (name, column) in enumerate(zip(results, whole.T)):
        axis.bar(np.arange(len(SETTINGS)) + 0.2 * (k - 1.5), column, 0.2, label=name)
    axis.set_xticks(range(len(SETTINGS)), [f"x{acceleration}, {level}" for acceleration, level in SETTINGS])
    axis.set(ylim=(whole.min() - 2, whole.max() + 3), ylabel="PSNR in dB", xlabel="undersampling, noise / 255")
    axis.legend(ncols=4, fontsize=8, loc="upper right")
    figure.savefig(options.out, dpi=80)


def mask(shape, acceleration):
    """As many spokes as come closest to the acceleration."""
    candidates = [masks.radial(shape, spokes) for spokes in range(4, max(shape))]
    return min(candidates, key=lambda candidate: abs(candidate.mean() - 1 / acceleration))


def prepared(image):
    """(1, 1, H, W) with values up to 1."""
    slice_ = np.take(image, min(image.shape) // 2, np.argmin(image.shape)) if image.ndim == 3 else image
    return torch.from_numpy(slice_ / slice_.max())[None, None]


if __name__ == "__main__":
    main()
