"""Weight files: half-precision safetensors with a model card, checked when they are read."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn


def write(network: nn.Module, path: str | Path, settings: dict, card: dict | None = None) -> Path:
    """Write the weights of a network, and its model card beside them under the same name ending in ``.json``.

    :param network: the network.
    :param path: file to write; what was there is replaced only once the new one is complete.
    :param settings: keyword arguments that build the network again.
    :param card: what the card tells besides architecture, settings, parameter count and checksum.
    """
    path = Path(path)
    state = {name: tensor.detach().half().contiguous().cpu() for name, tensor in network.state_dict().items()}
    content = save(state)
    card = {
        "architecture": type(network).__name__,
        "settings": settings,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "sha256": hashlib.sha256(content).hexdigest(),
    } | (card or {})
    replace(path, content)
    replace(path.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    return path


def read(path: str | Path, architectures: dict[str, type[nn.Module]]) -> nn.Module:
    """Build the network that a weight file belongs to, in evaluation mode, its card as ``network.card``.

    :param path: safetensors file with its card beside it.
    :param architectures: networks by name.
    :raises FileNotFoundError: where file or card are missing.
    :raises ValueError: for another architecture, or when the checksum does not agree.
    """
    path = Path(path)
    card = read_card(path)
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != card.get("sha256"):
        raise ValueError(
            f"weights: {path} is damaged or its card is another's: sha256 {found}, card {card.get('sha256')}"
        )
    if card.get("architecture") not in architectures:
        raise ValueError(f"weights: {path} is for {card.get('architecture')}; known are {', '.join(architectures)}")
    try:
        network = architectures[card["architecture"]](**card["settings"])
        network.load_state_dict({name: tensor.float() for name, tensor in load(content).items()})
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"weights: the card of {path} has no settings that fit the weights: {error}") from error
    network.card = card
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def read_card(path: str | Path) -> dict:
    """The model card beside a weight file, with the name of the file as ``name``."""
    path = Path(path)
    card = path.with_suffix(".json")
    for file in (path, card):
        if not file.exists():
            raise FileNotFoundError(f"weights: {file} does not exist")
    try:
        return {"name": path.stem} | json.loads(card.read_text())
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"weights: {card} is no model card: {error}") from error


def replace(path: str | Path, content: bytes) -> Path:
    """Write a file under a temporary name and move it into place, so that nothing is lost half-way."""
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def checkpoint(path: Path, state: dict) -> None:
    """Save the state of a training run, replacing the last one once it is complete."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    replace(path, buffer.getvalue())


def moving_average(decay: float):
    """Exponential moving average for ``torch.optim.swa_utils.AveragedModel`` that suits short runs, too.

    Its memory grows with the run up to ``decay``, so that the first weights are soon forgotten.
    """

    def update(averages, parameters, count):
        weight = 1 - min(decay, (1 + count.item()) / (10 + count.item()))
        for average, parameter in zip(averages, parameters):
            if average.is_floating_point():
                average.lerp_(parameter, weight)
            else:  # a counter of batch normalisation
                average.copy_(parameter)

    return update


def half_is_fast(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on a device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return device.type == "cpu" and supported is not None and supported()
