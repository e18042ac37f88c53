"""Command line of the training, ``python -m denoisers.train``; see :func:`denoisers.training.train`."""

import argparse
import json
import sys
from pathlib import Path

import torch

from denoisers.data import parse_source
from denoisers.library import load
from denoisers.training import train
from denoisers.unet import ResidualUNet

EPILOG = "Several processes: torchrun --nproc-per-node 2 -m denoisers.train ..."


def main(arguments: list[str] | None = None) -> None:
    title = train.__doc__.split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m denoisers.train", description=title, epilog=EPILOG)
    parser.add_argument(
        "sources",
        nargs="+",
        help="name=path[,path...][:weight][:hu][:complex][:noisy]: images, their share in the mix, whether they are CT "
        "in Hounsfield units, magnitudes of complex images, or noisy",
    )
    parser.add_argument("--out", required=True, help="folder for weights, card, log and checkpoint")
    parser.add_argument("--from", dest="start", help="bundled name or weights file to fine-tune")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128], help="channels of each level")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--sigma-max", type=float, default=1.0, help="highest noise level, in units of the range")
    parser.add_argument("--coloured-share", type=float, default=0.0, help="share of patches with noise of any colour")
    parser.add_argument("--nonexpansive", type=float, default=0.0, help="weight of the penalty on expansion")
    parser.add_argument("--restarts", type=int, default=0, help="warm restarts of the learning rate")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw patches ahead, for a GPU")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # slow numbers, to which what is left of dead units decays
    if options.start:
        network = load(options.start)
    else:
        torch.manual_seed(options.seed)
        network = ResidualUNet(tuple(options.widths))
    sources = dict(parse_source(text) for text in options.sources)
    if len(sources) < len(options.sources):
        raise ValueError(f"sources: expected a name of its own for each, got {', '.join(options.sources)}")
    network = train(
        sources,
        options.out,
        network=network.to(options.device),
        steps=options.steps,
        batch=options.batch,
        patch=options.patch,
        sigma_max=options.sigma_max,
        learning_rate=options.learning_rate,
        restarts=options.restarts,
        coloured_share=options.coloured_share,
        nonexpansive=options.nonexpansive,
        seed=options.seed,
        workers=options.workers,
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(json.dumps({"weights": str(Path(options.out) / "weights.safetensors"), "parameters": parameters}))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"{sys.argv[0]}: {error}")
