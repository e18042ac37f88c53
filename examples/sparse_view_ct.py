"""CT from few views: filtered back-projection, total variation, `pnp.solve` and samples from the posterior.

    python examples/sparse_view_ct.py [--data ct_hu/dcmqi_abdomen_03.dcm] [--sampler diffpir] [--out sparse_view_ct.png]

A slice of a chest (pydicom's CT_small, 128 x 128) is seen from 60, 30 and 15 angles, as in many papers on sparse-view
CT since Sidky & Pan (Phys Med Biol 2008, total variation), with noise of 0.5 % of the sinogram's largest value.
`--data` takes another DICOM slice, or the first of a folder, and shrinks it to at most 256 pixels a side. No method is
told the noise level. Above the pictures are PSNR and SSIM.

The mean of diffusion samples (DiffPIR: Zhu et al., CVPR Workshops 2023) stands for the image of least expected error; a
single sample has more of an image's texture, but what is in it varies from sample to sample, and the fewer the views,
the more: the last column shows by how much. With `--sampler calibrated` the samples spread as far as `pnp.solve` errs.
"""

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pydicom.data
import torch
import torch.nn.functional as F
from PIL import Image

import denoisers
import operators
import pnp
from denoisers.data import read_images
from pnp import quality

VIEWS = (60, 30, 15)
WINDOW = (-500, 500)  # HU, shown


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="DICOM slice in Hounsfield units, or a folder of them")
    parser.add_argument("--sampler", default="diffpir", help="calibrated, or the name of a diffusion sampler")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", default="examples/sparse_view_ct.png")
    options = parser.parse_args()
    file = options.data or Path(pydicom.data.get_testdata_file("CT_small.dcm"))
    file = min(file.glob("*.dcm")) if file.is_dir() else file
    hounsfield = torch.from_numpy(read_images(file)[0])[None, None]
    truth = (F.avg_pool2d(hounsfield, -(-max(hounsfield.shape) // 256)).clamp(-1000, 1000) + 1000) / 2000
    denoiser = denoisers.load("medical")

    figure, axes = plt.subplots(len(VIEWS), 7, figsize=(10.2, 5), layout="constrained")
    print("| views | method | PSNR | SSIM |\n|---|---|---|---|")
    for row, views in zip(axes, VIEWS):
        op = operators.ParallelBeamCT(truth.shape[-2:], torch.arange(views) * math.pi / views)
        y = op.A(truth)
        y = y + 0.005 * y.max() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
        sampler = None if options.sampler == "calibrated" else options.sampler
        samples = pnp.sample(op, y, denoiser, n=options.samples, steps=20, algorithm=sampler, seed=0)
        # total variation needs more than its default 200 iterations to settle where the views are few
        images = {
            "FBP": op.fbp(y),
            "TV": pnp.solve(op, y, None, algorithm="tv", iterations=1000).x,
            "pnp.solve": pnp.solve(op, y, denoiser).x,
            "mean of samples": samples.mean,
            "one sample": samples.x[0],
        }
        row[0].imshow(2000 * truth[0, 0] - 1000, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])
        row[0].set_title("truth", fontsize=8)
        for axis, (name, x) in zip(row[1:], images.items()):
            psnr, ssim = quality.psnr(x, truth).item(), quality.ssim(x, truth).item()
            print(f"| {views} | {name} | {psnr:.2f} dB | {ssim:.3f} |", flush=True)
            axis.imshow(2000 * x[0, 0] - 1000, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])
            axis.set_title(f"{name}\n{psnr:.2f} dB, {ssim:.3f}", fontsize=8)
        spread = row[-1].imshow(2000 * samples.std[0, 0], cmap="magma", vmin=0, vmax=80)
        row[-1].set_title("standard deviation\nof the samples", fontsize=8)
        row[0].set_ylabel(f"{views} views")
    figure.colorbar(spread, ax=axes, label="standard deviation in HU", shrink=0.6, extend="max")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(options.out, dpi=80)
    with Image.open(options.out) as picture:  # 256 colours are enough, and half of the size
        picture.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
