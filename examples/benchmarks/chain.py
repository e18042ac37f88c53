"""What undersampling costs a segmentation: held-out T1 brains, measured, reconstructed with pnp.solve, segmented.

    python examples/benchmarks/chain.py DATA/ibsr18 [--every 4] [--out runs/chain]

Coronal slices of the two IBSR subjects that neither denoiser nor segmenter was trained on, at their own resolution;
8 coils on a ring, smooth phase, 1 % noise, random Cartesian masks with 24 calibration lines; sensitivities and noise
level are estimated from each slice's measurements. Dice over all the slices of a subject together.
"""

import argparse
import json
import sys
from pathlib import Path

# some files here are named like the packages that they measure
sys.path = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

import numpy as np
import torch

import denoisers
import pnp
import segmentation
from pnp import demo, quality
from segmentation import metrics

VALIDATION = ("IBSR_04", "IBSR_09")  # see examples/train_segmenters.py


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, help="folder with IBSR_XX.nii.gz and IBSR_XX_seg.nii.gz")
    parser.add_argument("--every", type=int, default=4, help="take every n-th slice (default 4)")
    parser.add_argument("--accelerations", type=float, nargs="+", default=[4, 8])
    parser.add_argument("--algorithm", help="default the recommended one")
    parser.add_argument("--out", type=Path, default=Path("runs/chain"))
    parser.add_argument("--model", default="light", help="network of the segmenter, light or unet")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    denoiser, segmenter = denoisers.load("medical"), segmentation.load("brain-tissue", model=options.model)
    classes = segmenter.classes

    rows = []
    for subject in VALIDATION:
        images, labels = coronal(options.data, subject)
        found = torch.cat([segmenter.predict(part) for part in images.split(8)])
        rows.append((subject, "full, all slices", None, pooled_dice(found, labels, classes)))
        images, labels = images[:: options.every], labels[:: options.every]
        found = torch.cat([segmenter.predict(part) for part in images.split(8)])
        rows.append((subject, "full", None, pooled_dice(found, labels, classes)))
        for acceleration in options.accelerations:
            psnr, found = [], []
            for k, image in enumerate(images):
                op, y, truth = demo.measure(image[None], acceleration, seed=k)
                x = pnp.solve(op, y, denoiser, algorithm=options.algorithm).x
                psnr.append(quality.psnr(x, truth, image > 0).item())
                found.append(segmenter.predict(x))
            scores = pooled_dice(torch.cat(found), labels, classes)
            rows.append((subject, f"{acceleration:g}x", float(np.mean(psnr)), scores))
            print(rows[-1], flush=True)

    print(f"\n| subject | images | slices' PSNR, dB | {' | '.join(classes[1:])} | mean |")
    print("|---|---|---|" + "---|" * len(classes))
    for kind in dict.fromkeys(row[1] for row in rows):
        chosen = [row for row in rows if row[1] == kind]
        mean = (kind, np.mean([row[2] for row in chosen]) if chosen[0][2] else None, np.mean([r[3] for r in chosen], 0))
        for name, psnr, scores in [(row[0], *row[2:]) for row in chosen] + [("mean", *mean[1:])]:
            cells = " | ".join(f"{score:.3f}" for score in [*scores, float(np.mean(scores))])
            print(f"| {name} | {kind} | {'-' if psnr is None else f'{psnr:.2f}'} | {cells} |")
    (options.out / "chain.json").write_text(json.dumps(rows, indent=1))


def pooled_dice(found, labels, classes):
    return metrics.dice(found, labels, len(classes), pooled=True)[0].tolist()


def coronal(folder, subject):
    """Coronal slices (B, 1, 256, 256) in [0, 1] that hold brain, and their labels (B, 256, 256)."""
    scan = pnp.io.load(folder / f"{subject}.nii.gz")
    truth = pnp.io.load(folder / f"{subject}_seg.nii.gz").image[:, 0].long()
    labelled = truth.flatten(1).any(1)
    return scan.image[labelled] / scan.image.max(), truth[labelled]


if __name__ == "__main__":
    main()
