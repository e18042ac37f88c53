"""PSNR in each iteration, and the denoiser's levels: DPIR's half-quadratic splitting beside the default algorithm.

    python examples/dpir_schedule.py [--denoiser medical-medium] [--out examples/dpir_schedule.png]

Zhang et al., *Plug-and-play image restoration with deep denoiser prior* (DPIR), TPAMI 2021, alternate a data step and a
denoiser whose level falls geometrically; the data's weight follows it. That is `"hqs"`. The default, `"drs"`, passes
reflections on between the two, so that few iterations go further. Both are given 4, 8, 16 and 32 iterations for a
slice of the ICBM152 template (8 coils, 4x undersampled, 1 % noise, sensitivities from the data). Neither is told
anything: the first level is fixed, the last follows the noise that is found. A schedule that is longer is not the
shorter one carried on, it falls more slowly; stopping one early gives an image that is still blurred.
"""

import argparse

import matplotlib.pyplot as plt

import denoisers
import pnp
from pnp import demo, quality

COUNTS = (4, 8, 16, 32)
NOISE = 0.01
COLOURS = {"hqs": "tab:orange", "drs": "tab:blue"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--denoiser", default="medical")
    parser.add_argument("--out", default="examples/dpir_schedule.png")
    options = parser.parse_args()
    denoiser = denoisers.load(options.denoiser)
    image = demo.brain()[0][1:2]
    op, y, truth = demo.measure(image, 4, noise=NOISE)
    brain = image[:, 0] > 0

    figure, (quality_axis, level_axis) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    print("| iterations | HQS (DPIR) | DRS (default) | HQS, at its half | DRS, at its half |\n|---|---|---|---|---|")
    for count in COUNTS:
        curves = {}
        for name, colour in COLOURS.items():
            curve = curves[name] = []

            def score(k, x, curve=curve):
                curve.append(quality.psnr(x, truth, brain).item())

            solution = pnp.solve(op, y, denoiser, algorithm=name, iterations=count, callback=score)
            look = {"color": colour, "marker": ".", "alpha": 0.35 + 0.65 * COUNTS.index(count) / (len(COUNTS) - 1)}
            steps = range(1, solution.iterations + 1)
            quality_axis.plot(steps, curve, **look, label=f"{name}, {count}")
            level_axis.semilogy(steps, solution.history["sigma"], **look)
        halves = [curve[count // 2 - 1] for curve in curves.values()]
        cells = [f"{value:.2f} dB" for value in (*(curve[-1] for curve in curves.values()), *halves)]
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)
    print(f"noise found: {solution.noise:.4f} (true: {NOISE:.4f})")
    quality_axis.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, xlabel="iteration", ylabel="PSNR in dB")
    quality_axis.minorticks_off()
    handles, labels = quality_axis.get_legend_handles_labels()
    quality_axis.legend(handles[::2] + handles[1::2], labels[::2] + labels[1::2], ncols=2, fontsize=8)
    level_axis.set(xscale="log", xticks=COUNTS, xticklabels=COUNTS, xlabel="iteration", ylabel="denoiser level / range")
    level_axis.minorticks_off()
    for axis in (quality_axis, level_axis):
        axis.grid(alpha=0.3)
    figure.savefig(options.out, dpi=90)


if __name__ == "__main__":
    main()
