r"""How many denoiser calls does an image take? All methods on three modalities, with one set of constants each.

    python examples/few_step.py [--out examples/few_step.png]

Radial MRI with 6 coils, CT from 30 views and blurred ultrasound-like images, of the bundled T1 template and pydicom's
CT slice, at 128 x 128; the noise level is not told. Diffusion samplers start from noise and need the denoiser to take
it all away again; a splitting starts from what was measured and needs it for the rest only. How `pnp.solve` gets there
in ten calls (:class:`pnp.algorithms.DouglasRachford`):

- Units: with the largest eigenvalue L of A'A and the range of a first image, operator and image are scaled to 1, so
  that one set of constants fits all.
- Levels: sigma_k falls as a fourth power to the noise level s: the coarse is decided in few calls, the fine in many.
  The first is what may be wrong in the start: its noise, which grows with s / trace[A'A]^(3/4), or coarse structure
  that A does not see, the more the lower its frequency k; the smallest eigenvalue of A'A - Laplace / 20 is k^2 / 20.
- Data step: v = argmin |A v - y|^2 + rho_k |v - z|^2, by conjugate gradients started at z, so that what A does not see
  stays what the denoiser made of it.
- Reflection: the denoiser sees v + r (v - z), and z moves to D + r (z - v), with r < 1. This is Douglas and Rachford's
  splitting for r = 1, half-quadratic splitting for r = 0. The reflection carries over what the last data step changed,
  which is what halves the number of calls.
- Weights: rho_k = lambda s^2 / sigma_k^2. Where the denoiser takes all noise away, z settles at r (z - v), and it sees
  ((1 - r) A'A + rho)^-1 A'n of y's noise n, that is of power s^2 trace[A'A / ((1 - r) A'A + rho)^2] a pixel; lambda is
  such that this does not exceed sigma_k^2: the denoiser is told the truth. The trace comes from 16 steps of Lanczos.
- Over-relaxation: where the data leave much open, z goes half as far again, which spares a third of the calls; where
  coarse structure is missing rather than noise in the way, 0.7 as far, with r 0.7 instead of 0.6. Beyond 16 calls (9
  where noise is all that is wrong), its steps get shorter instead: what is under way for longer is smoothed more.
- Start: argmin |A u - y|^2 + |grad u|^2 / 20, which continues what is seen into what is not. Fewer than ten calls start
  at a lower level, unless a mask leaves most of k-space open.
- Phase: of complex images, the smooth phase of the last image is taken off before the denoiser and put on again after.

Not distilled into a single call: of the 2.1 s that 256 x 256 pixels with 8 coils take on one core
(`benchmarks/solve_time.py`), the denoiser has 58 %: calls for free would leave the other 42 %; and three
calls in place of ten cost 0.1 dB (ultrasound) to 2.7 dB (Cartesian MRI, `benchmarks/diffusion.py`), for the data steps
between them are lost, too.
"""

import argparse
import math
from pathlib import Path

import matplotlib
import pydicom
import pydicom.data
import torch
import torch.nn.functional as F

import denoisers
import operators
import pnp
from operators import coils, trajectories
from pnp import demo, quality
from pnp.algorithms import DiffPIR, find

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE = 128
CALLS = (3, 5, 8, 10, 16, 24, 50, 100)
METHODS = ("drs", "hqs", "diffpir", "dds", "ddnm", "daps", "fire", "pigdm", "dps", "red-diff")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("examples/few_step.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = denoisers.load("medical")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    print("| | | " + " | ".join(map(str, CALLS)) + " |\n" + "|---" * (2 + len(CALLS)) + "|")
    for axis, (name, (op, truth, sigma)) in zip(axes, problems().items()):
        y = op.A(truth)
        y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        for method in METHODS:
            found = [psnr(op, y, denoiser, truth, method, count) for count in CALLS]
            print(f"| {name} | {method} | " + " | ".join(f"{value:.2f}" for value in found) + " |", flush=True)
            bold = {"linewidth": 2.5, "color": "black"} if method == "drs" else {"linewidth": 1}
            axis.semilogx(CALLS, found, marker=".", label="pnp.solve" if method == "drs" else method, **bold)
        axis.set_title(name)
        axis.set_xlabel("denoiser calls")
        axis.set_xticks(CALLS, CALLS)
        axis.minorticks_off()
    axes[0].set_ylabel("PSNR, dB")
    axes[2].legend(ncols=2, fontsize="small")
    figure.savefig(options.out, dpi=90)


def problems():
    """Operator, image and noise level by modality."""
    brain = F.interpolate(demo.brain()[0][:1], (SIZE, SIZE), mode="area")
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    chest = torch.from_numpy(dataset.pixel_array.astype("float32"))[None, None] * dataset.RescaleSlope
    chest = ((chest + dataset.RescaleIntercept + 1000) / 2000).clamp(0, 1)
    radial = operators.NonCartesianMRI(
        trajectories.radial(round(SIZE * math.pi / 2 / 8), 2 * SIZE), (SIZE, SIZE), coils.birdcage((SIZE, SIZE), 6)
    )
    ct = operators.ParallelBeamCT((SIZE, SIZE), torch.arange(30) * math.pi / 30)
    z, x = torch.meshgrid(*2 * [torch.arange(-7.0, 8)], indexing="ij")
    psf = torch.exp(-(z**2) / 2 / 1.2**2 - x**2 / 2 / 2**2)
    blur = operators.PSFUltrasound(psf / psf.sum(), (SIZE, SIZE))
    return {
        "radial MRI, 8x": (radial, torch.cat([brain, torch.zeros_like(brain)], 1), 0.02),
        "CT, 30 views": (ct, chest, 0.005 * ct.A(chest).max().item()),
        "ultrasound blur": (blur, brain, 0.01),
    }


def psnr(op, y, denoiser, truth, method, count):
    algorithm = find(method, count)
    if isinstance(algorithm, DiffPIR):
        x = pnp.sample(op, y, denoiser, n=1, steps=count, algorithm=algorithm, seed=0).x[0]
    else:
        x = pnp.solve(op, y, denoiser, algorithm=algorithm).x
    return quality.psnr(x, truth).item()


if __name__ == "__main__":
    main()
