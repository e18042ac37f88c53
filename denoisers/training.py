"""Training of the denoisers: any mix of image sources, every noise level, resumable to the bit."""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from denoisers import processes
from denoisers import weights as files
from denoisers.convergent import expansion
from denoisers.data import Patches, Source
from denoisers.library import save
from denoisers.muon import Muon
from denoisers.noise import coloured
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
    sigma_max: float = 1.0,
    learning_rate: float = 2e-3,
    warmup: int = 300,
    restarts: int = 0,
    squared_share: float = 0.3,
    average: float = 0.999,
    coloured_share: float = 0.0,
    nonexpansive: float = 0.0,
    validate_every: int = 4000,
    save_minutes: float = 10.0,
    seed: int = 0,
    workers: int = 0,
    card: dict | None = None,
    progress: bool = True,
) -> nn.Module:
    r"""Train a denoiser and write weights, card and log to a folder.

    The loss is the absolute error, divided by its running mean for the patch's source and noise level, so that low
    noise and smooth images count as much as the rest (without this, a network harms images with little noise); the
    last ``squared_share`` of the steps uses the squared error, whose minimiser is the posterior mean.
    :class:`Muon` with warm-up and cosine decay; gradients clipped at norm 1; the written weights are an exponential
    moving average.

    Patches of noisy sources get more noise n, and are to become patches with the opposite noise, in squared error: with
    y of noise level s, from :math:`y + a n` the network is asked for :math:`y - (s^2/a) n`. The two have independent
    noise, so that it learns what it would from clean images (Pang et al., *Recorrupted-to-recorrupted*, CVPR 2021), at
    the level :math:`\sqrt{s^2 + a^2}`. Of lower levels such images tell nothing: at half of s and below, a network that
    was trained before is asked for what it gave then (of the patches as it denoised them, and new noise), so that it
    does not unlearn them; a new one is left to its homogeneity, and should better see some clean images, too.

    A run that was interrupted goes on from ``out/checkpoint.pt`` when it is called again with the same arguments, and
    ends with the same weights as an uninterrupted one. Under ``torchrun --nproc-per-node N`` the batch is shared out
    among N processes.

    :param sources: named image sources, see :class:`denoisers.data.Source`.
    :param out: folder for ``checkpoint.pt``, ``weights.safetensors``, ``weights.json`` and ``log.csv``.
    :param network: network to train or fine-tune, ``network(x, sigma)``, on the device that is to train it; default a
        new small :class:`ResidualUNet`.
    :param steps: number of optimiser steps.
    :param batch: patches a step.
    :param patch: side of the patches in pixels.
    :param sigma_max: highest noise level, in units of the images' range: above 1 for a prior that is to start from
        noise alone (:func:`denoisers.sample`).
    :param learning_rate: peak learning rate.
    :param warmup: steps of linear warm-up.
    :param restarts: how often the cosine starts again from the peak, in parts of equal length.
    :param squared_share: share of the steps, at the end, that is trained in squared error.
    :param average: decay of the moving average of the weights.
    :param coloured_share: share of the patches whose noise is not white (:func:`denoisers.noise.coloured`, spread 0.5):
        the error that a solver leaves is not, and a denoiser that counts on white noise keeps too much of it.
    :param nonexpansive: weight of the penalty on the expansion of 2 D - I, in units of the (normalised) loss; 0 for
        none, about 1 for a denoiser with which plug-and-play converges (see :func:`denoisers.convergent.expansion`).
    :param validate_every: steps between rows of PSNR in ``log.csv``.
    :param save_minutes: minutes between checkpoints.
    :param seed: seed of patches, noise and new weights, and of PyTorch's global random numbers.
    :param workers: processes that draw patches ahead; 0 to draw them in between. A GPU needs about four.
    :param card: what the model card tells besides steps, CPU-hours, data and scores (recipe, licence notes).
    :param progress: show a progress bar.
    :return: the network with the averaged weights.
    :raises ValueError: where the batch cannot be shared out evenly, a number is out of its range, or ``out`` holds a
        run with other arguments, other weights to start from, or of another number of processes.
    :raises TypeError: for sources of another kind, and for a network without ``settings``, with which
        :func:`denoisers.load` could not build it again.
    :raises FloatingPointError: when the loss is no longer finite.
    """
    if not isinstance(sources, Mapping):
        raise TypeError(f"sources: expected a dictionary from names to Source, got {type(sources).__name__}")
    if wrong := [type(source).__name__ for source in sources.values() if not isinstance(source, Source)]:
        raise TypeError(f"sources: expected a Source of images under each name, got {wrong[0]}")
    least = {"steps": 1, "batch": 1, "patch": 1, "validate_every": 1, "warmup": 1, "restarts": 0}
    for name, value in zip(least, (steps, batch, patch, validate_every, warmup, restarts)):
        if value < least[name]:
            raise ValueError(f"{name}: expected at least {least[name]}, got {value}")
    if not 0.01 < sigma_max < math.inf:
        raise ValueError(f"sigma_max: expected more than 0.01, in units of the images' range, got {sigma_max}")
    shares = {"squared_share": squared_share, "coloured_share": coloured_share, "average": average}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected 0 to 1, got {value}")
    for name, value in (("nonexpansive", nonexpansive), ("seed", seed)):
        if not value >= 0:
            raise ValueError(f"{name}: expected at least 0, got {value}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: expected a positive number, got {learning_rate}")
    if network is not None and not hasattr(network, "settings"):
        raise TypeError(
            "network: expected one of this package, or one whose keyword arguments are in network.settings, got "
            f"{type(network).__name__}"
        )
    if unused := [name for name, source in sources.items() if not any(map(len, source.images))]:
        raise ValueError(f"sources: expected images to train on, got all kept for validation in {', '.join(unused)}")
    rank, count = processes.join()
    if batch % count:
        raise ValueError(f"batch: expected a multiple of the {count} processes, got {batch}")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    network = (ResidualUNet() if network is None else network).to(memory_format=torch.channels_last).requires_grad_()
    device = next(network.parameters()).device
    averaged = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=files.moving_average(average))
    optimiser = Muon(network.parameters(), lr=learning_rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, _warmup_cosine(warmup, steps, restarts))
    noisy_too = any(source.noisy for source in sources.values())
    teacher = copy.deepcopy(network).eval() if noisy_too and hasattr(network, "card") else None
    patches = Patches(sources, patch, batch // count, (seed, rank), sigma_max, below=teacher is not None)
    balance = Balance(len(sources), device)
    noise = torch.Generator(device).manual_seed(seed + rank)
    run = {"step": 0, "cpu_seconds": 0.0, "gpu_seconds": 0.0}
    card_before = getattr(network, "card", {})
    arguments = {
        "network": f"{type(network).__name__} {network.settings}", "processes": count,
        "from": f"{card_before['name']} {card_before['sha256'][:12]}" if card_before else None,
        "sources": ", ".join(f"{name} {source.described}" for name, source in sources.items()), "steps": steps,
        "batch": batch, "patch": patch, "sigma_max": sigma_max, "learning_rate": learning_rate, "warmup": warmup,
        "restarts": restarts, "squared_share": squared_share, "average": average, "coloured_share": coloured_share,
        "nonexpansive": nonexpansive, "seed": seed,
    }  # fmt: skip

    checkpoint = out / "checkpoint.pt"
    parts = {"network": network, "averaged": averaged, "optimiser": optimiser, "rate": rate}
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=False)
        before = saved.get("arguments", arguments)
        other = [f"{name} {before[name]}, now {now}" for name, now in arguments.items() if before.get(name, now) != now]
        if other:
            raise ValueError(f"out: {out} holds a run with other arguments ({'; '.join(other)}); give another folder")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        run = saved["run"]
        balance.mean, state = saved["processes"][rank]
        noise.set_state(state.cpu())
        if rank == 0:
            _forget(out / "log.csv", run["step"])

    def save_checkpoint():
        states = {name: part.state_dict() for name, part in parts.items()}
        states |= {
            "run": run,
            "arguments": arguments,
            "processes": processes.collect((balance.mean, noise.get_state())),
        }
        if rank == 0:
            files.checkpoint(checkpoint, states)
            save(averaged.module, out / "weights.safetensors", _card(network, sources, run, seed, card))
        processes.wait()

    network.train()
    last_save, last_time, last_cpu = time.monotonic(), time.monotonic(), time.process_time()
    batches = torch.utils.data.DataLoader(
        patches,
        batch_size=None,
        sampler=range(run["step"], steps),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=8 if workers else None,
    )
    hidden = rank > 0 or not progress
    bar = tqdm(batches, initial=run["step"], total=steps, disable=hidden, mininterval=5)
    for step, drawn in enumerate(bar, run["step"]):
        y, own, kinds, sigma = (tensor.to(device, non_blocking=True) for tensor in drawn)
        rehearsed = sigma < own
        added = torch.where(rehearsed, sigma, (sigma.square() - own.square()).clamp_min(0).sqrt()).view(-1, 1, 1, 1)
        n = torch.randn(y.shape, generator=noise, device=device)
        if coloured_share:
            picked = torch.rand(len(y), 1, 1, 1, generator=noise, device=device) < coloured_share
            n = torch.where(picked & (own == 0).view(-1, 1, 1, 1), coloured(n, 0.5, noise), n)
        noisy, wanted = y + added * n, y - own.view(-1, 1, 1, 1).square() / added * n
        if teacher is not None and rehearsed.any():
            with torch.no_grad():
                clean = teacher(y[rehearsed], own[rehearsed])
                noisy[rehearsed] = clean + (added * n)[rehearsed]
                wanted[rehearsed] = teacher(noisy[rehearsed], sigma[rehearsed])
        squared = (own > 0) | (step >= (1 - squared_share) * steps)
        error = network(noisy, sigma) - wanted
        error = torch.where(squared, error.square().mean((1, 2, 3)), error.abs().mean((1, 2, 3)))
        expected = torch.where(rehearsed, sigma.square(), error.detach())  # of what is right at first, the error is 0
        loss = (balance.weights(expected, kinds, sigma, squared) * error).mean()
        if nonexpansive:  # at a few points between the patches and their noisy versions, since it is costly
            share = torch.rand(len(y), 1, 1, 1, generator=noise, device=device)
            between = (y + share * added * n)[: max(len(y) // 8, 1)]
            loss = loss + nonexpansive * expansion(network, between, sigma[: len(between)], generator=noise).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        processes.average(p.grad for p in network.parameters() if p.grad is not None)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        rate.step()
        averaged.update_parameters(network)

        run["step"] = step + 1
        run["cpu_seconds"] += time.process_time() - last_cpu
        run["gpu_seconds"] += time.monotonic() - last_time if device.type == "cuda" else 0.0
        last_time, last_cpu = time.monotonic(), time.process_time()
        validates = run["step"] % validate_every == 0 or run["step"] == steps
        saves = processes.any_of(time.monotonic() - last_save > 60 * save_minutes) or run["step"] == steps
        if (validates or saves or step % 10 == 0) and not torch.isfinite(loss):  # a GPU would wait for it at each step
            raise FloatingPointError(f"training diverged by step {step}: the loss is {loss.item()}")
        if validates:
            _log(out / "log.csv", run, validate(averaged.module, sources), write=rank == 0)
        if saves:
            save_checkpoint()
            last_save = time.monotonic()
    return averaged.module.eval()


class Balance:
    """Running mean of the error for each source, band of noise levels and kind of loss."""

    BANDS, DECAY = 16, 0.98

    def __init__(self, sources: int, device: torch.device | str = "cpu"):
        self.mean = torch.zeros(2, sources, self.BANDS, device=device)

    def weights(self, error: Tensor, kinds: Tensor, sigma: Tensor, squared: Tensor) -> Tensor:
        """Update the means with ``error`` (B,) and return 1/mean for each item (B,)."""
        position = (sigma.log() - math.log(0.5 / 255)) / -math.log(0.5 / 255)
        bands = (position * self.BANDS).long().clamp(0, self.BANDS - 1)
        cells = squared.long(), kinds, bands
        total, count = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        total.index_put_(cells, error, accumulate=True)
        count.index_put_(cells, torch.ones_like(error), accumulate=True)
        kept = torch.where(self.mean == 0, 0.0, self.DECAY**count)
        self.mean = torch.where(count == 0, self.mean, kept * self.mean + (1 - kept) * total / count.clamp_min(1))
        return 1 / self.mean[cells].clamp_min(1e-12)


@torch.no_grad()
def validate(
    denoiser: Callable, sources: dict[str, Source], levels: tuple[float, ...] = VALIDATION_LEVELS, count: int = 4
) -> dict[str, dict[float, float]]:
    """Mean PSNR in dB (peak 1) on up to ``count`` held-out slices: for each source, a value for each noise level (in
    1/255)."""
    device = next((p.device for p in getattr(denoiser, "parameters", list)()), torch.device("cpu"))
    table = {}
    for name, source in sources.items():
        slices = source.validation_slices(count)
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


def _warmup_cosine(warmup: int, steps: int, restarts: int):
    """Linear warm-up, then cosine decay, again from the peak with each restart (Loshchilov & Hutter, ICLR 2017)."""
    cycle = math.ceil(steps / (restarts + 1))

    def factor(step):
        return min((step + 1) / warmup, 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step % cycle) / cycle)))

    return factor


