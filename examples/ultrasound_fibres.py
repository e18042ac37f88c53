"""Beamform real plane-wave echoes of nylon fibres, by delay-and-sum and by least squares.

    python examples/ultrasound_fibres.py DATA/us_rf/fibres_L7-4.mat fibres.png

The file is that of Garcia et al., *Stolt's f-k migration for plane wave ultrasound imaging*, IEEE Trans Ultrason
Ferroelectr Freq Control 2013: 7 plane waves, 128 elements. When the recording starts is found from the data.
"""

import argparse

import matplotlib.pyplot as plt
import scipy.io
import torch

import operators
import pnp
from operators import bmode
from pnp import quality

FIBRES = ((22e-3, 1.7e-3), (41e-3, 1.9e-3), (61e-3, 1.9e-3))  # (z, x) in metres, roughly
PULSE_FROM = 1  # the fibre whose echo is taken for the pulse


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recording")
    parser.add_argument("picture")
    options = parser.parse_args()
    file = scipy.io.loadmat(options.recording)
    settings = {name: file["param1"][name][0, 0].ravel() for name in file["param1"].dtype.names}
    echoes = torch.from_numpy(file["RF1"].astype("float32")).permute(2, 1, 0) - 128
    echoes = (echoes - echoes.mean(-1, keepdim=True))[None, None]
    angles = torch.from_numpy(settings["TXangle"]).float()
    fs, c, pitch = (float(settings[name][0]) for name in ("fs", "c", "pitch"))
    elements = torch.stack([(torch.arange(128) - 63.5) * pitch, torch.zeros(128)], -1)
    # the element that fires first starts the clock, the wave passes the array's middle later
    middle = 63.5 * pitch * angles.sin().abs() / c
    dz = c / fs / 2

    def array(origin, size, start, pulse=None, dx=pitch / 2, k=slice(None)):
        return operators.PlaneWaveUltrasound(
            size, angles[k], elements, echoes.shape[-1], fs, c, start + middle[k],
            pixel_size=(dz, dx), pixel_origin=origin, f_number=1.5, pulse=pulse,
        )  # fmt: skip

    def around(z, x, start, **kwargs):
        return array((z - 60 * dz - c * start / 2, x - 15 * pitch), (160, 60), start, **kwargs)

    starts = torch.arange(0.0, 3e-6, 0.125e-6).tolist()
    sharpness = [
        sum(bmode.envelope(around(z, x, s, k=[3]).A_adjoint(echoes[:, :, 3:4])).max().log() for z, x in FIBRES)
        for s in starts
    ]
    start = starts[torch.stack(sharpness).argmax()]
    print(f"t0: {1e6 * start:.3f} us, where the fibres are brightest")

    rf = around(*FIBRES[PULSE_FROM], start).A_adjoint(echoes)[0, 0]
    z, x = divmod(bmode.envelope(rf).argmax().item(), rf.shape[1])
    pulse = rf[z - 20 : z + 21, x] * torch.hann_window(43, periodic=False)[1:-1]

    least_squares = pnp.algorithms.ConjugateGradients(iterations=20, rho=1e-3)
    noise = echoes[..., 1500:1600].std().item()
    print("fibre    delay and sum        least squares        least squares with the pulse   (lateral, axial FWHM, mm)")
    for depth, across in FIBRES:
        row = []
        for model in (None, None, pulse):
            op = around(depth, across, start, pulse=model)
            x = pnp.solve(op, echoes, None, algorithm=least_squares, noise=noise).x if row else op.A_adjoint(echoes)
            row.append(widths(bmode.envelope(x)[0, 0], dz, pitch / 2))
        print(f"{1e3 * depth:.0f} mm " + "".join("{:12.3f} {:6.3f}".format(*pair) for pair in row))

    size, origin = (2080, 128), (3e-3, elements[0, 0].item())
    images = {}
    for name, model in (("delay and sum", None), ("least squares with the pulse", pulse)):
        op = array(origin, size, start, model, dx=pitch)
        if model is None:
            x = op.A_adjoint(echoes)
        else:
            x = pnp.solve(op, echoes, None, algorithm=least_squares, noise=noise).x
        images[name] = bmode.bmode(x, 50)[0, 0]
    figure, axes = plt.subplots(1, 2, figsize=(9, 10), layout="constrained")
    extent = [1e3 * elements[0, 0], 1e3 * elements[-1, 0], 1e3 * (origin[0] + size[0] * dz), 1e3 * origin[0]]
    for axis, (name, image) in zip(axes, images.items()):
        axis.imshow(image, cmap="gray", extent=[float(e) for e in extent])
        axis.set(title=name, xlabel="x in mm", ylabel="z in mm")
    figure.savefig(options.picture, dpi=60)


def widths(envelope, dz, dx):
    """Lateral and axial full width at half maximum in mm of the brightest point within 2 mm of the middle."""
    middle = envelope[20:100, 20:40]
    row, column = divmod(middle.argmax().item(), middle.shape[1])
    row, column = row + 20, column + 20
    return quality.fwhm(envelope[row], 1e3 * dx), quality.fwhm(envelope[:, column], 1e3 * dz)


if __name__ == "__main__":
    main()
