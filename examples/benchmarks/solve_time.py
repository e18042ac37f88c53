"""Where the time of one pnp.solve goes: 256 x 256 pixels, 8 coils, 4x undersampled, one thread.

python examples/benchmarks/solve_time.py [--rounds 5]
"""

import argparse
import sys
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import torch
import torch.nn.functional as F

import denoisers
import pnp
from pnp import demo

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--threads", type=int, default=1)
options = parser.parse_args()
torch.set_num_threads(options.threads)

image, _ = demo.brain()
image = F.interpolate(image[:1], (256, 256), mode="bilinear")
op, y, _ = demo.measure(image, 4)
denoiser = denoisers.load("medical")
pnp.solve(op, y, denoiser, iterations=2)
solutions = [pnp.solve(op, y, denoiser) for _ in range(options.rounds)]
best = min(solutions, key=lambda solution: solution.seconds)
print(best)
rest = best.seconds - sum(best.split.values())
for name, seconds in [*best.split.items(), ("rest", rest)]:
    print(f"{name:9s} {seconds:6.3f} s  {100 * seconds / best.seconds:5.1f} %")
