"""The data step: the image closest to a given one among those that fit the measurements."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.physics import DecomposablePhysics
from torch import Tensor


def conjugate_gradients(
    normal: Callable, residual: Tensor, rho: Tensor, iterations: int = 15, tolerance: float = 1e-3
) -> Tensor:
    """Solve (normal + rho) d = residual from d = 0, each item of the batch until its residual has shrunk.

    Hestenes & Stiefel, *Methods of conjugate gradients for solving linear systems*, 1952.

    :param normal: symmetric positive semi-definite map of images (B, C, ...).
    :param residual: right-hand side (B, C, ...).
    :param rho: (B, 1, ...).
    :param tolerance: relative to the norm of ``residual``, which is how far the start was from the solution.
    """
    d, r, p = torch.zeros_like(residual), residual, residual
    rr = dot(r, r)
    enough = tolerance**2 * rr
    for _ in range(iterations):
        active = rr > enough
        if not active.any():
            break
        q = normal(p) + rho * p
        # an item that is done gets 0 / 1: a division by 0 that is not used would still spoil the gradients of all
        alpha = torch.where(active, rr, 0.0) / torch.where(active, dot(p, q), 1.0).clamp_min(torch.finfo(rr.dtype).tiny)
        d, r = d + alpha * p, r - alpha * q  # not in place, so that gradients can pass
        new = torch.where(active, dot(r, r), rr)
        p = r + torch.where(active, new, 0.0) / torch.where(active, rr, 1.0) * p
        rr = new
    return d


def closed_form(op, like: Tensor) -> Callable | None:
    r"""The map :math:`(b, \rho) \mapsto (A^H A + \rho I)^{-1} b` where the operator has it in closed form, else None.

    An operator offers it by a method ``normal_inverse()`` that returns the map or None; deepinv's decomposable
    operators by their singular values. It is tried once on noise, and not used where it does not invert.

    :param like: an image (B, C, ...) of the operator's domain.
    """
    inverse = None
    if hasattr(op, "normal_inverse"):
        inverse = op.normal_inverse()
    elif isinstance(op, DecomposablePhysics):
        energy = torch.as_tensor(op.mask).abs().square()

        def inverse(b, rho):
            rho = rho.reshape(len(rho), *[1] * (energy.ndim - 1)) if energy.ndim else rho
            return op.V(op.V_adjoint(b) / (energy + rho))

    if inverse is not None:
        rng = torch.Generator(like.device).manual_seed(0)
        b = torch.randn(like.shape, generator=rng, device=like.device, dtype=like.dtype)
        rho = torch.full((len(b), *[1] * (b.ndim - 1)), 0.3, device=b.device, dtype=b.dtype)
        x = inverse(b, rho)
        if not (op.A_adjoint_A(x) + rho * x - b).norm() <= 1e-3 * b.norm():
            return None
    return inverse


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each item of a batch, (B, 1, ...)."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)
