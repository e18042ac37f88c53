"""What the solvers need to know of an operator's spectrum."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pnp.data_step import dot


def lanczos(normal: Callable, like: Tensor, steps: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ritz values of a symmetric map and their weights, started from a random image of +1 and -1.

    The weighted Ritz values are a quadrature of the spectrum: ``sum(weights * f(values))`` approximates trace f / n
    (Golub & Meurant, *Matrices, moments and quadrature*, 2010). The largest approximates the largest eigenvalue.

    :param normal: map of images (B, C, ...) to such.
    :param like: an image of the shape, dtype and device to use.
    :return: values and weights, each (B, steps), the values ascending; fewer where the map's Krylov space is smaller.
    """
    rng = torch.Generator(like.device).manual_seed(seed)
    v = torch.randint(0, 2, like.shape[1:], generator=rng, device=like.device).to(like.dtype) * 2 - 1
    v = v.expand_as(like)  # the same for all, so that no item depends on its place in the batch
    values, vectors, _ = _krylov(normal, v, steps)
    return values, vectors[:, 0].square()


def function_of(normal: Callable, v: Tensor, function: Callable, steps: int = 10) -> Tensor:
    """f(M) v for a symmetric map M of images, by Lanczos (Higham, *Functions of matrices*, 2008).

    :param normal: the map.
    :param v: images (B, C, ...).
    :param function: f, of tensors of eigenvalues (B, steps).
    """
    values, vectors, basis = _krylov(normal, v, steps)
    weights = (vectors * (function(values) * vectors[:, 0])[:, None]).sum(-1)  # of f(T) e_1
    return dot(v, v).sqrt() * sum(weights[:, k].reshape(-1, *[1] * (v.ndim - 1)) * b for k, b in enumerate(basis))


def _krylov(normal: Callable, v: Tensor, steps: int) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Eigenvalues (B, steps) and vectors of the map on the Krylov space of v, and the space's basis."""
    v = v / dot(v, v).sqrt()
    before, beta = torch.zeros_like(v), torch.zeros_like(dot(v, v))
    tiny = torch.finfo(v.dtype).tiny
    alphas, betas, basis = [], [], []
    for _ in range(steps):
        w = normal(v)
        if not basis:
            unit = w.abs().amax(tuple(range(1, v.ndim)), keepdim=True).clamp_min(tiny)  # lest squares underflow
        basis.append(v)
        w = w / unit - beta * before
        alpha = dot(v, w)
        w = w - alpha * v
        alphas.append(alpha.flatten())
        beta = dot(w, w).sqrt()
        betas.append(beta.flatten())
        if (beta <= 1e-5 * alphas[0].abs().max()).all():
            break
        before, v = v, w / beta.clamp_min(tiny)
    off = torch.stack(betas[:-1], 1) if len(betas) > 1 else v.new_zeros(len(v), 0)
    matrix = torch.diag_embed(torch.stack(alphas, 1).double()) + torch.diag_embed(off.double(), 1)
    matrix = matrix + torch.diag_embed(off.double(), -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values.to(v.dtype) * unit.flatten()[:, None], vectors.to(v.dtype), basis
