"""What scanners show: filtered back-projection and adjoint of a CT slice, gridded radial and spiral MRI of a brain.

    python examples/direct_reconstructions.py DATA/ct_hu/dcmqi_abdomen_01.dcm direct.png

The brain is the template that comes with the package, with eight simulated coils.
"""

import argparse
import math

import matplotlib.pyplot as plt
import pydicom
import torch

import operators
from operators import coils, ct, trajectories
from pnp import demo, quality


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dicom", help="a CT slice")
    parser.add_argument("picture")
    options = parser.parse_args()
    torch.manual_seed(0)
    panels = {}

    scan = pydicom.dcmread(options.dicom)
    values = torch.from_numpy(scan.pixel_array * float(scan.RescaleSlope) + float(scan.RescaleIntercept)).float()
    water = 0.02 * float(scan.PixelSpacing[0])  # attenuation of water at 60 keV, per mm, times the pixel's size
    x = ct.attenuation(values, water)[None, None]
    window = {"vmin": -160, "vmax": 240}
    panels["CT slice (window -160 to 240 HU)"] = values, window
    half_turn, turn = (torch.arange(720) * angle / 720 for angle in (math.pi, 2 * math.pi))
    fan = values.shape, turn, 1000.0, 500.0
    scanners = {
        "parallel beam": operators.ParallelBeamCT(values.shape, half_turn),
        "fan beam": operators.FanBeamCT(*fan, spacing=1.5),
        "curved, short scan": operators.FanBeamCT(values.shape, turn[:460], *fan[2:], spacing=1.5, detector="curved"),
        "fan beam, 20 000 photons": operators.FanBeamCT(*fan, spacing=1.5, noise_model=operators.LowDose(2e4, 5)),
    }
    for name, op in scanners.items():
        back = op.fbp(op(x), "hann" if "photons" in name else "ram-lak")
        print(f"CT, {name}: FBP {quality.psnr(back, x).item():.2f} dB")
        panels[f"FBP, {name}"] = ct.hounsfield(back[0, 0], water), window
    op = scanners["parallel beam"]
    panels["adjoint, parallel beam"] = op.A_adjoint(op.A(x))[0, 0], {}

    brain, _ = demo.brain()
    brain = brain[:1] / brain[:1].max()
    x = torch.cat([brain, torch.zeros_like(brain)], 1)
    shape = tuple(brain.shape[-2:])
    paths = {"radial, 256 spokes": trajectories.radial(256, 512), "spiral, 32 arms": trajectories.spiral(32, 2000, 4)}
    for name, path in paths.items():
        op = operators.NonCartesianMRI(path, shape, coils.birdcage(shape, 8))
        gridded = op.A_adjoint(op.A(x) * op.density_compensation())
        print(f"MRI, {name}: gridding {quality.psnr(gridded, x).item():.2f} dB")
        panels[f"gridding, {name}"] = quality.magnitude(gridded)[0], {"vmin": 0, "vmax": 1}

    figure, axes = plt.subplots(2, 4, figsize=(16, 8), layout="constrained")
    for axis, (title, (image, settings)) in zip(axes.flat, panels.items()):
        axis.imshow(image, cmap="gray", **settings)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(options.picture, dpi=60)


if __name__ == "__main__":
    main()