def _forget(log: Path, step: int) -> None:
    """Drop what was written after the checkpoint."""
    if log.exists():
        title, *rows = log.read_text().splitlines(True)
        files.replace(log, "".join([title, *(row for row in rows if int(row.split(",")[0]) <= step)]).encode())


def _log(path: Path, run: dict, table: dict, write: bool) -> None:
    row = {"step": run["step"], "cpu_seconds": round(run["cpu_seconds"])}
    row |= {f"{name}@{level}": round(psnr, 3) for name, levels in table.items() for level, psnr in levels.items()}
    if write:
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if new:
                writer.writeheader()
            writer.writerow(row)
    run["validation_psnr"] = {name: {str(k): round(v, 2) for k, v in levels.items()} for name, levels in table.items()}


def _card(network: nn.Module, sources: dict[str, Source], run: dict, seed: int, extra: dict | None) -> dict:
    before = getattr(network, "card", {})  # of weights that the training went on from
    kept = {key: before[key] for key in ("recipe", "licence") if key in before}
    return (
        kept
        | ({"from": before["name"]} if before else {})
        | {
            "steps": before.get("steps", 0) + run["step"],
            "cpu_hours": round(before.get("cpu_hours", 0) + run["cpu_seconds"] / 3600, 2),
            "gpu_hours": round(before.get("gpu_hours", 0) + run["gpu_seconds"] / 3600, 2),
            "seed": seed,
            "data": {name: {"weight": s.weight, "images": len(s.images)} for name, s in sources.items()},
            "validation_psnr": run.get("validation_psnr", {}),
        }
        | (extra or {})
    )
