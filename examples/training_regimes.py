"""What a segmenter should be trained on where it gets reconstructions: clean images, reconstructions, or both?

    python examples/training_regimes.py [--data DATA] [--slices 56] [--epochs 8]

Brains by 8 coils, 8x undersampled, from IBSR-18 (``DATA/ibsr18``), reconstructed with `pnp.solve`. The bundled
segmenter goes on training on slices of its own training subjects: as they are, as they are reconstructed, or half of
them so. Dice is the mean over slices of two subjects that no network saw, fully sampled and reconstructed, the
differences from the bundled segmenter with 95 % bootstrap intervals, paired by slice. Without ``--data``, the bundled
template's three slices both train and judge, which shows the way but not the gain.
"""

import argparse
import runpy
import tempfile
from pathlib import Path

import torch

import segmentation
from pnp import quality
from pnp.joint import evaluate, through
from segmentation.evaluation import interval

ADAPTED = runpy.run_path(str(Path(__file__).with_name("task_adapted.py")))
REGIMES = {"clean images": 0.0, "reconstructions": 1.0, "both alike": 0.5}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of ibsr18")
    parser.add_argument("--slices", type=int, default=56, help="that it goes on training on")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--count", type=int, default=20, help="slices that judge")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = ADAPTED["brains"](options.data, ADAPTED["TEST"], options.count)
    scanner = {"8x": task.operators["8x"]}
    cases = ADAPTED["brains"](options.data, ADAPTED["TRAINING"], options.slices).cases
    pairs = [(quality.magnitude(image)[0].numpy(), labels[0].numpy()) for image, labels in cases]

    def scores(segmenter):
        frame = evaluate(task.cases, scanner, ("oracle", "pnp"), segmenter).frame
        return [frame["dice"][frame["solver"] == solver].to_numpy() for solver in ("oracle", "pnp")]

    bundled = scores(task.segmenter)
    print("| trained on | Dice, fully sampled | gain | Dice, 8x | gain |\n" + "|---" * 5 + "|")
    print(f"| as bundled | {bundled[0].mean():.3f} | | {bundled[1].mean():.3f} | |", flush=True)
    for regime, share in REGIMES.items():
        seen = through(pairs, scanner, share=share)
        network, classes = segmentation.load("brain-tissue").network, task.segmenter.classes
        with tempfile.TemporaryDirectory() as folder:
            settings = {"epochs": options.epochs, "size": 192, "learning_rate": 5e-4, "progress": False}
            network = segmentation.train(seen, classes, folder, network=network, **settings)
        texts = []
        for now, before in zip(scores(segmentation.Segmenter(network, classes)), bundled):
            low, high = interval(now - before)
            texts.append(f"{now.mean():.3f} | {(now - before).mean():+.3f} ({low:+.3f} to {high:+.3f})")
        print(f"| {regime} | " + " | ".join(texts) + " |", flush=True)


if __name__ == "__main__":
    main()
