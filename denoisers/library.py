"""Denoisers by name: the bundled networks, deepinv's, and weight files."""

from __future__ import annotations

from pathlib import Path

import deepinv
import torch
import torch.nn.functional as F
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
    """Write a network of this package where :func:`load` can read it, with a model card beside it.

    :param path: file to write, ``.safetensors``.
    :raises ValueError: for another suffix.
    :raises TypeError: for a network without ``settings``, with which it could not be built again.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"path: expected a name that ends in .safetensors, got {path}")
    if not hasattr(network, "settings"):
        raise TypeError(f"network: expected one with its keyword arguments in settings, got {type(network).__name__}")
    return files.write(network, path, network.settings, card)


class _FFDNet(deepinv.models.FFDNet):
    """For images of odd sizes, too, and for weights that predict the noise as well as for those of the image."""

    def __init__(self, **settings):
        super().__init__(**settings)
        with torch.no_grad():  # on a flat image, the noise is what remains large
            noise = 0.1 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
            self.residual_denoising = bool(self(0.5 + noise, 0.1).std() > 0.05)

    def forward(self, x, sigma, **kwargs):
        height, width = x.shape[-2:]
        even = F.pad(x, (0, width % 2, 0, height % 2), mode="replicate")
        return super().forward(even, sigma, **kwargs)[..., :height, :width]


class _SCUNet(deepinv.models.SCUNet):
    """For grey images, with the weights for colour ones, which are the only ones."""

    def forward(self, x, sigma=None, **kwargs):
        colours = super().forward(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x, sigma, **kwargs)
        return colours.mean(1, keepdim=True) if x.shape[1] == 1 else colours


GREY = {"in_channels": 1, "out_channels": 1}
DEEPINV = {  # class, settings, and what its pretrained weights are called
    "drunet": (deepinv.models.DRUNet, GREY, "download"),
    "dncnn": (deepinv.models.DnCNN, GREY, "download"),
    "gsdrunet": (deepinv.models.GSDRUNet, GREY, "download"),
    "scunet": (_SCUNet, {}, "download"),
    "swinir": (deepinv.models.SwinIR, {"in_chans": 1}, "download"),
    "restormer": (deepinv.models.Restormer, GREY, "denoising_gray"),
    "ffdnet": (_FFDNet, {"img_channels": 1}, "download"),
}


def _load_deepinv(name: str, weights: str | Path | None, device) -> deepinv.models.Denoiser:
    if name not in DEEPINV:
        raise ValueError(f"name: expected one of {', '.join('deepinv/' + n for n in DEEPINV)}, got 'deepinv/{name}'")
    network, settings, pretrained = DEEPINV[name]
    if weights is not None and not Path(weights).is_file():
        raise FileNotFoundError(f"weights: {weights} does not exist")
    try:
        loaded = network(pretrained=pretrained if weights is None else str(weights), **settings)
    except Exception as error:  # torch, pickle and the networks raise whatever they like for a file that is not theirs
        if weights is not None:
            raise ValueError(
                f"weights: expected a state dict of deepinv's {name} in {weights}, which cannot be read ({error})"
            ) from error
        if not isinstance(error, OSError):
            raise
        raise ConnectionError(
            f"deepinv/{name}: its weights could not be downloaded ({error}). Without a connection, give a local "
            f"copy with weights=..., or use a bundled denoiser: denoisers.load('medical')"
        ) from error
    return loaded.to(device or "cpu").eval().requires_grad_(False)
