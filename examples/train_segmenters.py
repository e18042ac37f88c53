"""Train the bundled segmenters: brain tissue on T1 MRI, breast lesions on ultrasound, vertebrae on CT.

    python examples/train_segmenters.py brain-tissue DATA runs/brain-tissue-light
    python examples/train_segmenters.py breast-lesion DATA runs/breast-lesion-unet --model unet

DATA holds the folders named below. An interrupted run goes on where it was when it is started again. A test set that
neither training nor the choice of the epoch saw is scored at the end; the card keeps its scores.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import segmentation
from denoisers.weights import replace
from segmentation.data import read, read_volume, split
from segmentation.evaluation import evaluate

RESEARCH = "trained on data released for research with acknowledgement; the images are not in the package"
UNSTATED = "the images' licence is not stated; they are not in the package"


def brain_tissue(folder):
    """Slices along all three axes, the native coronal ones three times as often; subjects are kept apart."""
    parts = {"training": [], "validation": [], "test": [], "volumes": []}
    for labels in sorted((folder / "ibsr18").glob("IBSR_*_seg.nii.gz")):
        subject = labels.name[5:7]
        image = labels.with_name(f"IBSR_{subject}.nii.gz")
        if subject == "16":
            parts["validation"] += read_volume(image, labels, axes=(1,))[10:-10:4]
        elif subject in ("04", "09"):
            parts["volumes"].append(read_volume(image, labels, axes=(1,)))
            parts["test"] += parts["volumes"][-1]
        else:
            parts["training"] += 3 * read_volume(image, labels, axes=(1,)) + read_volume(image, labels, axes=(0, 2))
    return parts


def breast_lesion(folder):
    """The last 26 images, which the bundled denoisers did not see either, are tested on with 51 others."""
    cases = read(folder / "busi256" / "train.npz")
    parts = split(list(cases)[:490], validation=0.1, test=0.105)
    parts["test"] += list(cases)[490:]
    return {part: [pair for name in names for pair in cases[name]] for part, names in parts.items()}


def vertebra(folder):
    """The slices are those of nine volumes, one after the other, with a jump between each two: they are kept apart."""
    slices = [pairs[0] for pairs in read(folder / "ct_vertebra" / "train.npz").values()]
    return {"training": slices[:1332], "validation": slices[1332:1503], "test": slices[1503:]}


TASKS = {
    "brain-tissue": {
        "load": brain_tissue,
        "classes": ("background", "CSF", "grey matter", "white matter"),
        "settings": {"epochs": 40, "steps": 400, "size": 192, "heads": True},
        "card": {
            "task": "tissue of T1 brains, with or without skull: ventricular CSF, grey matter, white matter",
            "data": "IBSR-18 (MGH CMA), subjects 01 03 05 06 07 08 18; 16 for validation; 04 and 09 for the test",
            "licence": RESEARCH,
        },
    },
    "breast-lesion": {
        "load": breast_lesion,
        "classes": ("background", "lesion"),
        "settings": {"epochs": 50, "size": 256},
        "card": {
            "task": "benign and malignant lesions on breast ultrasound (B-mode)",
            "data": "BUSI (Al-Dhabyani et al., 2020), 516 images with lesions; tested on the last 26 and 51 others",
            "licence": UNSTATED,
        },
    },
    "vertebra": {
        "load": vertebra,
        "classes": ("background", "vertebra"),
        "settings": {"epochs": 20, "size": 128},
        "card": {
            "task": "vertebrae on windowed CT slices",
            "data": "1600 slices, nine volumes, of the EGE-UNet repository, 128 x 128; one volume validates, one tests",
            "licence": UNSTATED,
        },
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="folder for weights, card, log and checkpoint")
    parser.add_argument("--model", choices=("light", "unet"), default="light")
    parser.add_argument("--epochs", type=int, help="default the task's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[options.task]
    parts, classes = task["load"](options.data), task["classes"]
    settings = task["settings"] | ({"epochs": options.epochs} if options.epochs else {})
    torch.manual_seed(options.seed)
    network = (segmentation.ImplicitUKAN2 if options.model == "light" else segmentation.UNet)(len(classes))
    card = task["card"] | {"recipe": "examples/train_segmenters.py"}
    network = segmentation.train(
        parts["training"],
        classes,
        options.out,
        network=network,
        validation=parts["validation"],
        seed=options.seed,
        card=card,
        **settings,
    )
    segmenter = segmentation.Segmenter(network, classes).calibrate(parts["validation"])
    summary = evaluate(segmenter.predict, parts["test"], classes).summary()
    print(summary[summary["score"].isin(("dice", "hd95"))].round(3).to_string(index=False))
    path = options.out / "weights.json"
    card = json.loads(path.read_text())
    dice = summary[summary["score"] == "dice"]
    card["test_dice"] = {
        row["class"]: [round(row[k], 3) for k in ("mean", "low", "high")] for _, row in dice.iterrows()
    }
    card["temperature"] = round(segmenter.temperature, 3)
    card["test_slices"] = len(parts["test"])
    replace(path, (json.dumps(card, indent=2) + "\n").encode())
    dice = evaluate(segmenter.predict, parts["test"], classes).images("dice")
    for volume in parts.get("volumes", ()):
        print("Dice over a volume:", ", ".join(f"{score:.3f}" for score in volume_dice(segmenter, volume)))
    order = [k for k in np.argsort(dice) if np.isfinite(dice[k])]
    pictures(segmenter, [parts["test"][order[int(q * (len(order) - 1))]] for q in (0.95, 0.5, 0.0)], options.out)


def volume_dice(segmenter, pairs):
    """Of each class, over all slices together, and their mean."""
    found = torch.cat([segmenter.predict(torch.from_numpy(image)[None, None]) for image, _ in pairs])
    labels = torch.from_numpy(np.stack([labels for _, labels in pairs]))
    scores = []
    for k in range(1, len(segmenter.classes)):
        both = ((found == k) & (labels == k)).sum()
        scores.append((2 * both / ((found == k).sum() + (labels == k).sum())).item())
    return [*scores, float(np.mean(scores))]


def pictures(segmenter, pairs, out):
    """A good, a median and the worst case: image, true outline (green), found outline (red)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.3), layout="constrained")
    for axis, (image, labels), title in zip(figure.subplots(1, 3), pairs, ("good", "median", "worst")):
        image = image if image.ndim == 2 else image[0]
        found = segmenter.predict(torch.from_numpy(image)[None, None])[0].numpy()
        axis.imshow(image, cmap="gray")
        for k in range(1, len(segmenter.classes)):
            for mask, colour in ((labels == k, "lime"), (found == k, "red")):
                if mask.any():
                    axis.contour(mask, [0.5], colors=colour, linewidths=0.8)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(out / "cases.png", dpi=110)


if __name__ == "__main__":
    main()
