"""Segmentation models by name: the networks, the bundled weights, and the object that applies them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers import sliding_window_inference
from scipy import ndimage, optimize
from torch import Tensor, nn

from denoisers import weights as files
from segmentation.data import Pair
from segmentation.implicit_ukan import ImplicitUKAN2
from segmentation.transunet import TransUNet
from segmentation.ukan import UKAN
from segmentation.unet import UNet

BUNDLED = Path(__file__).parent / "bundled"
ARCHITECTURES = {network.__name__: network for network in (UNet, TransUNet, UKAN, ImplicitUKAN2)}


class Segmenter(nn.Module):
    """A segmentation network with the names of its classes, applied to images of any units.

    :param network: maps images (B, C, H, W) of unit mean square to logits (B, K, H, W).
    :param classes: names of the K classes, the background first.
    :param temperature: what the logits are divided by, see :meth:`calibrate`.
    """

    def __init__(self, network: nn.Module, classes: tuple[str, ...], temperature: float = 1.0):
        super().__init__()
        self.network, self.classes, self.temperature = network, tuple(classes), temperature

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W). Of complex images, also as two channels for networks of one, it is the magnitude's."""
        x = _real(x)
        channels = getattr(self.network, "in_channels", 1)
        if x.ndim != 4 or not x.numel() or (x.shape[1] != channels and (channels, x.shape[1]) != (1, 2)):
            complex_too = ", or (B, 2, H, W) complex" if channels == 1 else ""
            raise ValueError(f"x: expected images (B, {channels}, H, W){complex_too}, got shape {tuple(x.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError("x: expected finite values, got NaN or infinity")
        if channels == 1 and x.shape[1] == 2:
            x = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        dtype = next((p.dtype for p in self.network.parameters()), torch.float32)
        return self.network(standardise(x.to(dtype))) / self.temperature

    @torch.no_grad()
    def probabilities(self, x: Tensor, *, flips: bool = False, tile: int | None = None) -> Tensor:
        """Class probabilities (B, K, H, W).

        :param x: images (B, C, H, W); slices of a volume are a batch.
        :param flips: average over the four mirror images, four times as slow.
        :param tile: work on overlapping squares of this side, for images larger than those of the training; units are
            found for each square on its own.
        """
        logits = self
        x = _real(x)
        if tile is not None and tile < 1:
            raise ValueError(f"tile: expected the side of a square of at least 1 pixel, got {tile}")
        if tile is not None and tile < max(x.shape[-2:]):
            tile = min(tile, *x.shape[-2:])  # beyond the image there would be zeros, which change the units

            def logits(x):
                return sliding_window_inference(x, (tile, tile), 4, self, overlap=0.5, mode="gaussian")

        views = ((), (-1,), (-2,), (-2, -1)) if flips else ((),)
        return sum(logits(x.flip(view)).softmax(1).flip(view) for view in views) / len(views)

    @torch.no_grad()
    def predict(self, x: Tensor, *, flips: bool = False, tile: int | None = None, smallest: int = 0) -> Tensor:
        """Class numbers (B, H, W), which index :attr:`classes`.

        :param x: images (B, C, H, W).
        :param flips: see :meth:`probabilities`.
        :param tile: see :meth:`probabilities`.
        :param smallest: connected components of fewer pixels become background.
        """
        labels = self.probabilities(x, flips=flips, tile=tile).argmax(1)
        return without_specks(labels, smallest) if smallest else labels

    def calibrate(self, pairs: list[Pair]) -> Segmenter:
        """Set the temperature that makes the probabilities of held-out slices most likely (Guo et al., *On calibration
        of modern neural networks*, ICML 2017). The labels stay as they are.

        :param pairs: images (H, W) or (C, H, W) with labels (H, W) that the network was not trained on.
        :raises ValueError: without images.
        """
        if not len(pairs):
            raise ValueError("pairs: expected at least one labelled image, got none")
        self.temperature = 1.0
        device = next(self.network.parameters()).device
        logits, labels = [], []
        with torch.no_grad():
            for image, truth in pairs:
                image = torch.from_numpy(image).to(device, torch.float32)
                logits.append(self((image[None] if image.ndim == 2 else image)[None])[0].flatten(1).T)
                labels.append(torch.from_numpy(truth).to(device).long().flatten())
        logits, labels = torch.cat(logits), torch.cat(labels)

        def loss(log_temperature: float) -> float:
            return F.cross_entropy(logits * math.exp(-log_temperature), labels).item()

        self.temperature = math.exp(optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)
        return self


def _real(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
    return x.abs() if x.is_complex() else x


def without_specks(labels: Tensor, smallest: int) -> Tensor:
    """Class numbers (B, H, W) without the connected components (8 neighbours) of fewer pixels than ``smallest``."""
    cleaned = labels.clone()
    for found in cleaned:
        for k in range(1, int(found.max()) + 1):
            parts, _ = ndimage.label((found == k).cpu().numpy(), np.ones((3, 3)))
            small = np.bincount(parts.ravel()) < smallest
            small[0] = False
            found[torch.from_numpy(small[parts]).to(found.device)] = 0
    return cleaned


def standardise(images: Tensor) -> Tensor:
    """Scale each image (B, C, H, W) to unit mean square: what the networks see does not depend on the units."""
    return images / images.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def load(task: str | Path = "brain-tissue", *, model: str = "light", device=None) -> Segmenter:
    """Load a trained segmenter.

    :param task: a bundled task: ``"brain-tissue"`` (background, ventricular CSF, grey and white matter on T1 brains),
        ``"breast-lesion"`` (on ultrasound), ``"vertebra"`` (on CT slices); or the path of a ``.safetensors`` file that
        :func:`segmentation.train` wrote.
    :param model: which network's weights, for a bundled task: ``"light"`` or ``"unet"``.
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
    card = network.card
    return Segmenter(network, card["classes"], card.get("temperature", 1.0)).to(device or "cpu").eval()


def available() -> list[dict]:
    """The model cards of the bundled segmenters."""
    return [files.read_card(path) for path in sorted(BUNDLED.glob("*.safetensors"))]


def save(model: nn.Module, path: str | Path, card: dict | None = None) -> Path:
    """Write a network where :func:`load` can read it.

    :param model: a :class:`Segmenter`, whose classes and temperature go on the card, or a network, of which
        ``card["classes"]`` names the classes.
    :param path: file to write, ``.safetensors``.
    :param card: what the card tells besides (data, licence notes, scores).
    :raises ValueError: where the names are not as many as the classes.
    """
    network, card = model, dict(card or {})
    if isinstance(model, Segmenter):
        network = model.network
        card |= {"classes": list(model.classes), "temperature": model.temperature}
    if len(card.get("classes", ())) != network.num_classes:
        raise ValueError(f"card: expected the names of {network.num_classes} classes, got {card.get('classes')}")
    return files.write(network, path, network.settings, card)
