"""Training of the denoisers: any mix of image sources, every noise level, resumable to the bit."""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from denoisers import weights as files
from denoisers.data import Patches, Source, parse_source
from denoisers.library import save
from denoisers.muon import Muon
from denoisers.unet import ResidualUNet

VALIDATION_LEVELS = (1, 5, 15, 25, 50, 100)  # in units of 1/255


def train(
    sources: dict[str, Source],
    out: str | Path,
    *,
    network: nn.Module | None = None,
    steps: int = 40_000,
    batch: int = 16,
    patch: int = 64,
    learning_rate: float = 2e-3,
    warmup: int = 300,
    squared_share: float = 0.3,
    average: float = 0.999,
    validate_every: int = 4000,
    save_minutes: float = 10.0,
    seed: int = 0,
    card: dict | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train a denoiser and write weights, card and log to a folder.

    The loss is the absolute error, divided by its running mean for the patch's source and noise level, so that low
    noise and smooth images count as much as the rest (without this, a network harms images with little noise); the
    last ``squared_share`` of the steps uses the squared error, whose minimiser is the posterior mean.
    :class:`Muon` with warm-up and cosine decay; gradients clipped at norm 1; the written weights are an exponential
    moving average.

    A run that was interrupted goes on from ``out/checkpoint.pt`` when it is called again with the same arguments, and
    ends with the same weights as an uninterrupted one.

    :param sources: named image sources, see :class:`denoisers.data.Source`.
    :param out: folder for ``checkpoint.pt``, ``weights.safetensors``, ``weights.json`` and ``log.csv``.
    :param network: network to train or fine-tune, ``network(x, sigma)``; default a new small :class:`ResidualUNet`.
    :param steps: number of optimiser steps.
    :param batch: patches a step.
    :param patch: side of the patches in pixels.
    :param learning_rate: peak learning rate.
    :param warmup: steps of linear warm-up.
    :param squared_share: share of the steps, at the end, that is trained in squared error.
    :param average: decay of the moving average of the weights.
    :param validate_every: steps between rows of PSNR in ``log.csv``.
    :param save_minutes: minutes between checkpoints.
    :param seed: seed of patches, noise and new weights.
    :param card: what the model card tells besides steps, CPU-hours, data and scores (recipe, licence notes).
    :param progress: show a progress bar.
    :return: the network with the averaged weights.
    :raises FloatingPointError: when the loss is no longer finite.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = (ResidualUNet() if network is None else network).to(memory_format=torch.channels_last).requires_grad_()
    device = next(network.parameters()).device
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=files.moving_average(average))
    optimiser = Muon(network.parameters(), lr=learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, _warmup_cosine(warmup, steps))
    patches = Patches(sources, patch, batch, seed)
    balance = Balance(len(sources))
    noise = torch.Generator(device).manual_seed(seed)
    run = {"step": 0, "cpu_seconds": 0.0}

    checkpoint = out / "checkpoint.pt"
    parts = {"network": network, "averaged": averaged, "optimiser": optimiser, "rate": rate}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        patches.state, balance.mean, run = saved["patches"], saved["balance"], saved["run"]
        noise.set_state(saved["noise"])

    def save_checkpoint():
        states = {name: part.state_dict() for name, part in parts.items()}
        states |= {"patches": patches.state, "balance": balance.mean, "noise": noise.get_state(), "run": run}
        files.checkpoint(checkpoint, states)

    network.train()
    last_save, last_cpu = time.monotonic(), time.process_time()
    bar = tqdm(range(run["step"], steps), initial=run["step"], total=steps, disable=not progress, mininterval=5)
    for step in bar:
        clean, kinds, sigma = (torch.from_numpy(array).to(device) for array in patches.draw())
        level = sigma.view(-1, 1, 1, 1)
        noisy = clean + level * torch.randn(clean.shape, generator=noise, device=device)
        squared = step >= (1 - squared_share) * steps
        error = network(noisy, sigma) - clean
        error = (error.square() if squared else error.abs()).mean((1, 2, 3))
        loss = (balance.weights(error.detach(), kinds, sigma, squared) * error).mean()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"training diverged at step {step}: the loss is {loss.item()}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        averaged.update_parameters(network)

        run["step"] = step + 1
        run["cpu_seconds"] += time.process_time() - last_cpu
        last_cpu = time.process_time()
        if run["step"] % validate_every == 0 or run["step"] == steps:
            _log(out / "log.csv", run, validate(averaged.module, sources))
        if time.monotonic() - last_save > 60 * save_minutes or run["step"] == steps:
            save_checkpoint()
            last_save = time.monotonic()
            save(averaged.module, out / "weights.safetensors", _card(network, sources, run, seed, card))
    return averaged.module.eval()


