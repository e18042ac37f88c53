"""Implicit U-KAN 2.0 (Cheng et al., *Implicit U-KAN2.0: dynamic, efficient and interpretable medical image
segmentation*, MICCAI 2025), after the paper and in a light form."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.kan import KANLinear, MultKAN, SharedKAN
from segmentation.ode import SecondOrderBlock
from segmentation.unet import Pointwise, conv, fit_multiple

VARIANTS = {
    # channels of each level, finest first; steps of the solver at each; which ones have layers of curves; whether one
    # curve serves all of an input's connections; whether the finest level works at half of the resolution; whether the
    # force sees all channels of the velocity; which levels have separable convolutions; the size of the convolution
    # that merges a skip connection
    "paper": {
        "widths": (6, 32, 64, 128, 160, 256),
        "steps": 1,
        "curves": (False, False, True, True, True, False),
        "shared": False,
        "half": False,
        "mixed": False,
        "separable": (False, False, True, True, True, True),
        "merge": 1,
    },
    "light": {
        "widths": (16, 32, 64, 128, 192),
        "steps": (1, 1, 1, 2, 2),
        "curves": (False, False, False, False, True),
        "shared": True,
        "half": True,
        "mixed": False,
        "separable": (False, False, False, True, True),
        "merge": 1,
    },
}


class ImplicitUKAN2(nn.Module):
    """U-Net of second-order differential equations, with layers of Kolmogorov-Arnold curves at the coarse levels.

    Each level moves its features along :class:`segmentation.ode.SecondOrderBlock`; levels with curves then add, to
    every pixel's features, a layer of curves half of whose outputs are products (:class:`segmentation.kan.MultKAN`),
    followed by a depthwise convolution.

    ``variant="paper"`` has the paper's five levels of 6 to 160 channels and a bottleneck of 256; what is faster here is
    one step at each level and separable convolutions from 1/4 of the resolution down. ``"light"`` starts at half of the
    resolution by rearranging pixels into channels, which loses nothing, and has one curve for each channel instead of
    one for each connection. In both, skip connections join by 1 x 1 convolutions.

    :param num_classes: number of classes K, background included.
    :param in_channels: image channels C.
    :param variant: ``"light"`` or ``"paper"``.
    :param steps: steps of the solver, one number for all levels or one for each, default the variant's; may be changed
        after training, see :meth:`solve_with`.
    :param solver: ``"euler"``, ``"verlet"``, ``"rk4"`` or ``"dopri5"``, see :func:`segmentation.ode.integrate`.
    :param changes: parts of the variant to change, see ``VARIANTS``.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        variant: str = "light",
        steps: int | tuple[int, ...] | None = None,
        solver: str = "verlet",
        **changes,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant: expected {' or '.join(VARIANTS)}, got {variant!r}")
        if unknown := set(changes) - set(VARIANTS[variant]):
            raise TypeError(f"changes: expected any of {', '.join(VARIANTS[variant])}, got {', '.join(unknown)}")
        if steps is not None:
            changes["steps"] = steps
        self.num_classes, self.in_channels = num_classes, in_channels
        self.settings = {"num_classes": num_classes, "in_channels": in_channels, "variant": variant, "solver": solver}
        self.settings |= changes
        layout = VARIANTS[variant] | changes
        self.widths, self.fold = layout["widths"], 1 + layout["half"]
        keys = ("widths", "steps", "separable", "curves")
        levels = list(zip(*(_for_each(layout[key], self.widths, key) for key in keys)))
        widths = self.widths

        def level(width, steps, separable, curved):
            block = SecondOrderBlock(width, steps, solver, layout["mixed"], separable)
            return nn.Sequential(block, CurveBlock(width, layout["shared"])) if curved else nn.Sequential(block)

        self.stem = conv(self.fold**2 * in_channels, widths[0])
        self.encoder = nn.ModuleList(level(*settings) for settings in levels)
        self.shrink = nn.ModuleList(conv(a, b, 2) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(conv(2 * a, a, size=layout["merge"]) for a in widths[:-1])
        self.decoder = nn.ModuleList(level(*settings) for settings in levels[:-1])
        self.head = Pointwise(widths[0], self.fold**2 * num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K, H, W) of images (B, C, H, W) of any size."""
        features, crop = self._before_last(x)
        return self._decode(self.decoder[0](features), crop)

    def trajectory(self, x: Tensor) -> list[Tensor]:
        """Logits (B, K, H, W) at each time of the finest level's last equation, from its start to its end."""
        features, crop = self._before_last(x)
        return [self._decode(position, crop) for position, _ in self.decoder[0][0].path(features)]

    def solve_with(self, steps: int | None = None, solver: str | None = None, adjoint: bool | None = None) -> None:
        """Change steps, solver, or the way to gradients of all levels, see :func:`segmentation.ode.integrate`.

        Steps and solver are kept where the network is saved.
        """
        self.settings |= {k: v for k, v in (("steps", steps), ("solver", solver)) if v}
        for block in self.modules():
            if isinstance(block, SecondOrderBlock):
                block.steps = steps or block.steps
                block.solver = solver or block.solver
                block.adjoint = block.adjoint if adjoint is None else adjoint

    def _before_last(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Features that enter the last equation, and the images' height and width."""
        x, *crop = fit_multiple(x, self.in_channels, self.fold * 2 ** len(self.shrink))
        x = self.stem(F.pixel_unshuffle(x, self.fold))
        skips = []
        for encode, shrink in zip(self.encoder, self.shrink):
            skips.append(encode(x))
            x = shrink(skips[-1])
        x = self.encoder[-1](x)
        for k in reversed(range(len(skips))):
            x = self.merge[k](torch.cat([self.grow[k](x), skips[k]], 1))
            if k:
                x = self.decoder[k](x)
        return x, crop

    def _decode(self, features: Tensor, crop: tuple[int, int]) -> Tensor:
        return F.pixel_shuffle(self.head(features), self.fold)[..., : crop[0], : crop[1]]


def _for_each(value, widths, name: str) -> tuple:
    """One value for each level, where there is one number for all or one for each already."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * len(widths)
    if len(values) != len(widths):
        raise ValueError(f"{name}: expected one value or {len(widths)}, one for each of widths, got {value}")
    return values


class CurveBlock(nn.Module):
    """Features plus a depthwise convolution of a layer of curves of them, half of whose outputs are products."""

    def __init__(self, width: int, shared: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.curves = MultKAN(width, width, width // 2, layer=SharedKAN if shared else KANLinear)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.depthwise(self.curves(self.norm(x.movedim(1, -1))).movedim(-1, 1))
