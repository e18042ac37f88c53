"""Training of the segmentation networks, resumable to the bit."""

from __future__ import annotations

import csv
import time
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from torch import Tensor, nn
from tqdm import tqdm

from denoisers import processes
from denoisers import weights as files
from denoisers.muon import Muon
from segmentation.augment import augment
from segmentation.data import Pair, fit
from segmentation.library import save, standardise
from segmentation.metrics import dice
from segmentation.unet import UNet


def train(
    pairs: list[Pair],
    classes: tuple[str, ...],
    out: str | Path,
    *,
    network: nn.Module | None = None,
    validation: list[Pair] = (),
    epochs: int = 100,
    steps: int | None = None,
    batch: int = 2,
    size: int = 192,
    learning_rate: float = 3e-3,
    strength: float = 1.0,
    heads: bool = False,
    deep_supervision: bool = False,
    patience: int | None = None,
    half: bool | None = None,
    save_minutes: float = 10.0,
    seed: int = 0,
    card: dict | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train a segmentation network on labelled slices and write weights and card to a folder.

    Dice plus cross-entropy (MONAI's), warm-up and cosine decay, gradients clipped at norm 1, moving average of the
    weights, the augmentation of :func:`segmentation.augment.augment`, and :class:`denoisers.muon.Muon`, with which a
    few epochs reach what Adam needs many times as many for. A run that was interrupted goes on from
    ``out/checkpoint.pt`` when it is called again with the same arguments, and ends with the same weights as an
    uninterrupted one. Under ``torchrun --nproc-per-node N`` the batch is shared out among N processes.

    :param pairs: slices (H, W) or (C, H, W), scaled to about [0, 1], with class numbers (H, W); any mix of sizes.
    :param classes: names of the classes, the background first.
    :param out: folder for ``checkpoint.pt``, ``weights.safetensors`` (those with the best Dice where there is
        validation), ``last.safetensors``, their cards, and ``log.csv`` with a row for each epoch.
    :param network: network to train or fine-tune, with ``num_classes`` and ``settings``, the keyword arguments that
        build it, like this package's; default a new :class:`segmentation.UNet`.
    :param validation: slices whose Dice, the mean over the slices and over the classes that they show, chooses the best
        epoch. Take others to test on.
    :param epochs: passes through the slices.
    :param steps: length of an epoch in optimiser steps, default what one pass takes.
    :param batch: slices a step. Many small steps train the light network better than fewer large ones (with 8 in place
        of 2: 0.025 to 0.045 less Dice at equal epochs); on a GPU, larger batches run faster.
    :param size: side of the square that is cut from each slice, anywhere where it is larger.
    :param learning_rate: peak learning rate.
    :param strength: of the augmentation; 0 is none.
    :param heads: put synthetic heads around skull-stripped brains, so that whole heads are segmented too.
    :param deep_supervision: train logits from the decoder's coarser levels, too (Lee et al., 2015), for networks with
        a list ``decoder`` of levels, finest first, of channels ``widths``.
    :param patience: stop when the validation Dice has not improved for that many epochs.
    :param half: run in bfloat16; None for True where the processor does it fast.
    :param save_minutes: minutes between checkpoints.
    :param seed: seed of the order, the augmentation and new weights.
    :param card: what the model card tells besides steps, CPU-hours and scores (data, licence notes).
    :param progress: show a progress bar.
    :return: the network with the averaged weights, of the best epoch where there is validation.
    :raises ValueError: without slices, for other shapes, for images that are not scaled to about [0, 1], for labels
        beyond the classes (in validation likewise), a network of other classes or channels, a batch that cannot be
        shared out evenly, or a folder with a run of other arguments.
    :raises FloatingPointError: when the loss is no longer finite.
    """
    rank, count = processes.join()
    _check("pairs", pairs, classes, _channels(pairs))
    _check("validation", validation, classes, _channels(pairs))
    _check_network(network, len(classes), _channels(pairs) or (1,))
    for name, value in {"epochs": epochs, "steps": steps, "size": size, "patience": patience, "batch": batch}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")
    if batch % count:
        raise ValueError(f"batch: expected a multiple of the {count} processes, got {batch}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = UNet(len(classes), *_channels(pairs)) if network is None else network
    network = network.to(memory_format=torch.channels_last).requires_grad_()
    device = next(network.parameters()).device
    model = _DeeplySupervised(network) if deep_supervision else network
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=files.moving_average(0.998), use_buffers=True)
    steps = steps or -(-len(pairs) // batch)
    optimiser = Muon(model.parameters(), lr=learning_rate)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * steps + 1, pct_start=0.05)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    random = torch.Generator(device).manual_seed(seed + rank)
    run = {"step": 0, "epoch": 0, "cpu_seconds": 0.0, "best": -1.0, "best_epoch": 0, "loss": 0.0, "stopped": False}
    half = files.half_is_fast(device) if half is None else half

    checkpoint = out / "checkpoint.pt"
    arguments = {
        "network": type(network).__name__, "settings": network.settings, "classes": tuple(classes),
        "slices": len(pairs), "data": _checksum(pairs), "validation": _checksum(validation), "epochs": epochs,
        "steps": steps, "batch": batch, "size": size, "learning_rate": learning_rate, "strength": strength,
        "heads": heads, "deep_supervision": deep_supervision, "half": half, "seed": seed, "processes": count,
    }  # fmt: skip
    parts = {"network": model, "averaged": averaged, "optimiser": optimiser, "rate": rate}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=False)
        for name, before in saved["arguments"].items():
            if before != arguments[name]:
                raise ValueError(
                    f"out: {out} holds a run with {name} {before}, not {arguments[name]}; take another one"
                )
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        run = saved["run"]
        random.set_state(saved["random"][rank].cpu())
        if rank == 0:
            _forget(out / "log.csv", run["epoch"])

    def save_checkpoint():
        states = {name: part.state_dict() for name, part in parts.items()}
        states |= {"run": run, "arguments": arguments, "random": processes.collect(random.get_state())}
        if rank == 0:
            files.checkpoint(checkpoint, states)
        processes.wait()

    def write(name: str, scores: dict):
        if rank == 0:
            save(averaged.module, out / f"{name}.safetensors", _card(run, classes, seed, len(pairs), scores, card))
        processes.wait()

    model.train()
    last_save, last_cpu = time.monotonic(), time.process_time()
    hidden = rank > 0 or not progress
    for epoch in range(run["epoch"], 0 if run["stopped"] else epochs):
        order = _order(len(pairs), epoch, steps * batch, seed)
        start = run["step"] - epoch * steps
        for step in tqdm(
            range(start, steps), f"epoch {epoch + 1}/{epochs}", steps, False, mininterval=5, disable=hidden
        ):
            chosen = [pairs[i] for i in order[step * batch : (step + 1) * batch][rank::count]]
            images, labels = _batch(chosen, size, device, random)
            images, labels = augment(images, labels, size, random, strength, heads)
            images = standardise(images).to(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = model(images)
            loss = _loss(criterion, logits, labels)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"training diverged in epoch {epoch + 1}: the loss is {loss.item()}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            processes.average(p.grad for p in model.parameters() if p.grad is not None)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            rate.step()
            averaged.update_parameters(network)
            run |= {"step": run["step"] + 1, "loss": loss.item()}
            run["cpu_seconds"] += time.process_time() - last_cpu
            last_cpu = time.process_time()
            if processes.any_of(time.monotonic() - last_save > 60 * save_minutes):
                save_checkpoint()
                last_save = time.monotonic()

        run["epoch"] = epoch + 1
        processes.average(b for m in (network, averaged) for b in m.buffers() if b.is_floating_point())
        scores = validate(averaged.module, validation, classes) if len(validation) else {}
        scores = processes.collect(scores)[0]  # one decision for all
        told = np.array(list(scores.values()))
        mean = float(np.nanmean(told)) if np.isfinite(told).any() else None
        if rank == 0:
            _log(
                out / "log.csv",
                {"epoch": epoch + 1, "cpu_seconds": round(run["cpu_seconds"]), "loss": run["loss"]} | scores,
            )
        if mean is None or mean > run["best"]:
            run |= {"best": run["best"] if mean is None else mean, "best_epoch": epoch + 1}
            write("weights", scores)
        run["stopped"] = patience is not None and epoch + 1 - run["best_epoch"] >= patience
        if epoch + 1 == epochs or run["stopped"]:
            save_checkpoint()
            write("last", scores)
        if run["stopped"]:
            break
        last_cpu = time.process_time()
    return files.read(out / "weights.safetensors", {type(network).__name__: type(network)}).to(device)


def _channels(pairs: list[Pair]) -> tuple[int, ...]:
    """Of the first image, or none for a single one."""
    return pairs[0][0].shape[:-2] if len(pairs) else ()


def _check(name: str, pairs: list[Pair], classes: tuple[str, ...], channels: tuple[int, ...]) -> None:
    if not len(pairs) and name == "pairs":
        raise ValueError("pairs: expected at least one labelled slice, got none")
    for index, (image, labels) in enumerate(pairs):
        if not isinstance(image, np.ndarray) or not isinstance(labels, np.ndarray):
            found = f"{type(image).__name__} with {type(labels).__name__} at {index}"
            raise TypeError(f"{name}: expected NumPy arrays of images and of labels, got {found}")
        if image.ndim not in (2, 3) or labels.ndim != 2 or image.shape[-2:] != labels.shape:
            raise ValueError(
                f"{name}: expected images (H, W) or (C, H, W) with labels (H, W), got {image.shape} with "
                f"{labels.shape} at {index}"
            )
        if image.shape[:-2] != channels:
            raise ValueError(f"{name}: expected as many channels in each image, got {image.shape} at {index}")
        if not np.issubdtype(image.dtype, np.floating) or not np.isfinite(image).all():
            raise ValueError(f"{name}: expected finite floating-point images, got {image.dtype} at {index}")
        low, high = np.percentile(image, (1, 99))
        if low < -0.2 * max(high, 1) or high > 10:
            raise ValueError(f"{name}: expected images scaled to about [0, 1], got {low:g} to {high:g} at {index}")
        if labels.min() < 0 or labels.max() >= len(classes):
            found = f"{labels.min()} to {labels.max()} at {index}"
            raise ValueError(
                f"{name}: expected labels below {len(classes)}, the number of classes, and from 0, got {found}"
            )


def _check_network(network: nn.Module | None, classes: int, channels: tuple[int, ...]) -> None:
    if classes < 2:
        raise ValueError(f"classes: expected the background and at least one more, got {classes}")
    if network is None:
        return
    if missing := [name for name in ("num_classes", "settings") if not hasattr(network, name)]:
        raise ValueError(f"network: expected one with {' and '.join(missing)}, got {type(network).__name__}")
    if network.num_classes != classes:
        raise ValueError(f"network: expected one for {classes} classes, got one for {network.num_classes}")
    if getattr(network, "in_channels", channels[0]) != channels[0]:
        raise ValueError(f"network: expected one for {channels[0]} channels, got one for {network.in_channels}")


def _checksum(pairs: list[Pair]) -> int:
    total = 0
    for part in (part for pair in pairs for part in pair):
        total = zlib.crc32(np.ascontiguousarray(part), total)
    return total


def _forget(log: Path, epochs: int) -> None:
    """Drop what was written after the checkpoint."""
    if log.exists():
        files.replace(log, "".join(log.read_text().splitlines(True)[: 1 + epochs]).encode())


def _order(slices: int, epoch: int, length: int, seed: int) -> np.ndarray:
    """Which slices an epoch goes through, each as often as any other."""
    rng = np.random.default_rng((seed, epoch))
    return np.concatenate([rng.permutation(slices) for _ in range(-(-length // slices))])[:length]


def _batch(pairs: list[Pair], size: int, device, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (B, C, S, S) and labels (B, S, S) on a canvas that leaves the augmentation room: the middle of smaller
    slices, any part of larger ones."""
    canvas = size + size // 6 * 2  # even room, so that without augmentation pixels stay where they are
    cut = [_part(image, labels, canvas, random) for image, labels in pairs]
    images = torch.from_numpy(np.stack([fit(image.astype(np.float32), canvas) for image, _ in cut]))
    labels = torch.from_numpy(np.stack([fit(mask, canvas) for _, mask in cut]))
    return (images[:, None] if images.ndim == 3 else images).to(device), labels.to(device)


def _part(image: np.ndarray, labels: np.ndarray, size: int, random: torch.Generator) -> Pair:
    for axis in (-2, -1):
        if (room := labels.shape[axis] - size) > 0:
            start = torch.randint(room + 1, (), generator=random, device=random.device).item()
            image, labels = (part.take(range(start, start + size), axis) for part in (image, labels))
    return image, labels


def _loss(criterion: nn.Module, logits: Tensor | list[Tensor], labels: Tensor) -> Tensor:
    """Of one or several resolutions, finest first, whose weights halve."""
    logits = [logits] if isinstance(logits, Tensor) else logits
    labels, total, weights = labels[:, None], 0.0, 0.0
    for k, part in enumerate(logits):
        target = F.interpolate(labels.float(), part.shape[-2:], mode="nearest").long()
        total, weights = total + 0.5**k * criterion(part.float(), target), weights + 0.5**k
    return total / weights


class _DeeplySupervised(nn.Module):
    """A network and 1 x 1 convolutions from its decoder's coarser levels to logits."""

    def __init__(self, network: nn.Module):
        super().__init__()
        if not hasattr(network, "widths") or not isinstance(getattr(network, "decoder", None), nn.ModuleList):
            raise ValueError(f"deep_supervision: expected a network with decoder levels, got {type(network).__name__}")
        self.network = network
        widths = network.widths[1 : len(network.decoder)]
        self.heads = nn.ModuleList(nn.Conv2d(width, network.num_classes, 1) for width in widths)
        self.seen = {}
        for k, level in enumerate(network.decoder[1:]):
            level.register_forward_hook(lambda module, inputs, output, k=k: self.seen.update({k: output}))

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.network(x)] + [head(self.seen[k]) for k, head in enumerate(self.heads)]


@torch.no_grad()
def validate(network: nn.Module, pairs: list[Pair], classes: tuple[str, ...]) -> dict[str, float]:
    """Mean Dice of each class but the background over the slices that show it or where it is found."""
    network.eval()
    device = next(network.parameters()).device
    scores = []
    for image, labels in pairs:
        image = torch.from_numpy(image).to(device, torch.float32)
        image = (image[None] if image.ndim == 2 else image)[None]
        found = network(standardise(image)).argmax(1).cpu()
        scores.append(dice(found, torch.from_numpy(labels)[None].long(), len(classes))[0])
    return dict(zip(classes[1:], torch.stack(scores).nanmean(0).tolist()))


def _log(path: Path, row: dict) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow({key: round(value, 4) for key, value in row.items()})


def _card(run: dict, classes, seed: int, count: int, scores: dict, extra: dict | None) -> dict:
    return {
        "classes": list(classes),
        "slices": count,
        "epochs": run["epoch"],
        "steps": run["step"],
        "cpu_hours": round(run["cpu_seconds"] / 3600, 2),
        "seed": seed,
        "validation_dice": {name: round(value, 4) for name, value in scores.items()},
    } | (extra or {})
