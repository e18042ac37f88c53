"""Reconstruction and segmentation judged together on three tasks: which solver keeps the segmentation?

    python examples/joint_tasks.py [--data DATA] [--out runs/joint] [--only vertebra] [--count 20] [--workers 2]

Brain tissue from multi-coil MRI, vertebrae from sparse-view and low-dose CT, breast lesions from degraded ultrasound,
on images that neither denoiser nor segmenter saw; without ``--data``, brain tissue on three slices of the bundled
ICBM152 template. For each task, a CSV of all rows (an interrupted run goes on from
it), a table of means with bootstrap intervals over the cases, differences from zero filling, FBP or the blurred image
paired by case, the rank correlation between PSNR and Dice, and the scatter.
"""

import argparse
from pathlib import Path

import torch

from pnp.joint import tasks

BASELINE = "direct"


def brain(data, count):
    if data is None:
        return tasks.brain_tissue()
    images = [data / "ibsr18" / f"IBSR_{subject}.nii.gz" for subject in ("04", "09")]
    return tasks.brain_tissue(images, [i.with_name(i.name.replace(".nii", "_seg.nii")) for i in images], count=count)


TASKS = {
    "brain-tissue": brain,
    "vertebra": lambda data, count: tasks.vertebra(data / "ct_vertebra" / "train.npz", first=1520, count=count),
    "breast-lesion": lambda data, count: tasks.breast_lesion(data / "busi256" / "train.npz", first=490, count=count),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of ibsr18, ct_vertebra and busi256")
    parser.add_argument("--out", type=Path, default=Path("runs/joint"))
    parser.add_argument("--only", nargs="+", choices=list(TASKS), metavar="TASK")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    every = TASKS if options.data else ["brain-tissue"]
    for name in options.only or every:
        task = TASKS[name](options.data, options.count)
        table = task.evaluate(workers=options.workers, out=options.out / f"{name}.csv", progress=True)
        print(f"\n{name}: {len(task.cases)} cases\n")
        print(
            "| operator | solver | PSNR | Dice, 95 % interval | minus direct, paired | HD95 | s |\n" + "|---" * 7 + "|"
        )
        for _, row in table.summary(BASELINE).iterrows():
            dice = f"{row['dice']:.3f} ({row['dice_low']:.3f} to {row['dice_high']:.3f})"
            low, high = row["dice_difference_low"], row["dice_difference_high"]
            gain = f"{row['dice_difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            print(f"| {row['operator']} | {row['solver']} | {row['psnr']:.2f} | {dice} | {gain} |", end=" ")
            print(f"{row['hd95']:.1f} | {row['seconds']:.2f} |")
        rank = table.rank_correlation()
        interval = f"{rank['low']:.2f} to {rank['high']:.2f}"
        print(f"\nSpearman's rank correlation of PSNR and Dice: {rank['rho']:.2f} ({interval})")
        table.plot(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
