"""U-KAN (Li et al., *U-KAN makes strong backbone for medical image segmentation and generation*, AAAI 2025)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.kan import KANLinear
from segmentation.unet import Pointwise, fit_multiple


class UKAN(nn.Module):
    """Convolutions down to 1/8 of the resolution, layers of Kolmogorov-Arnold curves on tokens at 1/8 to 1/32.

    Names and shapes of the parameters are those of the authors' code, whose checkpoints load unchanged. The default
    has 6.36 M parameters.

    :param num_classes: number of classes K, background included.
    :param in_channels: image channels C (the authors' checkpoints: 3).
    :param embed_dims: channels at 1/8, 1/16 and 1/32 of the resolution.
    :param kan: False puts ordinary dense layers in place of the curves.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        embed_dims: tuple[int, int, int] = (128, 160, 256),
        kan: bool = True,
    ):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.settings = {"num_classes": num_classes, "in_channels": in_channels}
        self.settings |= {"embed_dims": list(embed_dims), "kan": kan}
        fine, middle, coarse = embed_dims
        self.encoder1 = ConvLayer(in_channels, fine // 8, fine // 8)
        self.encoder2 = ConvLayer(fine // 8, fine // 4, fine // 4)
        self.encoder3 = ConvLayer(fine // 4, fine, fine)
        self.patch_embed3, self.block1 = PatchEmbed(fine, middle), _blocks(middle, kan)
        self.patch_embed4, self.block2 = PatchEmbed(middle, coarse), _blocks(coarse, kan)
        self.norm3, self.norm4 = nn.LayerNorm(middle), nn.LayerNorm(coarse)
        self.decoder1, self.dblock1 = ConvLayer(coarse, coarse, middle), _blocks(middle, kan)
        self.decoder2, self.dblock2 = ConvLayer(middle, middle, fine), _blocks(fine, kan)
        self.dnorm3, self.dnorm4 = nn.LayerNorm(middle), nn.LayerNorm(fine)
        self.decoder3 = ConvLayer(fine, fine, fine // 4)
        self.decoder4 = ConvLayer(fine // 4, fine // 4, fine // 8)
        self.decoder5 = ConvLayer(fine // 8, fine // 8, fine // 8)
        self.final = Pointwise(fine // 8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W) of any size."""
        x, height, width = fit_multiple(x, self.in_channels, 32)
        t1 = F.max_pool2d(self.encoder1(x), 2)
        t2 = F.max_pool2d(self.encoder2(t1), 2)
        t3 = F.max_pool2d(self.encoder3(t2), 2)
        t4 = _image(self.norm3(self.block1(self.patch_embed3(t3))))
        x = _image(self.norm4(self.block2(self.patch_embed4(t4))))
        x = _double(self.decoder1(x)) + t4
        x = _image(self.dnorm3(self.dblock1(_tokens(x))))
        x = _double(self.decoder2(x)) + t3
        x = _image(self.dnorm4(self.dblock2(_tokens(x))))
        x = _double(self.decoder3(x)) + t2
        x = _double(self.decoder4(x)) + t1
        return self.final(_double(self.decoder5(x)))[..., :height, :width]


class ConvLayer(nn.Module):
    """Two 3 x 3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, between: int, outputs: int):
        super().__init__()
        self.conv = nn.Sequential(
            *(nn.Conv2d(inputs, between, 3, padding=1), nn.BatchNorm2d(between), nn.ReLU(inplace=True)),
            *(nn.Conv2d(between, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class PatchEmbed(nn.Module):
    """Tokens (B, H/2, W/2, D) of features (B, C, H, W), by a convolution with stride 2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, 2, padding=1)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(_tokens(self.proj(x)))


class KANBlock(nn.Module):
    """Tokens plus three dense layers of curves of them, with depthwise convolutions between."""

    def __init__(self, width: int, kan: bool):
        super().__init__()
        self.norm2 = nn.LayerNorm(width)
        self.layer = KANLayer(width, kan)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.norm2(x))


class KANLayer(nn.Module):
    def __init__(self, width: int, kan: bool):
        super().__init__()
        dense = KANLinear if kan else nn.Linear
        self.fc1, self.fc2, self.fc3 = (dense(width, width) for _ in range(3))
        self.dwconv_1, self.dwconv_2, self.dwconv_3 = (DepthwiseConv(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv_1(self.fc1(x))
        x = self.dwconv_2(self.fc2(x))
        return self.dwconv_3(self.fc3(x))


class DepthwiseConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return _tokens(F.relu(self.bn(self.dwconv(_image(x)))))


def _blocks(width: int, kan: bool) -> nn.Sequential:
    return nn.Sequential(KANBlock(width, kan))


def _tokens(x: Tensor) -> Tensor:
    """(B, H, W, D) of (B, D, H, W); no copy where the features are in channels-last order."""
    return x.movedim(1, -1)


def _image(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear")
