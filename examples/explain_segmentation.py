"""What a segmentation rests on: curves, the path of the equations, unsettled pixels, and the pixels that matter.

    python examples/explain_segmentation.py [--data DATA/ct_vertebra/train.npz --first 1503] [--out runs/explain]

Writes explanation.png (for one image: the mask at the start, in the middle and at the end of the last equation, how far
halving the steps moves the answer, integrated gradients), curves.png (the most important curves over what each one is
given), and prints Dice against the share of the curves' inputs that is kept, Dice with formulas in place of the curves,
and how fast the answer falls when the most important pixels are blurred. Without ``--data``, of the brain-tissue
segmenter on the three slices of the bundled ICBM152 template.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

import segmentation
from pnp import demo
from segmentation import Segmenter, explain
from segmentation.data import read
from segmentation.evaluation import evaluate, interval
from segmentation.library import standardise


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="images and masks, see segmentation.data.read")
    parser.add_argument("--out", type=Path, default=Path("runs/explain"))
    parser.add_argument("--task", default="vertebra", help="what is segmented on them")
    parser.add_argument("--first", type=int, default=0, help="first image, after those of the training")
    parser.add_argument("--every", type=int, default=4)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.data:
        pairs = [pairs[0] for pairs in read(options.data).values()][options.first :: options.every]
    else:
        pairs = [(image.numpy(), tissue.numpy()) for image, tissue in zip(*demo.brain())]
    segmenter = segmentation.load(options.task if options.data else "brain-tissue", model="light")
    network, classes = segmenter.network, segmenter.classes
    images = standardise(torch.from_numpy(np.stack([image for image, _ in pairs[:8]])))

    print("| curves' inputs kept | Dice | parameters | MFLOP |\n|---|---|---|---|")
    for keep in (1.0, 0.75, 0.5, 0.25, 0.1):
        row(f"{keep:.0%}", explain.prune(network, images, keep), pairs, classes, images)
    row("formulas in place of curves", explain.symbolic(network, images), pairs, classes, images)

    faithful(segmenter, pairs[:: 4 if len(pairs) > 12 else 1])
    explain.plot_curves(network, images).savefig(options.out / "curves.png", dpi=110)
    picture(segmenter, pairs[len(pairs) // 2]).savefig(options.out / "explanation.png", dpi=110)


def row(name, network, pairs, classes, images):
    dice = np.nanmean(evaluate(Segmenter(network, classes).predict, pairs, classes).images("dice"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images[:1])
    parameters = sum(p.numel() for p in network.parameters()) / 1e6
    print(f"| {name} | {dice:.4f} | {parameters:.2f} M | {counter.get_total_flops() / 1e6:.0f} |", flush=True)


def faithful(segmenter, pairs):
    """Mean probability while the most salient pixels are blurred: the smaller, the more faithful."""
    untrained, areas = (
        explain.randomised(segmenter),
        {"integrated gradients": [], "untrained network": [], "random": []},
    )
    for image, labels in pairs:
        x = torch.from_numpy(image)[None]
        if not (segmenter.predict(x) == 1).any() or not labels.any():
            continue
        maps = {
            "integrated gradients": explain.attribution(segmenter, x, 1),
            "untrained network": explain.attribution(untrained, x, 1),
            "random": torch.rand(1, *x.shape[-2:]),
        }
        for name, saliency in maps.items():
            areas[name].append(explain.deletion(segmenter, x, saliency, 1).mean())
    print(f"\nprobability left while pixels are blurred, mean over the curve and {len(areas['random'])} images:")
    for name, values in areas.items():
        low, high = interval(values)
        print(f"  {name}: {np.mean(values):.3f} ({low:.3f} to {high:.3f})")
    for name in ("untrained network", "random"):
        low, high = interval(np.subtract(areas[name], areas["integrated gradients"]))
        print(f"  {name} minus integrated gradients, paired: {low:+.3f} to {high:+.3f}")


def picture(segmenter, pair):
    image, labels = pair
    x = torch.from_numpy(image)[None]
    network = segmenter.network
    with torch.no_grad():
        steps = network.decoder[0][0].steps
        network.decoder[0][0].steps = 4
        path = [logits.argmax(1)[0] for logits in network.trajectory(standardise(x))]
        network.decoder[0][0].steps = steps
        moved = explain.unsettled(network, standardise(x))[0]
    saliency = explain.attribution(segmenter, x, 1)[0]
    figure = Figure(figsize=(15, 3), layout="constrained")
    axes = figure.subplots(1, 6)
    for axis, mask, title in zip(axes, (path[0], path[2], path[4]), ("t = 0", "t = 1/2", "t = 1")):
        axis.imshow(image[0], cmap="gray")
        for outline, colour in ((labels, "lime"), (mask.numpy(), "red")):
            if outline.any():
                axis.contour(outline > 0, [0.5], colors=colour, linewidths=0.9)
        axis.set_title(f"mask at {title}")
    axes[3].imshow(moved, cmap="magma")
    axes[3].set_title(f"unsettled pixels, up to {moved.max():.2f}")
    axes[4].imshow(saliency.clamp(max=saliency.flatten().quantile(0.99)), cmap="magma")
    axes[4].set_title("integrated gradients")
    axes[5].plot(np.linspace(0, 1, 21), explain.deletion(segmenter, x, saliency[None], 1), label="most salient first")
    axes[5].plot(np.linspace(0, 1, 21), explain.deletion(segmenter, x, torch.rand(1, *moved.shape), 1), label="random")
    axes[5].set_title("probability as pixels are blurred", fontsize=9)
    axes[5].legend(fontsize=7)
    for axis in axes[:5]:
        axis.axis("off")
    return figure


if __name__ == "__main__":
    main()
