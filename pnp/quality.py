"""Image quality against a reference, for each item of a batch (B, 1, H, W); of complex ones, for the magnitude."""

from __future__ import annotations

import math

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


def cnr(x: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Contrast-to-noise ratio of two regions, |difference of the means| / root of the sum of the variances, (B,).

    :param x: images (B, 1, H, W), for ultrasound envelopes or B-mode images.
    :param inside: region, (H, W) or (B, H, W), where not 0.
    :param outside: the region to compare with.
    """
    scores = []
    for a, b in _regions(x, inside, outside):
        scores.append((a.mean() - b.mean()).abs() / (a.var() + b.var()).sqrt().clamp_min(1e-30))
    return torch.stack(scores)


def gcnr(x: Tensor, inside: Tensor, outside: Tensor, bins: int = 100) -> Tensor:
    """Generalised contrast-to-noise ratio, 1 - overlap of the two regions' histograms, (B,).

    It does not change under monotone maps of the values, such as log compression (Rodriguez-Molares et al., IEEE Trans
    Ultrason Ferroelectr Freq Control 2020). Here, the bins hold equally many values of both regions together, and there
    are at most as many as the square root of the smaller region's pixels, or noise would look like contrast.

    :param x: images (B, 1, H, W), for ultrasound envelopes or B-mode images.
    :param inside: region, (H, W) or (B, H, W), where not 0.
    :param outside: the region to compare with.
    :param bins: largest number of bins, at least 2.
    """
    if bins < 2:
        raise ValueError(f"bins: expected at least 2, got {bins}")
    scores = []
    for a, b in _regions(x, inside, outside):
        count = max(min(bins, math.isqrt(min(len(a), len(b)))), 2)
        both = torch.cat([a, b]).sort().values
        edges = both[torch.linspace(0, len(both) - 1, count + 1, device=both.device).round().long()[1:-1]].unique()
        shares = [torch.bincount(torch.bucketize(part, edges), minlength=len(edges) + 1) / len(part) for part in (a, b)]
        scores.append(1 - torch.minimum(*shares).sum())
    return torch.stack(scores)


def fwhm(profile: Tensor, spacing: float = 1.0) -> float:
    """Full width at half maximum of a profile's highest peak, in the units of ``spacing``.

    :param profile: values (N,) of at least 0, for instance of an envelope along a line through a point target.
    :param spacing: distance between them.
    :return: the width between linear interpolations at half the maximum; NaN where the profile does not fall that low.
    """
    if profile.ndim != 1 or not len(profile) or not torch.isfinite(profile).all() or not profile.max() > 0:
        raise ValueError(f"profile: expected finite values (N,) with a positive peak, got shape {tuple(profile.shape)}")
    values = profile.double().cpu() / profile.max().item()
    peak = values.argmax().item()
    width = 0.0
    for side in (values[peak:], values[: peak + 1].flip(0)):
        below = (side < 0.5).nonzero()
        if not len(below):
            return float("nan")
        k = below[0].item()
        width += k - 1 + ((side[k - 1] - 0.5) / (side[k - 1] - side[k])).item()
    return width * spacing


def _regions(x: Tensor, *regions: Tensor):
    images, masks = magnitude(x), []
    if not torch.isfinite(images).all():
        raise ValueError("x: expected finite values, got NaN or infinity")
    for name, region in zip(("inside", "outside"), regions):
        region = torch.as_tensor(region, device=images.device) != 0
        fits = region.shape[-2:] == images.shape[-2:] and (region.ndim == 2 or region.shape[:-2] in ((1,), (len(x),)))
        if not fits or (region.flatten(-2).sum(-1) < 2).any():
            raise ValueError(
                f"{name}: expected a region of size {tuple(images.shape[-2:])} with at least two pixels, "
                f"got {tuple(region.shape)} with {region.sum().item()}"
            )
        masks.append(region.expand_as(images))
    for image, *chosen in zip(images, *masks):
        yield [image[region] for region in chosen]


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
