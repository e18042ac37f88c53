"""Schedules of noise levels for the denoiser, each a tensor whose first axis is the iteration."""

from __future__ import annotations

import torch
from torch import Tensor


def log_spaced(first: float | Tensor, last: Tensor, count: int) -> Tensor:
    """Geometric sequence from ``first`` to ``last`` (B, 1, ...), both included: (count, B, 1, ...)."""
    first = torch.as_tensor(first, dtype=last.dtype, device=last.device).expand_as(last)
    steps = torch.linspace(0, 1, count, device=last.device, dtype=last.dtype).reshape(-1, *[1] * last.ndim)
    return torch.exp(torch.lerp(first.log(), last.log(), steps))
