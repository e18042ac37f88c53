"""Training of the segmentation networks, resumable."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import nn
from tqdm import tqdm

from denoisers import weights as files
from segmentation.augment import augment
from segmentation.data import Pair, fit
from segmentation.library import save, standardise
from segmentation.unet import UNet


def train(
    pairs: list[Pair],
    classes: tuple[str, ...],
    out: str | Path,
    *,
    network: nn.Module | None = None,
    validation: list[Pair] = (),
    steps: int = 6000,
    batch: int = 8,
    size: int = 192,
    learning_rate: float = 2e-3,
    heads: bool = False,
    half: bool | None = None,
    validate_every: int = 500,
    save_minutes: float = 10.0,
    seed: int = 0,
    card: dict | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train a segmentation network on labelled slices and write weights and card to a folder.

    Dice plus cross-entropy (MONAI's), AdamW with warm-up and cosine decay, gradients clipped at norm 1, moving average
    of the weights, and the augmentation of :func:`segmentation.augment.augment`. A run that was interrupted goes on
    from ``out/checkpoint.pt`` when it is called again.

    :param pairs: slices (H, W) with class numbers (H, W); any mix of sizes.
    :param classes: names of the classes, the background first.
    :param out: folder for ``checkpoint.pt``, ``weights.safetensors``, ``weights.json`` and ``log.csv``.
    :param network: network to train or fine-tune; default a new :class:`segmentation.UNet`.
    :param validation: slices whose Dice is logged.
    :param steps: number of optimiser steps.
    :param batch: slices a step.
    :param size: side of the square that is cut from each slice.
    :param learning_rate: peak learning rate.
    :param heads: put synthetic heads around skull-stripped brains, so that whole heads are segmented too.
    :param half: run in bfloat16; None for True where the processor does it fast.
    :param seed: seed of the order, the augmentation and new weights.
    :param card: what the model card tells besides steps, CPU-hours and scores (data, licence notes).
    :return: the network with the averaged weights.
    :raises FloatingPointError: when the loss is no longer finite.
    """
    if not pairs:
        raise ValueError("pairs: expected at least one labelled slice, got none")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = (UNet(len(classes)) if network is None else network).to(memory_format=torch.channels_last)
    device = next(network.parameters()).device
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=files.moving_average(0.998))
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps + 1, pct_start=0.05)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    order, random = np.random.default_rng(seed), torch.Generator(device).manual_seed(seed)
    run = {"step": 0, "cpu_seconds": 0.0}
    half = files.half_is_fast(device) if half is None else half

    checkpoint = out / "checkpoint.pt"
    parts = {"network": network, "averaged": averaged, "optimiser": optimiser, "rate": rate}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=False)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        order.bit_generator.state, run = saved["order"], saved["run"]
        random.set_state(saved["random"])

    def save_checkpoint():
        states = {name: part.state_dict() for name, part in parts.items()}
        states |= {"order": order.bit_generator.state, "random": random.get_state(), "run": run}
        files.checkpoint(checkpoint, states)

    canvas = size * 4 // 3
    network.train()
    last_save, last_cpu = time.monotonic(), time.process_time()
    bar = tqdm(range(run["step"], steps), initial=run["step"], total=steps, disable=not progress, mininterval=5)
    for step in bar:
        chosen = [pairs[i] for i in order.integers(len(pairs), size=batch)]
        images = torch.from_numpy(np.stack([fit(image, canvas) for image, _ in chosen]))[:, None].to(device)
        labels = torch.from_numpy(np.stack([fit(mask, canvas) for _, mask in chosen])).to(device)
        images, labels = augment(images, labels, size, random, heads)
        images = standardise(images).to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = network(images)
        loss = criterion(logits.float(), labels[:, None])
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
            run["dice"] = validate(averaged.module, validation, classes) if len(validation) else {}
            scores = ",".join(f"{name}={value:.4f}" for name, value in run["dice"].items())
            with (out / "log.csv").open("a") as log:
                log.write(f"{run['step']},{run['cpu_seconds']:.0f},{loss.item():.4f},{scores}\n")
        if time.monotonic() - last_save > 60 * save_minutes or run["step"] == steps:
            save_checkpoint()
            last_save = time.monotonic()
            save(averaged.module, out / "weights.safetensors", _card(run, classes, seed, len(pairs), card))
    return averaged.module.eval()


@torch.no_grad()
def validate(network: nn.Module, pairs: list[Pair], classes: tuple[str, ...]) -> dict[str, float]:
    """Dice of each class but the background, over all pixels of all slices together."""
    network.eval()
    device = next(network.parameters()).device
    overlap, total = np.zeros(len(classes)), np.zeros(len(classes))
    for image, labels in pairs:
        found = network(standardise(torch.from_numpy(image)[None, None].to(device))).argmax(1)[0].cpu().numpy()
        for k in range(len(classes)):
            overlap[k] += 2 * np.sum((found == k) & (labels == k))
            total[k] += np.sum(found == k) + np.sum(labels == k)
    return {name: float(o / max(t, 1)) for name, o, t in zip(classes[1:], overlap[1:], total[1:])}


def _card(run: dict, classes, seed: int, count: int, extra: dict | None) -> dict:
    return {
        "classes": list(classes),
        "slices": count,
        "steps": run["step"],
        "cpu_hours": round(run["cpu_seconds"] / 3600, 2),
        "seed": seed,
        "validation_dice": {name: round(value, 4) for name, value in run.get("dice", {}).items()},
    } | (extra or {})
