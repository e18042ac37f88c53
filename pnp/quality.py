"""Image quality against a reference, for each item of a batch (B, 1, H, W); of complex ones, for the magnitude."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(x: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, (B,); the peak is the reference's largest value.

    :param mask: (B, H, W) or (H, W), where to look; default everywhere.
    """
    error, reference, mask = _prepared(x, reference, mask)
    mean = (error.square() * mask).sum((1, 2)) / mask.sum((1, 2))
    return 10 * torch.log10((reference * mask).amax((1, 2)).square() / mean.clamp_min(torch.finfo(mean.dtype).tiny))


def nrmse(x: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Root of the squared error relative to the reference's, (B,)."""
    error, reference, mask = _prepared(x, reference, mask)
    return ((error.square() * mask).sum((1, 2)) / (reference.square() * mask).sum((1, 2))).sqrt()


def ssim(x: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity (Wang et al., IEEE Trans Image Process 2004), by torchmetrics, averaged over the mask."""
    error, reference, mask = _prepared(x, reference, mask)
    values = []
    for item, wanted, where in zip(reference + error, reference, mask):
        peak = float((wanted * where).max())
        _, similarity = structural_similarity_index_measure(
            item[None, None], wanted[None, None], data_range=peak, return_full_image=True
        )
        values.append((similarity[0, 0] * where).sum() / where.sum())
    return torch.stack(values)


def magnitude(x: Tensor) -> Tensor:
    """(B, 2, H, W) complex or (B, 1, H, W) real to (B, H, W)."""
    if x.ndim != 4 or x.shape[1] not in (1, 2):
        raise ValueError(f"x: expected images (B, 1, H, W) or (B, 2, H, W), got shape {tuple(x.shape)}")
    return x[:, 0] if x.shape[1] == 1 else torch.linalg.vector_norm(x, dim=1)


def _prepared(x: Tensor, reference: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    x, reference = magnitude(x), magnitude(reference)
    if x.shape != reference.shape:
        raise ValueError(f"x: expected the reference's shape {tuple(reference.shape)}, got {tuple(x.shape)}")
    mask = torch.ones_like(reference) if mask is None else mask.to(reference).expand_as(reference)
    return x - reference, reference, mask
