"""Real 8-coil brain k-space, retrospectively undersampled: pnp.solve beside BART, SigPy and the classical methods.

    python examples/benchmarks/kspace.py DATA/kspace8ch/full.npy [--seeds 3] [--out runs/kspace]

Every method gets the same undersampled k-space and the same ESPIRiT maps, estimated from its calibration region. The
regularisation weights of BART and SigPy are the best of five, chosen with the truth, separately for every mask and
seed: an advantage for them. ``pnp.solve`` is called with operator, measurements and bundled denoiser, nothing else.
PSNR (peak: the largest value) and SSIM of the magnitude inside the head, against the fully sampled coil combination.
BART is called through its command line (``apt install bart``), SigPy is ``pip install sigpy``; a missing one is left
out.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import matplotlib
import numpy as np
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity

import denoisers
import operators
import pnp
from operators.mri import from_complex, to_complex

WEIGHTS = {  # of data with a maximum of 1 in the image
    "BART wavelet": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "BART TV": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "SigPy wavelet": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kspace", type=Path, help="fully sampled k-space (N, H, W), .npy")
    parser.add_argument("--seeds", type=int, default=3, help="masks of each kind")
    parser.add_argument("--denoiser", default="medical")
    parser.add_argument("--out", type=Path, default=Path("runs/kspace"))
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--accelerated", type=Path, help="a scan of the same head that was accelerated, .cfl or .npy")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kspace = torch.from_numpy(np.load(options.kspace))
    denoiser = denoisers.load(options.denoiser)
    shape = kspace.shape[1:]
    masks = {
        "Cartesian 4x": lambda seed: operators.masks.cartesian(shape, 4, calibration=24, seed=seed),
        "Poisson 8x": lambda seed: operators.masks.poisson(shape, 8, calibration=24, seed=seed),
    }
    head = head_mask(kspace)
    if options.accelerated:
        scan = pnp.io.load(options.accelerated)
        image = to_complex(pnp.solve(scan.op, scan.y, denoiser).x)[0].abs().numpy()
        reference = combine(kspace, operators.coils.espirit(kspace))
        psnr, ssim = scores(image, reference, head)
        acceleration = scan.metadata["acceleration"]
        print(f"{options.accelerated.name} ({acceleration:.2f}x)  pnp.solve  {psnr:.2f} dB  SSIM {ssim:.4f}")
        picture({"pnp.solve": image}, reference, {"pnp.solve": psnr}, "accelerated", options.out / "accelerated.png")
    rows = []
    for mask_name, make in masks.items():
        for seed in range(options.seeds):
            mask = make(seed)
            images, reference, seconds = reconstruct(kspace, mask, denoiser, head, not options.without_peers)
            for method, image in images.items():
                psnr, ssim = scores(image, reference, head)
                rows.append((mask_name, seed, method, psnr, ssim, seconds[method]))
                figures = f"{psnr:6.2f} dB  SSIM {ssim:.4f}  {seconds[method]:6.2f} s"
                print(f"{mask_name:13s} seed {seed}  {method:14s} {figures}")
            if seed == 0:
                psnrs = {row[2]: row[3] for row in rows if row[:2] == (mask_name, 0)}
                path = options.out / f"{mask_name.replace(' ', '-').lower()}.png"
                picture(images, reference, psnrs, mask_name, path)
    print("\n| mask | method | PSNR, dB | SSIM | seconds |\n|---|---|---|---|---|")
    for mask_name in masks:
        for method in dict.fromkeys(row[2] for row in rows):
            chosen = [row for row in rows if row[0] == mask_name and row[2] == method]
            psnr, ssim, seconds = (np.mean([row[i] for row in chosen]) for i in (3, 4, 5))
            print(f"| {mask_name} | {method} | {psnr:.2f} | {ssim:.4f} | {seconds:.2f} |")


def reconstruct(kspace, mask, denoiser, head, peers):
    """Magnitude images by every method, the reference with the same maps, and the seconds each method took."""
    undersampled = kspace * mask
    maps = operators.coils.espirit(undersampled)
    reference = combine(kspace, maps)
    op, y = operators.MRI(mask, maps), from_complex(undersampled[None])
    images, seconds = {}, {}
    for method, algorithm in (("zero filling", "direct"), ("CG-SENSE", "cg"), ("pnp.solve", None)):
        began = time.perf_counter()
        solution = pnp.solve(op, y, denoiser, algorithm=algorithm)
        images[method], seconds[method] = to_complex(solution.x)[0].abs().numpy(), time.perf_counter() - began
    runs = {}
    if peers and shutil.which("bart"):
        runs["BART wavelet"] = lambda weight: bart(undersampled, maps, f"-RW:7:0:{weight}")
        runs["BART TV"] = lambda weight: bart(undersampled, maps, f"-RT:7:0:{weight}")
    if peers:
        try:
            import sigpy.mri

            def sigpy_wavelet(weight):
                app = sigpy.mri.app.L1WaveletRecon(
                    undersampled.numpy(), maps.numpy(), weight, weights=mask.numpy(), max_iter=100, show_pbar=False
                )
                return np.abs(app.run())

            runs["SigPy wavelet"] = sigpy_wavelet
        except ImportError:
            print("SigPy is not installed: left out")
    scale = float(reference.max())
    for method, run in runs.items():
        best = -np.inf
        for weight in WEIGHTS[method]:
            # BART scales its data itself; SigPy's weight is in the units of the data
            began = time.perf_counter()
            image = run(weight * scale if method == "SigPy wavelet" else weight)
            taken = time.perf_counter() - began
            psnr, _ = scores(image, reference, head)
            if psnr > best:
                best, images[method], seconds[method], chosen = psnr, image, taken, weight
        print(f"  {method}: best weight {chosen:g}")
    order = [name for name in images if name != "pnp.solve"] + ["pnp.solve"]
    return {name: images[name] for name in order}, reference, seconds


def bart(kspace, maps, regulariser):
    """``bart pics``, whose arrays are (x, y, z, coil) in Fortran order."""
    with tempfile.TemporaryDirectory() as folder:
        for name, array in (("k", kspace), ("s", maps)):
            write_cfl(Path(folder) / name, array.numpy().transpose(1, 2, 0)[:, :, None])
        command = ["bart", "pics", "-d0", "-S", "-e", "-i100", regulariser, "k", "s", "x"]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        subprocess.run(command, cwd=folder, check=True, env=environment, stdout=subprocess.DEVNULL)
        return np.abs(np.fromfile(Path(folder) / "x.cfl", np.complex64).reshape(kspace.shape[:0:-1]).T)


def write_cfl(path, array):
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + "\n")
    array.astype(np.complex64).ravel("F").tofile(path.with_suffix(".cfl"))


def combine(kspace, maps):
    """Magnitude of the coil combination of fully sampled k-space."""
    op = operators.MRI(torch.ones(kspace.shape[1:]), maps)
    return to_complex(op.A_adjoint(from_complex(kspace[None])))[0].abs().numpy()


def head_mask(kspace):
    """The head, holes filled, from the fully sampled root sum of squares."""
    flat = operators.MRI(torch.ones(kspace.shape[1:]))
    coils = flat.A_adjoint(torch.view_as_real(kspace).movedim(-1, 1).contiguous())
    energy = coils.square().sum((0, 1)).sqrt().numpy()
    solid = ndimage.binary_closing(energy > 0.06 * energy.max(), iterations=3)
    return ndimage.binary_fill_holes(ndimage.binary_opening(solid, iterations=2))


def scores(image, reference, head):
    peak = float(reference[head].max())
    psnr = 20 * np.log10(peak / np.sqrt(np.mean((image - reference)[head] ** 2)))
    _, ssim = structural_similarity(image, reference, data_range=peak, full=True)
    return float(psnr), float(ssim[head].mean())


def picture(images, reference, psnr, title, path):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(images) + 1, figsize=(3 * len(images) + 3, 7.6), layout="constrained")
    peak = 0.6 * reference.max()
    axes[0, 0].imshow(reference, cmap="gray", vmin=0, vmax=peak)
    axes[0, 0].set_title("fully sampled")
    for (top, bottom), (method, image) in zip(axes[:, 1:].T, images.items()):
        top.imshow(image, cmap="gray", vmin=0, vmax=peak)
        top.set_title(f"{method}\n{psnr[method]:.2f} dB")
        bottom.imshow(np.abs(image - reference), cmap="gray", vmin=0, vmax=0.1 * reference.max())
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle(f"{title}; below: the error, ten times brighter")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
