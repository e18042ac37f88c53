"""The bundled denoisers beside FFDNet, DnCNN, BM3D, TV and non-local means: PSNR by kind of image and noise, time.

    python examples/benchmarks/denoisers.py DATA [--ffdnet ffdnet_gray.pth] [--dncnn dncnn_25.pth] [--names medical]

DATA holds the folders named in ``SETS``; all images are ones that training never saw. Noise levels are in units of
1/255 of the image's range; images and noise are the same for all. BM3D is its authors' program where that is installed
(``pip install bm3d``, non-commercial), else deepinv's, which takes half a minute an image. Time is process CPU time for
256 x 256 pixels, one thread, minimum of several.
"""

import argparse
import math
import sys
import time
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import deepinv
import numpy as np
import pydicom.data
import torch

import denoisers
from denoisers.data import read_images
from denoisers.library import CLASSICAL
from pnp import demo

LEVELS = (1, 2, 5, 15, 25, 50, 100, 200)


def hounsfield(image):
    return (np.clip(image, -1000, 1000) + 1000) / 2000


def slices(volume, axis, count):
    """Evenly spread slices of a volume's middle part, scaled by its 99.9th percentile."""
    volume = np.moveaxis(volume / np.percentile(volume, 99.9), axis, 0)
    return [volume[k] for k in np.linspace(0.3 * len(volume), 0.7 * len(volume), count).astype(int)]


def ibsr(data):
    return [s for axis in (0, 1, 2) for s in slices(read_images(data / "ibsr18/IBSR_04.nii.gz")[0], axis, 3)]


SETS = {
    "natural (Set12)": lambda data: [image / 255 for image in read_images(data / "natural/set12.npz")],
    "T1 brain, ICBM152": lambda data: [image / image.max() for image in demo.brain()[0][:, 0].numpy()],
    "T1 brain, IBSR 04": ibsr,
    "CT abdomen": lambda data: [hounsfield(read_images(data / "ct_hu/dcmqi_abdomen_03.dcm")[0])],
    "CT small": lambda data: [hounsfield(read_images(pydicom.data.get_testdata_file("CT_small.dcm"))[0])],
    "breast ultrasound": lambda data: [i / i.max() for i in read_images(data / "busi256/train.npz")[0:516][-20:]],
    "CT vertebra": lambda data: [i / i.max() for i in read_images(data / "ct_vertebra/train.npz")[1520:1600:8]],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--ffdnet", help="its weights, for deepinv's network")
    parser.add_argument("--dncnn", help="weights for noise of 25/255, for deepinv's network")
    parser.add_argument("--names", nargs="*", help="bundled names or weight files; default all bundled ones")
    parser.add_argument("--classical", action="store_true", help="TV, wavelets, non-local means and BM3D, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.names or [card["name"] for card in denoisers.available()]
    programs = {Path(name).parent.name if "/" in name else name: denoisers.load(name) for name in names}
    if options.ffdnet:
        programs["FFDNet"] = EvenSizes(deepinv.models.FFDNet(residual_denoising=True, pretrained=options.ffdnet).eval())
    if options.dncnn:
        programs["DnCNN, for 25"] = deepinv.models.DnCNN(1, 1, depth=17, pretrained=options.dncnn).eval()
    if options.classical:
        programs |= {name: denoisers.load(name) for name in CLASSICAL}
    print("| | | " + " | ".join(map(str, LEVELS)) + " |\n|---|---|" + "---|" * len(LEVELS))
    for kind, read in SETS.items():
        images = [torch.from_numpy(np.array(image, np.float32))[None, None] for image in read(options.data)]
        print(f"| {kind} ({len(images)}) | noisy | " + row(lambda x, sigma: x, images))
        for name, program in programs.items():
            print(f"| | {name} | " + row(program, images), flush=True)
    print("\n| | parameters | ms for 256 x 256 |\n|---|---|---|")
    for name, program in programs.items():
        parameters = sum(p.numel() for p in program.parameters()) if isinstance(program, torch.nn.Module) else 0
        print(f"| {name} | {parameters / 1e6:.2f} M | {milliseconds(program):.0f} |")


class EvenSizes(torch.nn.Module):
    """deepinv's FFDNet takes even sizes only."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, sigma):
        height, width = x.shape[-2:]
        padded = torch.nn.functional.pad(x, (0, width % 2, 0, height % 2), mode="reflect")
        return self.network(padded, sigma)[..., :height, :width]


@torch.no_grad()
def row(program, images):
    """Mean PSNR in dB at each noise level."""
    cells = []
    for level in LEVELS:
        scores = []
        for k, clean in enumerate(images):
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(k))
            found = program(clean + level / 255 * noise, level / 255)
            scores.append(-10 * math.log10((found - clean).square().mean().item()))
        cells.append(f"{np.mean(scores):.2f}")
    return " | ".join(cells) + " |"


@torch.no_grad()
def milliseconds(program):
    x = torch.rand(1, 1, 256, 256)
    best = math.inf
    for _ in range(7):
        began = time.process_time()
        program(x, 0.1)
        best = min(best, time.process_time() - began)
    return 1e3 * best


if __name__ == "__main__":
    main()
