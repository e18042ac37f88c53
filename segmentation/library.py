"""Segmentation models by name: the networks, the bundled weights, and the object that applies them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from denoisers import weights as files
from segmentation.unet import UNet

BUNDLED = Path(__file__).parent / "bundled"
ARCHITECTURES = {"UNet": UNet}


class Segmenter(nn.Module):
    """A segmentation network with the names of its classes and what its images must look like.

    :param network: maps images (B, 1, H, W) of unit mean square to logits (B, K, H, W).
    :param classes: names of the K classes, the background first.
    """

    def __init__(self, network: nn.Module, classes: tuple[str, ...]):
        super().__init__()
        self.network, self.classes = network, tuple(classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W). Images of two channels are complex, and their magnitude is segmented."""
        if x.ndim != 4 or x.shape[1] not in (1, 2):
            raise ValueError(f"x: expected images (B, 1, H, W), or (B, 2, H, W) complex, got shape {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError("x: expected finite values, got NaN or infinity")
        if x.shape[1] == 2:
            x = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        return self.network(standardise(x.float()))

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities (B, K, H, W)."""
        return self(x).softmax(1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Class numbers (B, H, W), which index :attr:`classes`."""
        return self(x).argmax(1)


def standardise(images: Tensor) -> Tensor:
    """Scale each image (B, C, H, W) to unit mean square: what the networks see does not depend on the units."""
    return images / images.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def load(task: str | Path = "brain-tissue", *, model: str = "unet", device=None) -> Segmenter:
    """Load a trained segmenter.

    :param task: a bundled task (``"brain-tissue"``: background, CSF, grey and white matter on T1 brains), or the path
        of a ``.safetensors`` file that :func:`segmentation.train` wrote.
    :param model: which network's weights, for a bundled task.
    :param device: device to put it on, default the CPU.
    :raises ValueError: for an unknown task or model, or damaged weights.
    """
    path = Path(task)
    if path.suffix != ".safetensors":
        path = BUNDLED / f"{task}-{model}.safetensors"
        if not path.exists():
            names = ", ".join(card["name"] for card in available())
            raise ValueError(f"task: no bundled weights for task {task!r}, model {model!r}; there are {names}")
    network = files.read(path, ARCHITECTURES)
    return Segmenter(network, network.card["classes"]).to(device or "cpu").eval()


def available() -> list[dict]:
    """The model cards of the bundled segmenters."""
    return [files.read_card(path) for path in sorted(BUNDLED.glob("*.safetensors"))]


def save(network: UNet, path: str | Path, card: dict) -> Path:
    """Write a network where :func:`load` can read it; ``card["classes"]`` names its classes."""
    if len(card.get("classes", ())) != network.num_classes:
        raise ValueError(f"card: expected the names of {network.num_classes} classes, got {card.get('classes')}")
    settings = {
        "num_classes": network.num_classes,
        "in_channels": network.in_channels,
        "widths": list(network.widths),
    }
    return files.write(network, path, settings, card)