class Balance:
    """Running mean of the error for each source, band of noise levels and kind of loss."""

    BANDS = 16

    def __init__(self, sources: int):
        self.mean = torch.zeros(2, sources, self.BANDS)

    def weights(self, error: Tensor, kinds: Tensor, sigma: Tensor, squared: bool) -> Tensor:
        """Update the means with ``error`` (B,) and return 1/mean for each item (B,)."""
        position = (sigma.log() - math.log(0.5 / 255)) / -math.log(0.5 / 255)
        bands = (position * self.BANDS).long().clamp(0, self.BANDS - 1)
        mean = self.mean[int(squared)]
        for value, kind, band in zip(error.tolist(), kinds.tolist(), bands.tolist()):
            old = mean[kind, band].item()
            mean[kind, band] = value if old == 0 else 0.98 * old + 0.02 * value
        return 1 / mean[kinds.cpu(), bands.cpu()].clamp_min(1e-12).to(error.device)


@torch.no_grad()
def validate(
    denoiser: Callable, sources: dict[str, Source], levels: tuple[float, ...] = VALIDATION_LEVELS
) -> dict[str, dict[float, float]]:
    """Mean PSNR in dB (peak 1) on held-out slices: for each source, a value for each noise level (in 1/255)."""
    device = next((p.device for p in getattr(denoiser, "parameters", list)()), torch.device("cpu"))
    table = {}
    for name, source in sources.items():
        slices = source.validation_slices()
        table[name] = {}
        for level in levels if slices else ():
            generator = torch.Generator().manual_seed(0)
            scores = []
            for image in slices:
                clean = torch.from_numpy(image.astype("float32"))[None, None]
                noisy = clean + level / 255 * torch.randn(clean.shape, generator=generator)
                error = denoiser(noisy.to(device), level / 255).cpu() - clean
                scores.append(-10 * math.log10(error.square().mean().item()))
            table[name][level] = sum(scores) / len(scores)
    return table


def _warmup_cosine(warmup: int, steps: int):
    def factor(step):
        return min((step + 1) / warmup, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1))))

    return factor


def _log(path: Path, run: dict, table: dict) -> None:
    row = {"step": run["step"], "cpu_seconds": round(run["cpu_seconds"])}
    row |= {f"{name}@{level}": round(psnr, 3) for name, levels in table.items() for level, psnr in levels.items()}
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    run["validation_psnr"] = {name: {str(k): round(v, 2) for k, v in levels.items()} for name, levels in table.items()}


def _card(network: nn.Module, sources: dict[str, Source], run: dict, seed: int, extra: dict | None) -> dict:
    before = getattr(network, "card", {})  # of bundled weights that the training went on from
    return {
        "steps": before.get("steps", 0) + run["step"],
        "cpu_hours": round(before.get("cpu_hours", 0) + run["cpu_seconds"] / 3600, 2),
        "seed": seed,
        "data": {name: {"weight": s.weight, "images": len(s.images)} for name, s in sources.items()},
        "validation_psnr": run.get("validation_psnr", {}),
    } | (extra or {})


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m denoisers.train``."""
    parser = argparse.ArgumentParser(prog="python -m denoisers.train", description=train.__doc__.split("\n")[0])
    parser.add_argument(
        "sources", nargs="+", help="name=path[,path...][:weight][:hu][:complex]: images and their share in the mix"
    )
    parser.add_argument("--out", required=True, help="folder for weights, card, log and checkpoint")
    parser.add_argument("--from", dest="start", help="bundled name or weights file to fine-tune")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128], help="channels of each level")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.start:
        from denoisers.library import load

        network = load(options.start)
    else:
        torch.manual_seed(options.seed)
        network = ResidualUNet(tuple(options.widths))
    network = train(
        dict(parse_source(text) for text in options.sources),
        options.out,
        network=network,
        steps=options.steps,
        batch=options.batch,
        patch=options.patch,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    print(json.dumps({"weights": str(Path(options.out) / "weights.safetensors"), "parameters": _count(network)}))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
