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
    v = torch.randint(0, 2, like.shape, generator=rng, device=like.device).to(like.dtype) * 2 - 1
    v = v / dot(v, v).sqrt()
    before, beta = torch.zeros_like(v), torch.zeros_like(dot(v, v))
    alphas, betas = [], []
    for _ in range(steps):
        w = normal(v) - beta * before
        alpha = dot(v, w)
        w = w - alpha * v
        alphas.append(alpha.flatten())
        beta = dot(w, w).sqrt()
        betas.append(beta.flatten())
        if (beta <= 1e-5 * alphas[0].abs().max()).all():
            break
        before, v = v, w / beta.clamp_min(torch.finfo(w.dtype).tiny)
    off = torch.stack(betas[:-1], 1) if len(betas) > 1 else torch.zeros(len(like), 0, device=like.device)
    matrix = torch.diag_embed(torch.stack(alphas, 1).double()) + torch.diag_embed(off.double(), 1)
    matrix = matrix + torch.diag_embed(off.double(), -1)
    values, vectors = torch.linalg.eigh(matrix)
    return values.to(like.dtype), vectors[:, 0].square().to(like.dtype)
