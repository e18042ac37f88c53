"""Command line of the training, ``python -m segmentation.train``; see :func:`segmentation.training.train`."""

import argparse
import json
import sys
from pathlib import Path

import torch

from denoisers import processes
from segmentation.data import read, split
from segmentation.implicit_ukan import ImplicitUKAN2
from segmentation.library import load
from segmentation.training import train
from segmentation.transunet import TransUNet
from segmentation.ukan import UKAN
from segmentation.unet import UNet

MODELS = {"light": ImplicitUKAN2, "paper": ImplicitUKAN2, "unet": UNet, "ukan": UKAN, "transunet": TransUNet}
EPILOG = "Several processes: torchrun --nproc-per-node 2 -m segmentation.train ..."


def main(arguments: list[str] | None = None) -> None:
    title = train.__doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m segmentation.train", description=title, epilog=EPILOG)
    parser.add_argument(
        "data", help=".npz of images and masks, folder of images/ and masks/, or nnU-Net's layout; see data.read"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, card, log, split and checkpoint")
    parser.add_argument("--classes", help="names with commas between, the background first; default by number")
    parser.add_argument("--model", choices=MODELS, default="light")
    parser.add_argument("--from", dest="start", help="weights file to fine-tune")
    parser.add_argument("--window", type=float, nargs=2, help="range of intensities that is seen, such as -160 240")
    parser.add_argument("--validation", type=float, default=0.15, help="share of the cases")
    parser.add_argument("--test", type=float, default=0.15, help="share of the cases that is set aside")
    parser.add_argument("--folds", type=int, help="cross-validation: how many folds")
    parser.add_argument("--fold", type=int, default=0, help="which one validates")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=192, help="side of the square that is cut from each slice")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--strength", type=float, default=1.0, help="of the augmentation, 0 to 1")
    parser.add_argument("--deep-supervision", action="store_true")
    parser.add_argument("--patience", type=int, help="epochs without a better Dice after which it stops")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="such as cuda")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rank, _ = processes.join()

    cases = read(options.data, options.window)
    shares = {"validation": options.validation, "test": options.test, "folds": options.folds, "fold": options.fold}
    kept = options.out / "split.json"
    parts = split(list(cases), kept if rank == 0 or kept.exists() else None, **shares, seed=options.seed)
    training, validation = ([pair for name in parts[k] for pair in cases[name]] for k in ("training", "validation"))
    count = 1 + max(int(labels.max()) for pairs in cases.values() for _, labels in pairs)
    classes = tuple(options.classes.split(",")) if options.classes else tuple(map(str, range(count)))
    torch.manual_seed(options.seed)
    if options.start:
        network = load(options.start).network
    else:
        settings = {"variant": options.model} if MODELS[options.model] is ImplicitUKAN2 else {}
        network = MODELS[options.model](len(classes), len(training[0][0]), **settings)
    train(
        training,
        classes,
        options.out,
        network=network.to(options.device),
        validation=validation,
        epochs=options.epochs,
        batch=options.batch,
        size=options.size,
        learning_rate=options.learning_rate,
        strength=options.strength,
        deep_supervision=options.deep_supervision,
        patience=options.patience,
        seed=options.seed,
        progress=rank == 0,
    )
    if rank == 0:
        print(json.dumps({"weights": str(options.out / "weights.safetensors"), "split": str(kept)}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
