"""The compressed-sensing MRI table of provable plug-and-play, and the same measurements given to `pnp.solve`.

    python examples/ryu_cs_mri.py --data DATA/provable_pnp_csmri --weights provable_pnp_dncnn15.pth [--image Bust.jpg]
    python examples/ryu_cs_mri.py

Ryu et al., *Plug-and-play methods provably converge with properly trained denoisers*, ICML 2019: 30 % of k-space,
noise of standard deviation 15 on a Fourier transform that is not normalised, PnP-ADMM with a DnCNN trained for noise of
15/255. The folder (image, masks and noise) and the weights are those of github.com/uclaopt/Provable_Plug_and_Play.
Their ADMM is Douglas-Rachford splitting with full reflections; here it stops once nothing moves any more, before their
100 iterations. What they call PSNR is the energy of the image over that of the error; both numbers are printed.

`pnp.solve` is told that the image is real, as they are, by its operator, but neither the noise level nor a weight.
Without `--data`, a slice of the ICBM152 template is measured with masks of the same kinds and noise of the same
strength; without `--weights`, the bundled denoiser takes DnCNN's place at their constant level. Then the numbers are
not those of the paper. The figure shows the middle of the images.
"""

import argparse
from pathlib import Path

import deepinv
import matplotlib.pyplot as plt
import numpy as np
import scipy.io
import torch

import denoisers
import operators
import pnp
from denoisers.data import read_images
from operators import masks
from pnp import demo, quality

LEVEL, ALPHA, ITERATIONS = 15 / 255, 2.0, 100


class PnPADMM(pnp.algorithms.DouglasRachford):
    """Theirs: the imaginary part is dropped after each data step, not by the data step's own model."""

    def data_step(self, problem, z, rho):
        return real(super().data_step(problem, z, rho))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with Brain.jpg, Q_*30.mat and noises.mat")
    parser.add_argument("--weights", type=Path, help="DnCNN_noise15.pth, names without the prefix 'module.'")
    parser.add_argument("--image", default="Brain.jpg")
    parser.add_argument("--out", default="examples/ryu_cs_mri.png")
    options = parser.parse_args()
    truth, noise, sampling = published(options.data, options.image) if options.data else bundled()
    medical = denoisers.load("medical")
    theirs, name = (dncnn(options.weights), "DnCNN-15") if options.weights else (medical, "medical")
    constant = {"sigma": [LEVEL] * ITERATIONS, "rho": [1 / (2 * ALPHA)] * ITERATIONS}
    published_admm = PnPADMM(reflection=1.0, relaxation=1.0, **constant)
    embed = deepinv.physics.LinearPhysics(A=lambda x, **_: as_complex(x), A_adjoint=lambda x, **_: x[:, :1])

    figure, axes = plt.subplots(3, 3, figsize=(4.5, 5.1), layout="constrained")
    print("| mask | method | SNR, the paper's metric | PSNR | denoiser calls |\n|---|---|---|---|---|")
    for row, (kind, mask) in zip(axes, sampling.items()):
        op = operators.MRI(mask)
        y = op.A(as_complex(truth) + noise)  # F is unitary here: noise of k-space can be added to the image
        filled = op.A_adjoint(y)
        start = as_complex(quality.magnitude(filled)[:, None])
        admm = pnp.solve(op, y, lambda x, s: as_complex(theirs(x[:, :1], s)), algorithm=published_admm, start=start)
        default = pnp.solve(operators.compose(embed, op), y, medical)
        images = {
            "zero filling": (filled, 0),
            f"PnP-ADMM, {name}": (admm.x, admm.calls["denoiser"]),
            "pnp.solve": (default.x, default.calls["denoiser"]),
        }
        row[0].set_ylabel(f"{kind}, {100 * mask.mean():.0f} %", fontsize=8)
        for axis, (label, (x, calls)) in zip(row, images.items()):
            x = x[:, :1]
            snr = 10 * torch.log10(truth.square().sum() / (x - truth).square().sum())
            psnr = quality.psnr(x, truth)
            print(f"| {kind} | {label} | {snr:.2f} dB | {psnr.item():.2f} dB | {calls} |", flush=True)
            axis.imshow(x[0, 0, 64:192, 64:192], cmap="gray", vmin=0, vmax=truth.max())
            axis.set_title(f"{label}\n{psnr.item():.2f} dB (SNR {snr:.2f})", fontsize=7)
            axis.set(xticks=[], yticks=[])
    figure.savefig(options.out, dpi=80)


def published(folder, image):
    truth = torch.from_numpy(read_images(folder / image)[0])[None, None] / 255
    # they scale the noise of the file by 3
    noise = torch.fft.ifft2(torch.from_numpy(3 * scipy.io.loadmat(folder / "noises.mat")["noises"]))
    sampling = {}
    for kind, name in {"random": "Random", "radial": "Radial", "Cartesian": "Cartesian"}.items():
        mask = scipy.io.loadmat(folder / f"Q_{name}30.mat")["Q1"].astype(np.float32)
        sampling[kind] = torch.fft.fftshift(torch.from_numpy(mask))  # zero frequency to the middle
    return truth, torch.stack([noise.real, noise.imag])[None].float(), sampling


def bundled():
    truth = torch.nn.functional.pad(demo.brain()[0][1:2], (29, 30, 11, 12))
    noise = 15 / 256 * torch.randn(1, 2, 256, 256, generator=torch.Generator().manual_seed(0))
    spokes = min(range(1, 256), key=lambda n: abs(masks.radial((256, 256), n).mean() - 0.3))
    return truth, noise, {
        "random": masks.poisson((256, 256), 1 / 0.3, seed=0),
        "radial": masks.radial((256, 256), spokes),
        "Cartesian": masks.cartesian((256, 256), 1 / 0.3, seed=0),
    }  # fmt: skip


def dncnn(weights):
    network = deepinv.models.DnCNN(1, 1, depth=17, pretrained=str(weights)).eval()

    def denoiser(x, sigma):
        """Their scaling: images to [0, 1], and then to the range that noise of the network's level leaves them."""
        low, high, widened = x.min(), x.max(), 1 + LEVEL / 2
        u = network(((x - low) / (high - low) - 0.5) * widened + 0.5)
        return ((u - 0.5) / widened + 0.5) * (high - low) + low

    return denoiser


def as_complex(x):
    return torch.cat([x, torch.zeros_like(x)], 1)


def real(x):
    return as_complex(x[:, :1])


if __name__ == "__main__":
    main()
