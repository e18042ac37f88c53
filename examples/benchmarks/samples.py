"""Whether posterior samples mean something: how often 90 % intervals hold the truth, and whether spread follows error.

    python examples/benchmarks/samples.py DATA [--only "CT 30 views"] [--images 8] [--algorithm diffpir]

Operators and images are those of solvers.py; the noise level is not given. Eight samples of ten denoiser calls each;
the interval of a pixel is the samples' mean plus and minus Student's t times their standard deviation. Coverage is of
all pixels' magnitudes, its mean over the images and the lowest and highest image; Spearman's correlation is between
error and standard deviation, the mean over the images. Perception against distortion: PSNR and HaarPSI (a perceptual
similarity, 1 for equal images; Reisenhofer et al., 2018) of the samples' mean and of one sample; and how blurred truth,
mean and sample look by themselves (Crete et al., 2007; deepinv's ``BlurStrength``, from 0 to 1).
"""

import argparse
import math
import runpy
import sys
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import deepinv
import torch
from scipy import stats

import denoisers
import pnp
from pnp import quality

SOLVERS = runpy.run_path(str(Path(__file__).with_name("solvers.py")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(SOLVERS["OPERATORS"]), metavar="OPERATOR")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--algorithm", help="default pnp.sample's")
    parser.add_argument("--samples", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = denoisers.load("medical")
    reach = stats.t.ppf(0.95, options.samples - 1) * math.sqrt(1 + 1 / options.samples)
    haarpsi, blur = deepinv.metric.HaarPSI(), deepinv.metric.BlurStrength()
    print("| operator | coverage, lowest to highest | error / spread | Spearman | PSNR of mean, sample |", end=" ")
    print("HaarPSI of mean, sample | blur of truth, mean, sample |\n" + "|---" * 7 + "|")
    for name in options.only or SOLVERS["OPERATORS"]:
        op, truth, y, _ = SOLVERS["case"](name, options)
        samples = pnp.sample(op, y, denoiser, n=options.samples, algorithm=options.algorithm, seed=0)
        spread = torch.stack([quality.magnitude(x) for x in samples.x]).std(0)
        error = (quality.magnitude(samples.mean) - quality.magnitude(truth)).abs()
        coverage = (error <= reach * spread).float().mean((1, 2))
        ratio = (error.square().mean((1, 2)) / spread.square().mean((1, 2))).sqrt().mean()
        rank = sum(stats.spearmanr(e.flatten(), s.flatten()).statistic for e, s in zip(error, spread)) / len(error)
        images = [quality.magnitude(x)[:, None].clamp(0, 1) for x in (truth, samples.mean, samples.x[0])]
        mean, one = (SOLVERS["scores"](x, truth).mean() for x in (samples.mean, samples.x[0]))
        alike = ", ".join(f"{haarpsi(x, images[0]).mean():.3f}" for x in images[1:])
        blurred = ", ".join(f"{blur(x).mean():.3f}" for x in images)
        low, high = coverage.min(), coverage.max()
        print(f"| {name} | {coverage.mean():.2f}, {low:.2f} to {high:.2f} | {ratio:.2f} | {rank:.2f} |", end=" ")
        print(f"{mean:.2f}, {one:.2f} dB | {alike} | {blurred} |", flush=True)


if __name__ == "__main__":
    main()
