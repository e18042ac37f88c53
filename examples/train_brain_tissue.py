"""Train the bundled brain-tissue segmenter on the IBSR-18 subjects.

    python examples/train_brain_tissue.py DATA/ibsr18 runs/brain-tissue

Slices along all three axes, the native coronal ones three times as often; two subjects are kept for validation.
"""

import argparse
from pathlib import Path

import torch

import segmentation
from segmentation.data import read_volume

VALIDATION = ("IBSR_04", "IBSR_09")
CLASSES = ("background", "CSF", "grey matter", "white matter")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with IBSR_XX.nii.gz and IBSR_XX_seg.nii.gz")
    parser.add_argument("out", type=Path, help="folder for weights, card and checkpoint")
    parser.add_argument("--steps", type=int, default=6000)
    options = parser.parse_args()
    torch.set_num_threads(1)

    training, validation = [], []
    for labels in sorted(options.data.glob("IBSR_*_seg.nii.gz")):
        subject = labels.name.removesuffix("_seg.nii.gz")
        image = labels.with_name(f"{subject}.nii.gz")
        if subject in VALIDATION:
            validation += read_volume(image, labels, axes=(1,))[10:-10:8]
        else:
            training += 3 * read_volume(image, labels, axes=(1,)) + read_volume(image, labels, axes=(0, 2))

    card = {
        "task": "tissue of T1 brains, with or without skull: ventricular CSF, grey matter, white matter",
        "data": "IBSR-18 (MGH Center for Morphometric Analysis), subjects 01 03 05 06 07 08 16 18; 04 and 09 held out",
        "licence": "trained on data released for research with acknowledgement; the images are not in the package",
        "recipe": "examples/train_brain_tissue.py",
    }
    settings = {"steps": options.steps, "heads": True, "card": card}
    segmentation.train(training, CLASSES, options.out, validation=validation, **settings)


if __name__ == "__main__":
    main()
