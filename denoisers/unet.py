"""The bundled denoising network: a small residual U-Net that is homogeneous in image and noise level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from deepinv.models import Denoiser
from torch import Tensor, nn

from denoisers.weights import half_is_fast


class ResidualUNet(Denoiser):
    r"""Noise-conditional, bias-free residual U-Net for grey images.

    The network estimates the noise, :math:`D(y, \sigma) = y - F(y, \sigma)`. It has neither biases nor
    normalisation layers, and the noise level enters as one more image, so it is jointly 1-homogeneous,
    :math:`D(a y, a \sigma) = a D(y, \sigma)` for :math:`a > 0`: contrast and noise level may be scaled
    together without retraining (the bias-free argument of Mohan et al., *Robust and interpretable blind image
    denoising via bias-free convolutional neural networks*, ICLR 2020; the layout follows DRUNet, Zhang et
    al., *Plug-and-play image restoration with deep denoiser prior*, TPAMI 2021). Besides the image, the
    network sees a *detail* channel :math:`8\sigma\tanh((y - \mathrm{blur}(y)) / 4\sigma)`, which shows it
    structures of the size of the noise at full precision even where the noise is far below the contrast.

    Only the first and the last convolution run in full precision; with ``half=True`` the rest runs in bfloat16.

    :param widths: channels of each level, finest first. ``(32, 64, 128)`` has 1.04 M parameters.
    :param blocks: residual blocks of each level, on the way down and on the way up: one number for all levels, or
        one for each.
    :param half: run the trunk in bfloat16: True, False, or None for True where the processor does it fast.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 64, 128), blocks: int | Sequence[int] = 2, half: bool | None = None
    ):
        super().__init__()
        blocks = [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
        if len(blocks) != len(widths):
            raise ValueError(f"blocks: expected one number or {len(widths)}, one for each of widths, got {blocks}")
        self.widths, self.blocks, self.half_trunk = tuple(widths), blocks, half
        self.head = _conv(4 * 3, widths[0])
        self.down = nn.ModuleList(map(self.stage, widths[:-1], blocks))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, 2, bias=False) for a, b in pairwise(widths))
        self.body = self.stage(widths[-1], blocks[-1])
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2, bias=False) for a, b in pairwise(widths))
        self.up = nn.ModuleList(map(self.stage, widths[:-1], blocks))
        self.tail = _conv(widths[0], 4)
        nn.init.zeros_(self.tail.weight)  # starts as the identity

    @property
    def settings(self) -> dict:
        """Keyword arguments that build the network again."""
        return {"widths": list(self.widths), "blocks": self.blocks}

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """Denoise ``x``.

        :param x: noisy images (B, 1, H, W), H and W of any size.
        :param sigma: noise standard deviation in the units of ``x``: a float, or a tensor of one or B values.
        :return: denoised images, of the shape and dtype of ``x``; float32 for integers.
        :raises ValueError: for another shape, or noise levels that are negative, not finite or of another number.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a torch.Tensor, got {type(x).__name__}")
        if x.ndim != 4 or x.shape[1] != 1 or x.is_complex() or not x.numel():
            raise ValueError(f"x: expected real one-channel images (B, 1, H, W), got {tuple(x.shape)} of {x.dtype}")
        x = x if x.is_floating_point() else x.float()
        noise_level = self._handle_sigma(
            _checked(sigma, len(x)), batch_size=x.shape[0], ndim=4, device=x.device, dtype=torch.float32
        )
        weights = self.head.weight.dtype
        return x - self.noise(x.to(weights), noise_level.to(weights)).to(x.dtype)

    def noise(self, y: Tensor, sigma: Tensor) -> Tensor:
        """The estimated noise in ``y`` (B, 1, H, W) with levels ``sigma`` (B, 1, 1, 1)."""
        height, width = y.shape[-2:]
        y = _pad(y, multiple=2 ** len(self.widths))
        blurred = F.avg_pool2d(y, 5, 1, 2, count_include_pad=False)
        detail = 8 * sigma * torch.tanh((y - blurred) / (4 * sigma.clamp_min(1e-12)))
        features = torch.cat([y, detail, sigma.expand_as(y)], 1)
        features = F.pixel_unshuffle(features, 2).to(memory_format=torch.channels_last)
        features = self.head(features)
        half = half_is_fast(y.device) if self.half_trunk is None else self.half_trunk
        with torch.autocast(y.device.type, torch.bfloat16, enabled=half):
            features = self._trunk(features, sigma)
        with torch.autocast(y.device.type, enabled=False):
            return F.pixel_shuffle(self.tail(features.to(self.tail.weight.dtype)), 2)[..., :height, :width]

    @staticmethod
    def stage(width: int, depth: int) -> nn.Module:
        """What one level does on the way down or up, a module that maps (features, sigma) to features."""
        return Blocks(ResidualBlock(width) for _ in range(depth))

    def _trunk(self, features: Tensor, sigma: Tensor) -> Tensor:
        skips = []
        for down, shrink in zip(self.down, self.shrink):
            skips.append(down(features, sigma))
            features = shrink(skips[-1])
        features = self.body(features, sigma)
        for up, grow, skip in zip(reversed(self.up), reversed(self.grow), reversed(skips)):
            features = up(grow(features) + skip, sigma)
        return features


def _checked(sigma: float | Tensor, count: int) -> Tensor:
    level = torch.as_tensor(sigma)
    if level.numel() not in (1, count):
        raise ValueError(f"sigma: expected one noise level or {count}, one for each image, got {level.numel()}")
    # on a GPU, a look at the values would wait for them
    if level.device.type == "cpu" and not ((level >= 0) & (level < torch.inf)).all():
        raise ValueError(f"sigma: expected finite noise levels of at least 0, got {level.tolist()}")
    return level


class Blocks(nn.ModuleList):
    """Residual blocks one after the other; the noise level is in the features already."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x


class ResidualBlock(nn.Module):
    """``x + conv(relu(conv(x)))``."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1, self.conv2 = _conv(width, width), _conv(width, width)
        with torch.no_grad():  # without normalisation, deep sums of blocks must start near the identity
            self.conv2.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)


def _pad(y: Tensor, multiple: int) -> Tensor:
    """Extend the right and lower border to a multiple; mirrored where the image is large enough for that."""
    bottom, right = -y.shape[-2] % multiple, -y.shape[-1] % multiple
    if not bottom and not right:
        return y
    mode = "reflect" if bottom < y.shape[-2] and right < y.shape[-1] else "replicate"
    return F.pad(y, (0, right, 0, bottom), mode=mode)
