"""A U-Net whose levels are second-order differential equations instead of stacks of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from denoisers.unet import ResidualUNet


class ContinuousUNet(ResidualUNet):
    r"""A :class:`ResidualUNet` with a second-order neural ODE in place of each level's residual blocks.

    The features of a level are the position x of a system :math:`x'' = f(x, x', t, \sigma)` that moves for one unit of
    time (Ouyang et al., *The Missing U for efficient diffusion models*, TMLR 2024; Calvo-Ordonez et al., 2023). All
    steps of a level share their weights, so that it has fewer parameters than layers, and the number of steps can be
    changed after training. The network is jointly 1-homogeneous in image and noise level, as its base is.

    :param widths: channels of each level, finest first.
    :param steps: steps of the solver at each level: one number for all levels, or one for each.
    :param half: run the trunk in bfloat16: True, False, or None for True where the processor does it fast.
    """

    def __init__(
        self, widths: Sequence[int] = (32, 48, 64, 96), steps: int | Sequence[int] = 3, half: bool | None = None
    ):
        super().__init__(widths, steps, half)

    @property
    def settings(self) -> dict:
        """Keyword arguments that build the network again, with the steps as they are now."""
        return {"widths": list(self.widths), "steps": [level.steps for level in (*self.down, self.body)]}

    @staticmethod
    def stage(width: int, depth: int) -> nn.Module:
        return Oscillator(width, depth)


class Oscillator(nn.Module):
    r"""Flow of :math:`x'' = g(t)\, W_2\, \mathrm{relu}(W_1 x + c\, x' + \sigma b(t)) - d\, x'` over one unit of time.

    W are 3 x 3 convolutions; c and d are numbers for each channel; g and b are smooth functions of time for each
    channel. The noise level scales b as a threshold that is homogeneous with the image. The solver is the semi-implicit
    Euler method, of first order, and stable for oscillations.

    :param width: channels.
    :param steps: steps of the solver; may be changed at any time.
    """

    FREQUENCIES = 3

    def __init__(self, width: int, steps: int):
        super().__init__()
        self.steps = steps
        self.inward = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.outward = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.velocity = nn.Conv2d(width, width, 1, bias=False)  # the initial one
        with torch.no_grad():  # starts slow, so that the flow is near the identity
            self.outward.weight.mul_(0.5)
            self.velocity.weight.mul_(0.1)
        self.coupling = nn.Parameter(torch.zeros(width, 1, 1))
        self.damping = nn.Parameter(torch.zeros(width, 1, 1))
        self.gain = nn.Parameter(torch.eye(1, self.FREQUENCIES).repeat(width, 1))
        self.threshold = nn.Parameter(torch.zeros(width, self.FREQUENCIES))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Features (B, width, H, W) after one unit of time, for noise levels (B, 1, 1, 1)."""
        v = self.velocity(x)
        for k in range(self.steps):
            v = v + self.force(x, v, (k + 0.5) / self.steps, sigma) / self.steps
            x = x + v / self.steps
        return x

    def force(self, x: Tensor, v: Tensor, time: float, sigma: Tensor) -> Tensor:
        """x'' at a time between 0 and 1."""
        wave = self.gain.new_tensor([math.cos(math.pi * n * time) for n in range(self.FREQUENCIES)])
        gain, threshold = ((weights @ wave).view(-1, 1, 1) for weights in (self.gain, self.threshold))
        inner = self.inward(x) + (self.coupling * v + sigma * threshold).to(x.dtype)
        return (gain * self.outward(F.relu(inner)) - self.damping * v).to(x.dtype)
