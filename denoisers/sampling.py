"""Images that a denoiser takes for likely, from noise alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def sample(
    denoiser: Callable,
    shape: tuple[int, ...] = (4, 1, 64, 64),
    *,
    steps: int = 50,
    first: float = 1.0,
    last: float = 1 / 255,
    mean: float = 0.3,
    seed: int | None = None,
) -> Tensor:
    """Draw images without measurements: what a prior knows, to look at.

    Ancestral sampling of the variance-exploding diffusion (Song et al., *Score-based generative modeling through
    stochastic differential equations*, ICLR 2021), at levels that fall geometrically. The bundled denoisers are small
    and see some fifty pixels far: they draw textures and edges, not organs, and are meant for conditional use.

    :param denoiser: ``denoiser(x, sigma)``; a network, on the device where it is.
    :param shape: of the images, (B, 1, H, W).
    :param steps: denoiser calls.
    :param first: noise level to start from, in units of the images' range: the highest of the training.
    :param last: noise level of the last call.
    :param mean: mean of the images to start from.
    :param seed: seed of the noise.
    :raises ValueError: unless there is at least one step, and the levels fall.
    """
    if steps % 1 or steps < 1:
        raise ValueError(f"steps: expected a whole number of at least 1, got {steps}")
    if not 0 < last <= first:
        raise ValueError(f"first, last: expected first >= last > 0, got {first}, {last}")
    device = next((p.device for p in getattr(denoiser, "parameters", list)()), torch.device("cpu"))
    generator = torch.Generator(device)
    generator.manual_seed(generator.seed() if seed is None else seed)

    def white():
        return torch.randn(shape, generator=generator, device=device)

    levels = torch.logspace(torch.tensor(first).log10(), torch.tensor(last).log10(), int(steps)).tolist()
    z = mean + first * white()
    for sigma, lower in zip(levels, [*levels[1:], 0.0]):
        d = denoiser(z, sigma)
        z = d + lower * ((lower / sigma) * (z - d) / sigma + (1 - (lower / sigma) ** 2) ** 0.5 * white())
    return z
