"""TransUNet (Chen et al., *TransUNet: transformers make strong encoders for medical image segmentation*, 2021)."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.unet import fit_multiple


class TransUNet(nn.Module):
    """A ResNet down to 1/16 of the resolution, a vision transformer on its features, and a decoder with skips.

    Names and shapes of the parameters are those of the authors' code, whose checkpoints load unchanged. The default is
    their R50-ViT-B/16 with 105 M parameters.

    :param num_classes: number of classes K, background included.
    :param in_channels: image channels C; a single one is repeated to three, as the authors do.
    :param image_size: side of the images that the position embeddings are for; they are interpolated for others.
    :param patch_grid: rows and columns of the position embeddings, default ``image_size // 16``.
    :param hidden_size: width of the transformer's tokens.
    :param mlp_dim: width of its multi-layer perceptrons.
    :param num_heads: attention heads.
    :param num_layers: transformer blocks.
    :param resnet_width_factor: width of the ResNet, in units of 64 channels.
    :param resnet_num_layers: bottleneck blocks at 1/4, 1/8 and 1/16 of the resolution.
    :param decoder_channels: channels of the decoder, coarsest first.
    :param skip_channels: channels of the ResNet's features that the decoder gets, coarsest first; default all of them.
    :param n_skip: how many resolutions are connected, coarsest first, 0 to 3.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        image_size: int = 224,
        patch_grid: tuple[int, int] | None = None,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        num_layers: int = 12,
        resnet_width_factor: float = 1,
        resnet_num_layers: tuple[int, int, int] = (3, 4, 9),
        decoder_channels: tuple[int, int, int, int] = (256, 128, 64, 16),
        skip_channels: tuple[int, ...] | None = None,
        n_skip: int = 3,
    ):
        super().__init__()
        self.num_classes, self.in_channels = num_classes, in_channels
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        width = int(64 * resnet_width_factor)
        self.transformer = Transformer(
            ResNet(3 if in_channels == 1 else in_channels, width, resnet_num_layers),
            patch_grid or (image_size // 16, image_size // 16),
            hidden_size,
            mlp_dim,
            num_heads,
            num_layers,
        )
        skips = list(skip_channels or (8 * width, 4 * width, width))[:n_skip] + [0] * (4 - n_skip)
        self.decoder = Decoder(hidden_size, decoder_channels, skips)
        self.segmentation_head = nn.Sequential(nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W) of any size."""
        x, height, width = fit_multiple(x, self.in_channels, 16)
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x, skips = self.transformer(x)
        return self.segmentation_head(self.decoder(x, skips))[..., :height, :width]


class Transformer(nn.Module):
    """Features (B, D, H/16, W/16) of images, and the ResNet's at the finer resolutions, coarsest first."""

    def __init__(self, resnet: nn.Module, grid: tuple[int, int], width: int, hidden: int, heads: int, layers: int):
        super().__init__()
        self.embeddings = Embeddings(resnet, grid, width)
        self.encoder = Encoder(width, hidden, heads, layers)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, skips = self.embeddings(x)
        tokens = self.encoder(x.flatten(2).mT)
        return tokens.mT.reshape(x.shape), skips


class Embeddings(nn.Module):
    def __init__(self, resnet: nn.Module, grid: tuple[int, int], width: int):
        super().__init__()
        self.hybrid_model = resnet
        self.patch_embeddings = nn.Conv2d(16 * resnet.width, width, 1)
        self.grid = tuple(grid)
        self.position_embeddings = nn.Parameter(torch.zeros(1, grid[0] * grid[1], width))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, skips = self.hybrid_model(x)
        x = self.patch_embeddings(x)
        positions = self.position_embeddings.mT.unflatten(2, self.grid)
        if x.shape[-2:] != positions.shape[-2:]:
            positions = F.interpolate(positions, x.shape[-2:], mode="bicubic")
        return x + positions, skips


class Encoder(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, layers: int):
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(width, hidden, heads) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x)
        return self.encoder_norm(x)


class EncoderLayer(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ffn = nn.Sequential(OrderedDict(fc1=nn.Linear(width, hidden), act=nn.GELU(), fc2=nn.Linear(hidden, width)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        heads = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class ResNet(nn.Module):
    """Features at 1/16 of the resolution, and those at 1/8, 1/4 and 1/2 (Kolesnikov et al., *Big transfer*, 2020)."""

    def __init__(self, in_channels: int, width: int, layers: tuple[int, int, int]):
        super().__init__()
        self.width = width
        self.root = nn.Sequential(
            OrderedDict(
                conv=StandardisedConv(in_channels, width, 7, 2),
                gn=nn.GroupNorm(32, width, eps=1e-6),
                relu=nn.ReLU(inplace=True),
            )
        )
        stages, inputs = OrderedDict(), width
        for level, depth in enumerate(layers):
            units = OrderedDict()
            for unit in range(depth):
                stride = 2 if unit == 0 and level > 0 else 1
                units[f"unit{unit + 1}"] = Bottleneck(inputs, 2**level * width, stride)
                inputs = 4 * 2**level * width
            stages[f"block{level + 1}"] = nn.Sequential(units)
        self.body = nn.Sequential(stages)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        half = self.root(x)
        pooled = F.max_pool2d(half, 3, 2)
        quarter = self.body.block1(pooled)
        eighth = self.body.block2(quarter)
        # the authors pool without padding and extend the skip with zeros
        fill = [half.shape[-1] // 2 - quarter.shape[-1], half.shape[-2] // 2 - quarter.shape[-2]]
        return self.body.block3(eighth), [eighth, F.pad(quarter, (0, fill[0], 0, fill[1])), half]


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.gn1 = StandardisedConv(inputs, width, 1), nn.GroupNorm(32, width, eps=1e-6)
        self.conv2, self.gn2 = StandardisedConv(width, width, 3, stride), nn.GroupNorm(32, width, eps=1e-6)
        self.conv3, self.gn3 = StandardisedConv(width, 4 * width, 1), nn.GroupNorm(32, 4 * width, eps=1e-6)
        self.project = stride != 1 or inputs != 4 * width
        if self.project:
            self.downsample = StandardisedConv(inputs, 4 * width, 1, stride)
            self.gn_proj = nn.GroupNorm(4 * width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.gn1(self.conv1(x)))
        y = F.relu(self.gn2(self.conv2(y)))
        y = self.gn3(self.conv3(y))
        return F.relu((self.gn_proj(self.downsample(x)) if self.project else x) + y)


class StandardisedConv(nn.Conv2d):
    """Convolution whose filters have mean 0 and variance 1 (Qiao et al., *Weight standardization*, 2019)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1):
        super().__init__(inputs, outputs, size, stride, padding=size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (self.weight - mean) * torch.rsqrt(variance + 1e-5), None, self.stride, self.padding)


class Decoder(nn.Module):
    def __init__(self, inputs: int, channels: tuple[int, ...], skips: list[int], head: int = 512):
        super().__init__()
        self.conv_more = _conv(inputs, head)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"conv1": _conv(before + skip, after), "conv2": _conv(after, after)})
            for before, skip, after in zip((head, *channels), skips, channels)
        )
        self.used = sum(skip > 0 for skip in skips)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        x = self.conv_more(x)
        for block, skip in zip(self.blocks, [*skips[: self.used], *[None] * 4]):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block["conv2"](block["conv1"](x if skip is None else torch.cat([x, skip], 1)))
        return x


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
