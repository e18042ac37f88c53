"""U-Net (Ronneberger et al., MICCAI 2015) with group normalisation."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """U-Net for images of any size.

    The encoder-decoder of Ronneberger et al., *U-Net: convolutional networks for biomedical image segmentation*
    (MICCAI 2015), with padded convolutions, strided down-sampling and leaky ReLU as in nnU-Net (Isensee et al.,
    Nature Methods 2021), and group normalisation, which adapts to each image's contrast like nnU-Net's instance
    normalisation and is faster on a CPU.

    :param num_classes: number of classes K, background included.
    :param in_channels: image channels C.
    :param widths: channels of each level, finest first. The default has 1.9 M parameters.
    """

    def __init__(self, num_classes: int, in_channels: int = 1, widths: tuple[int, ...] = (16, 32, 64, 128, 256)):
        super().__init__()
        self.num_classes, self.in_channels, self.widths = num_classes, in_channels, tuple(widths)
        self.settings = {"num_classes": num_classes, "in_channels": in_channels, "widths": list(widths)}
        inputs = (in_channels, *widths[:-1])
        strides = (1, *[2] * (len(widths) - 1))
        self.encoder = nn.ModuleList(_double_conv(a, b, s) for a, b, s in zip(inputs, widths, strides))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.decoder = nn.ModuleList(_double_conv(2 * a, a) for a in widths[:-1])
        self.head = Pointwise(widths[0], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W)."""
        x, height, width = fit_multiple(x, self.in_channels, 2 ** (len(self.widths) - 1))
        skips = []
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        for block, grow, skip in zip(reversed(self.decoder), reversed(self.grow), reversed(skips[:-1])):
            x = block(torch.cat([grow(x), skip], 1))
        return self.head(x)[..., :height, :width]


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution as a matrix product, which is faster on a single thread."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


def fit_multiple(x: Tensor, channels: int, multiple: int) -> tuple[Tensor, int, int]:
    """Images (B, ``channels``, H, W) with zeros added so that both sides are multiples of a number, and H and W.

    :raises ValueError: where the images have another shape.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x: expected images (B, {channels}, H, W), got shape {tuple(x.shape)}")
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple)), height, width


def _double_conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv(inputs, outputs, stride), *conv(outputs, outputs))


def conv(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Sequential:
    """A convolution, group normalisation and leaky ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False),
        nn.GroupNorm(math.gcd(outputs, 4), outputs),
        nn.LeakyReLU(0.01),
    )
