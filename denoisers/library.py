"""Denoisers by name: the bundled networks, deepinv's, and weight files."""

from __future__ import annotations

from pathlib import Path

import deepinv
from torch import nn

from denoisers import weights as files
from denoisers.classical import BlockMatching, NonLocalMeans, TotalVariation, Wavelet
from denoisers.continuous import ContinuousUNet
from denoisers.convergent import GradientStep
from denoisers.unet import ResidualUNet

BUNDLED = Path(__file__).parent / "bundled"
ARCHITECTURES = {network.__name__: network for network in (ResidualUNet, ContinuousUNet, GradientStep)}
CLASSICAL = {"tv": TotalVariation, "wavelet": Wavelet, "nlm": NonLocalMeans, "bm3d": BlockMatching}


def load(name: str | Path = "medical", *, weights: str | Path | None = None, device=None) -> deepinv.models.Denoiser:
    """Load a denoiser: a callable ``denoiser(x, sigma)`` on images (B, 1, H, W), sigma in the units of x.

    :param name: a bundled name (see :func:`available`), ``"deepinv/drunet"`` or another of deepinv's networks, the
        path of a ``.safetensors`` file that :func:`denoisers.train` wrote, or one that needs no training: ``"tv"``,
        ``"wavelet"``, ``"nlm"``, ``"bm3d"`` (see :mod:`denoisers.classical`).
    :param weights: for deepinv's networks, a local file with their weights; default is to download them.
    :param device: device to put the network on, default the CPU.
    :raises ValueError: for an unknown name or damaged weights.
    :raises FileNotFoundError: where a path does not exist.
    :raises ConnectionError: when deepinv's weights cannot be downloaded.
    """
    text = str(name)
    if text.startswith("deepinv/"):
        return _load_deepinv(text.removeprefix("deepinv/"), weights, device)
    if weights is not None:
        raise ValueError("weights: only deepinv's networks take a separate weight file; give its path as name instead")
    if text in CLASSICAL:
        return CLASSICAL[text]().to(device or "cpu")
    if text.endswith(".safetensors"):
        path = Path(text)
    else:
        path = BUNDLED / f"{text}.safetensors"
        if not path.exists():
            names = ", ".join([card["name"] for card in available()] + list(CLASSICAL))
            raise ValueError(f"name: expected one of {names}, deepinv/<network> or a .safetensors file, got {text!r}")
    return files.read(path, ARCHITECTURES).to(device or "cpu")


def available() -> list[dict]:
    """The model cards of the bundled denoisers: name, architecture, data, recipe, scores, licence notes."""
    return [files.read_card(path) for path in sorted(BUNDLED.glob("*.safetensors"))]


def save(network: nn.Module, path: str | Path, card: dict | None = None) -> Path:
    """Write a network of this package where :func:`load` can read it, with a model card beside it."""
    return files.write(network, path, network.settings, card)


DEEPINV = {
    "drunet": ("DRUNet", {"in_channels": 1, "out_channels": 1}),
    "dncnn": ("DnCNN", {"in_channels": 1, "out_channels": 1}),
    "gsdrunet": ("GSDRUNet", {"in_channels": 1, "out_channels": 1}),
    "scunet": ("SCUNet", {"in_nc": 1}),
    "swinir": ("SwinIR", {"in_chans": 1}),
    "restormer": ("Restormer", {"in_channels": 1, "out_channels": 1}),
    "ffdnet": ("FFDNet", {"in_channels": 1, "out_channels": 1}),
}


def _load_deepinv(name: str, weights: str | Path | None, device) -> deepinv.models.Denoiser:
    if name not in DEEPINV:
        raise ValueError(f"name: expected one of {', '.join('deepinv/' + n for n in DEEPINV)}, got 'deepinv/{name}'")
    network, settings = DEEPINV[name]
    if weights is not None and not Path(weights).exists():
        raise FileNotFoundError(f"weights: {weights} does not exist")
    try:
        loaded = getattr(deepinv.models, network)(pretrained=str(weights or "download"), **settings)
    except OSError as error:  # every failure of the network is one, urllib's and the hub's
        raise ConnectionError(
            f"deepinv/{name}: its weights could not be downloaded ({error}). Without a connection, give a local "
            f"copy with weights=..., or use a bundled denoiser: denoisers.load('medical')"
        ) from error
    return loaded.to(device or "cpu").eval().requires_grad_(False)
