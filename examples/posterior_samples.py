"""What the image may be: four posterior samples for MRI, CT and ultrasound, beside truth, error and standard deviation.

    python examples/posterior_samples.py [--data DATA] [--out examples/posterior_samples.png]

``pnp.sample`` draws eight samples of ten denoiser calls each with one setting for all operators; where they differ, the
measurements do not tell. Without ``--data`` the problems are those of few_step.py; with it, a brain from an eighth of
its Cartesian k-space, a chest from 30 views, and a breast through the point-spread function of an ultrasound scanner
(of benchmarks/solvers.py). Printed are the share of the 90 % intervals that hold the truth, and Spearman's correlation
of error and standard deviation.
"""

import argparse
import math
import runpy
from pathlib import Path

import matplotlib
import torch
from PIL import Image
from scipy import stats

import denoisers
import pnp
from pnp import quality

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NAMES = ("Cartesian MRI x8", "CT 30 views", "ultrasound PSF")
COUNT = 8


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("examples/posterior_samples.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = denoisers.load("medical")
    reach = stats.t.ppf(0.95, COUNT - 1) * math.sqrt(1 + 1 / COUNT)
    figure, axes = plt.subplots(3, 8, figsize=(14, 5.6), layout="constrained")
    print("| | coverage of 90 % intervals | Spearman | PSNR of the mean | of one sample |\n" + "|---" * 5 + "|")
    for row, (name, (op, truth, y)) in zip(axes, problems(options.data).items()):
        samples = pnp.sample(op, y, denoiser, n=COUNT, seed=0)
        true, mean = quality.magnitude(truth)[0], quality.magnitude(samples.mean)[0]
        drawn = torch.stack([quality.magnitude(x)[0] for x in samples.x])
        error, spread = (mean - true).abs(), drawn.std(0)
        rank = stats.spearmanr(error.flatten(), spread.flatten()).statistic
        scores = (f"{quality.psnr(x, truth).item():.2f} dB" for x in (samples.mean, samples.x[0]))
        print(f"| {name} | {(error <= reach * spread).float().mean():.2f} | {rank:.2f} | " + " | ".join(scores) + " |")
        images = {"truth": true, "mean of 8": mean} | {f"sample {k + 1}": drawn[k] for k in range(4)}
        for axis, (title, image) in zip(row, images.items()):
            axis.imshow(image, cmap="gray", vmin=0, vmax=true.max())
            axis.set_title(title, fontsize=9)
        for axis, title, image in ((row[6], "error of the mean", error), (row[7], "standard deviation", spread)):
            axis.imshow(image, cmap="magma", vmin=0, vmax=0.15 * true.max())
            axis.set_title(title, fontsize=9)
        row[0].set_ylabel(name)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(options.out, dpi=80)
    with Image.open(options.out) as picture:  # 256 colours are enough, and half of the size
        picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(options.out, optimize=True)


def problems(data):
    """Operator, image and measurements by modality."""
    if data is None:
        found = {}
        for name, (op, truth, sigma) in _script("few_step.py")["problems"]().items():
            y = op.A(truth)
            found[name] = op, truth, y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        return found
    case = _script("benchmarks/solvers.py")["case"]
    options = argparse.Namespace(data=data, size=128, images=1)
    return {name: case(name, options)[:3] for name in NAMES}


def _script(name):
    return runpy.run_path(str(Path(__file__).parent / name))


if __name__ == "__main__":
    main()
