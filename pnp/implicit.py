"""Gradients through a fixed point, without memory for the iterations that found it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from pnp.problem import DivergenceError


def fixed_point(step: Callable[[Tensor], Tensor], x: Tensor, iterations: int = 300, tolerance: float = 1e-5) -> Tensor:
    """The fixed point x = step(x) by iterating from ``x``, with the gradient that the implicit function theorem gives.

    Deep equilibrium models: Bai, Kolter & Koltun, NeurIPS 2019; for inverse problems Gilton, Ongie & Willett, TCI 2021.

    :param step: contraction, differentiable in x and in whatever else it depends on.
    :param x: start.
    :param iterations: most iterations, forward and backward.
    :param tolerance: relative change at which they stop.
    :raises DivergenceError: where the iteration leaves all bounds, forward or backward; one that has not settled warns.
    """
    with torch.no_grad():
        x = _iterate(step, x, iterations, tolerance)
    result = step(x)
    if result.requires_grad:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            value = step(at)

        def backward(gradient: Tensor) -> Tensor:
            """The solution g of g = J'g + gradient, for the step's Jacobian J."""
            transposed = lambda g: torch.autograd.grad(value, at, g, retain_graph=True)[0] + gradient  # noqa: E731
            return _iterate(transposed, gradient, iterations, tolerance)

        result.register_hook(backward)
    return result


def _iterate(step, x, iterations, tolerance):
    for _ in range(iterations):
        before, x = x, step(x)
        moved, size = (x - before).norm().item(), x.norm().item()
        if not math.isfinite(moved + size):
            raise DivergenceError("the fixed-point iteration for implicit gradients diverged: is a step a contraction?")
        if moved <= tolerance * size:
            return x
    warnings.warn(
        f"gradients: the fixed point is not reached after {iterations} iterations, the last of which changed it by "
        f"{moved / size:.1g}; the gradients are that much off",
        stacklevel=2,
    )
    return x
