"""How large is each tissue, and how sure is that? Posterior samples of an undersampled scan, segmented one by one.

    python examples/volume_intervals.py [--data DATA] [--count 40] [--operator 8x] [--out examples/volume_intervals.png]

A brain measured with 8 coils, 8x undersampled, 1 % noise. Each of eight posterior samples is segmented: their volumes
give an interval, their disagreement tells where the mask is not to be trusted. Without ``--data`` the slices are those
of the bundled ICBM152 template, and the intervals are the samples' own. With ``--data``, the folder of ``ibsr18``,
slices of two subjects that no network saw: the intervals for one subject are widened by what the other one asks for
(split conformal prediction), and printed are how many of them hold the true volume, and Spearman's correlation of the
true Dice error with the expected one and, for comparison, with the mean standard deviation of the pixels.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy import stats

import denoisers
import pnp
import segmentation
from pnp import demo, quality
from pnp.joint import error_propagation, segment_samples, tasks
from pnp.joint.evaluation import measure
from pnp.joint.uncertainty import calibrated
from segmentation import metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt

LEVELS = (0.8, 0.95)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=40, help="slices in all")
    parser.add_argument("--operator", default="8x", choices=["4x", "8x", "radial 8x"])
    parser.add_argument("--out", type=Path, default=Path("examples/volume_intervals.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    denoiser, segmenter = denoisers.load("medical"), segmentation.load("brain-tissue", model="light")
    if options.data:
        groups = [subject(options.data / "ibsr18", name, options) for name in ("04", "09")]
    else:
        images, labels = demo.brain()
        groups = [[(*demo.measure(i[None], 8), l[None]) for i, l in zip(images, labels)]]
    found = []
    for group in groups:
        found.append([])
        for op, y, truth, labels in group:
            samples = pnp.sample(op, y, denoiser, seed=0)
            found[-1].append((segment_samples(samples, segmenter), samples, truth, labels))
    cases = [case for group in found for case in group]
    if len(groups) == 2:
        for level in LEVELS:
            for segmented, *_ in cases:
                segmented.widening = 1.0
            coverage(cases, level, "as they are")
            for own, other in (found, found[::-1]):
                widening = calibrated([case[0] for case in other], [case[3] for case in other], level)
                for segmented, *_ in own:
                    segmented.widening = widening
            coverage(cases, level, "widened")
        correlations(cases)
    picture(cases, options.out)


def subject(folder, name, options):
    """Operator, measurements, image and labels of each slice."""
    paths = [folder / f"IBSR_{name}.nii.gz"], [folder / f"IBSR_{name}_seg.nii.gz"]
    task = tasks.brain_tissue(*paths, count=options.count // 2)
    op = task.operators[options.operator]
    return [(op, measure(op, image, 0.01, k), image, labels) for k, (image, labels) in enumerate(task.cases)]


def coverage(cases, level, name):
    classes, inside = cases[0][0].classes, []
    for segmented, _, _, labels in cases:
        low, high = segmented.volume_interval(level)
        truth = volumes(labels, len(classes) - 1)
        inside.append((low[0] <= truth) & (truth <= high[0]))
    inside = torch.stack(inside).double().mean(0)
    each = ", ".join(f"{tissue} {share:.2f}" for tissue, share in zip(classes[1:], inside.tolist()))
    print(f"intervals of {level:.0%}, {name}: {inside.mean():.2f} hold the truth ({each})")


def correlations(cases):
    errors, expected, deviation = [], [], []
    for segmented, samples, truth, labels in cases:
        errors.append(1 - np.nanmean(metrics.dice(segmented.consensus, labels, len(segmented.classes)).numpy()))
        expected.append(1 - np.nanmean(segmented.expected_dice().numpy()))
        body = quality.magnitude(truth) > 0.05 * truth.max()
        deviation.append(torch.stack([quality.magnitude(x) for x in samples.x]).std(0)[body].mean().item())
    for label, values in (("expected Dice error", expected), ("standard deviation", deviation)):
        rank = stats.spearmanr(errors, values).statistic
        print(f"{label}, Spearman's correlation with the true Dice error: {rank:.2f}")


def volumes(labels, count):
    return torch.stack([(labels == k).sum() for k in range(1, count + 1)])


def picture(cases, out):
    """How errors propagate in one slice, and all intervals."""
    figure = plt.figure(figsize=(13, 6.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    segmented, samples, truth, labels = cases[len(cases) // 4]
    error_propagation(samples, segmented, truth, labels, axes=upper.subplots(1, 5))
    axis = lower.subplots()
    names = segmented.classes[1:]
    for k, name in enumerate(names):
        true = np.array([volumes(labels, len(names))[k].item() for *_, labels in cases])
        low, high = (np.array([case[0].volume_interval()[end][0, k].item() for case in cases]) for end in (0, 1))
        middle = (low + high) / 2
        axis.errorbar(true, middle, (high - low) / 2, fmt="o", markersize=3, label=name, capsize=2, elinewidth=0.8)
    ends = [0, axis.get_xlim()[1]]
    axis.plot(ends, ends, color="gray", linewidth=0.8)
    axis.set_xlabel("true volume, pixels")
    axis.set_ylabel("95 % interval")
    axis.legend()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
