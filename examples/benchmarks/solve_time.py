"""Where the time of one pnp.solve goes, that of posterior samples, and the time to the PSNR of deepinv's DPIR.

    python examples/benchmarks/solve_time.py [--rounds 5]

The ICBM152 T1 template at 256 x 256 pixels: MRI with 8 coils, 4x undersampled, 1 % noise, and CT from 60 views, noise
0.5 % of the largest projection. DPIR works on deepinv's own operators, scaled to norm 1, and is told the noise level;
``pnp.solve`` finds it. All have the same denoiser. One thread, process CPU time, minimum of the rounds, which
alternate; memory is the process's peak so far.
"""

import argparse
import math
import resource
import sys
import time
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import deepinv
import torch
import torch.nn.functional as F

import denoisers
import operators
import pnp
from pnp import demo, quality


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image, _ = demo.brain()
    image = F.interpolate(image[:1] / image[:1].max(), (256, 256), mode="bilinear")
    denoiser = denoisers.load("medical")

    op, y, truth = demo.measure(image, 4)
    solutions = [pnp.solve(op, y, denoiser) for _ in range(options.rounds)]
    best = min(solutions, key=lambda solution: solution.seconds)
    print(best)
    rest = best.seconds - sum(best.split.values())
    for name, took in [*best.split.items(), ("rest", rest)]:
        print(f"{name:9s} {took:6.3f} s  {100 * took / best.seconds:5.1f} %")

    for steps in (10, 20, 40):
        drawn = min(seconds(lambda s=steps: pnp.sample(op, y, denoiser, n=8, steps=s)) for _ in range(3))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"8 samples of {steps} steps: {drawn:.1f} s, {peak:.0f} MB")

    peer = deepinv.physics.MultiCoilMRI(mask=op.mask, coil_maps=op.maps, img_size=(2, 256, 256))
    compare("MRI", op, y, peer, y, truth, 0.01, denoiser, options.rounds)

    ours = operators.ParallelBeamCT((256, 256), torch.arange(60) * math.pi / 60)
    peer = deepinv.physics.Tomography(60, 256, normalize=True)
    pairs = []
    for ct in (ours, peer):
        sinogram = ct.A(image)
        sigma = 0.005 * sinogram.max().item()
        pairs.append(
            (sinogram + sigma * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(0)), sigma)
        )
    compare("CT", ours, pairs[0][0], peer, *pairs[1][:1], image, pairs[1][1], denoiser, options.rounds)


def compare(label, op, y, peer, peer_y, truth, sigma, denoiser, rounds):
    """How long pnp.solve takes to the PSNR of DPIR, and how long it takes in all."""
    model = deepinv.optim.DPIR(sigma=sigma, denoiser=denoisers.adapt(denoiser, channels=truth.shape[1] > 1))
    with torch.no_grad():
        target = quality.psnr(model(peer_y, peer), truth).item()
    count = next(k for k in range(2, 25) if psnr(op, y, denoiser, truth, k) >= target)
    times = {"dpir": [], "equal": [], "whole": []}
    for _ in range(rounds):
        with torch.no_grad():
            times["dpir"].append(seconds(lambda: model(peer_y, peer)))
        times["equal"].append(seconds(lambda: pnp.solve(op, y, denoiser, iterations=count)))
        times["whole"].append(seconds(lambda: pnp.solve(op, y, denoiser)))
    dpir, equal, whole = (min(found) for found in times.values())
    reached = psnr(op, y, denoiser, truth, count)
    print(f"{label}: DPIR {target:.2f} dB in {dpir:.2f} s")
    print(f"  pnp.solve, {count} iterations: {reached:.2f} dB in {equal:.2f} s ({dpir / equal:.1f}x)")
    print(f"  pnp.solve: {psnr(op, y, denoiser, truth):.2f} dB in {whole:.2f} s ({dpir / whole:.1f}x)")


def psnr(op, y, denoiser, truth, iterations=None):
    return quality.psnr(pnp.solve(op, y, denoiser, iterations=iterations).x, truth).item()


def seconds(call):
    began = time.process_time()
    call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
