"""Random changes of images and labels that make a segmentation network indifferent to scanner and protocol."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(
    images: Tensor, labels: Tensor, size: int, rng: torch.Generator, strength: float = 1.0, heads: bool = False
):
    """Random geometry, contrast, bias field, resolution, noise and, for skull-stripped brains, a synthetic head.

    :param images: (B, C, H, W), scaled to about [0, 1].
    :param labels: (B, H, W) class numbers.
    :param size: side of the square that is cut out.
    :param rng: source of the random numbers, on the images' device.
    :param strength: how far images are changed: 1 for a network that is to cope with any scanner, 0 for not at all.
    :param heads: put skull and scalp of random thickness and brightness around half of the images, which must be 0
        outside the brain.
    :return: images (B, C, size, size) and labels (B, size, size).
    """
    images, labels = _geometry(images, labels, size, rng, strength)
    if heads:
        images = torch.where(_coin(images, 0.5, rng), _with_head(images, rng), images)
    if strength == 0:
        return images, labels
    images = _contrast(images, rng, strength)
    images = torch.where(_coin(images, 0.3 * strength, rng), _coarser(images, rng), images)
    noise = torch.randn(images.shape, generator=rng, device=images.device)
    level = _uniform(images, 0.0, 0.06 * strength, rng) * _coin(images, 0.7, rng)
    real = images + level * noise
    imaginary = level * torch.randn(images.shape, generator=rng, device=images.device)
    return torch.where(_coin(images, 0.5, rng), torch.hypot(real, imaginary), real), labels


def _uniform(like: Tensor, low: float, high: float, rng: torch.Generator) -> Tensor:
    """One number for each image, (B, 1, 1, 1)."""
    return low + (high - low) * torch.rand(len(like), 1, 1, 1, generator=rng, device=like.device)


def _coin(like: Tensor, probability: float, rng: torch.Generator) -> Tensor:
    return _uniform(like, 0.0, 1.0, rng) < probability


def _geometry(images: Tensor, labels: Tensor, size: int, rng: torch.Generator, strength: float):
    """Flip, rotate (by any angle, often by quarter turns), zoom, stretch and shift."""
    count = len(images)
    height, width = images.shape[-2:]
    turn = torch.randint(4 if strength else 1, (count,), generator=rng, device=images.device) * (math.pi / 2)
    angle = turn + strength * _uniform(images, -0.35, 0.35, rng).flatten() * _coin(images, 0.7, rng).flatten()
    zoom = torch.exp(strength * _uniform(images, -0.3, 0.3, rng)).flatten()
    stretch = torch.exp(strength * _uniform(images, -0.1, 0.1, rng)).flatten()
    mirror = torch.where(_coin(images, 0.5 if strength else 0.0, rng), -1.0, 1.0).flatten()
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.zeros(count, 2, 3, device=images.device)
    across, down = size / width / zoom, size / height / zoom
    theta[:, 0, 0], theta[:, 0, 1] = mirror * cos * across * stretch, -sin * across / stretch
    theta[:, 1, 0], theta[:, 1, 1] = mirror * sin * down * stretch, cos * down / stretch
    slack = strength * torch.tensor([max(1 - size / width, 0.1), max(1 - size / height, 0.1)], device=images.device)
    theta[:, :, 2] = (2 * torch.rand(count, 2, generator=rng, device=images.device) - 1) * slack
    grid = F.affine_grid(theta, (count, 1, size, size), align_corners=False)
    images = F.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
    labels = F.grid_sample(labels[:, None].float(), grid, "nearest", "zeros", align_corners=False)
    return images, labels[:, 0].long()


def _contrast(images: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Gamma, and a smooth multiplicative bias field."""
    gamma = torch.exp(strength * _uniform(images, -0.5, 0.4, rng))
    coarse = torch.randn(len(images), 1, 4, 4, generator=rng, device=images.device)
    field = F.interpolate(coarse, images.shape[-2:], mode="bicubic", align_corners=False)
    return images.clamp_min(0) ** gamma * torch.exp(strength * _uniform(images, 0.0, 0.25, rng) * field)


def _coarser(images: Tensor, rng: torch.Generator) -> Tensor:
    """Lower resolution by a truncated spectrum, whose ringing is what an undersampled scan leaves too."""
    height, width = images.shape[-2:]
    spectrum = torch.fft.fft2(images)
    rows, columns = torch.fft.fftfreq(height, device=images.device), torch.fft.fftfreq(width, device=images.device)
    cut = _uniform(images, 0.2, 0.5, rng)
    directions = (rows[:, None].abs() * _coin(images, 0.7, rng), columns.abs() * _coin(images, 0.7, rng))
    return torch.fft.ifft2(spectrum * (torch.maximum(*directions) < cut)).real


def _with_head(images: Tensor, rng: torch.Generator) -> Tensor:
    """Surround a skull-stripped brain with fluid, bone and scalp, and put random tissue farther out."""
    brain = (images > 0.02).float()
    inner = _grow(brain, 1 + int(5 * torch.rand(1, generator=rng, device=images.device)))
    bone = _grow(inner, 2 + int(8 * torch.rand(1, generator=rng, device=images.device)))
    scalp = _grow(bone, 2 + int(10 * torch.rand(1, generator=rng, device=images.device)))
    texture = _texture(images, 16, rng)
    beyond = (_texture(images, 6, rng) > 0.6) * _coin(images, 0.5, rng) * (1 - scalp)
    head = (
        (inner - brain) * _uniform(images, 0.05, 0.35, rng)
        + (bone - inner) * _uniform(images, 0.0, 0.5, rng) * texture
        + (scalp - bone) * _uniform(images, 0.4, 1.6, rng) * (0.6 + 0.4 * texture)
        + beyond * _uniform(images, 0.1, 0.9, rng) * texture
    )
    soft = F.avg_pool2d(F.pad(head, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.where(brain > 0, images, soft)


def _grow(mask: Tensor, radius: int) -> Tensor:
    """Dilation by alternating square and cross, which is about a disk."""
    for step in range(radius):
        square = F.max_pool2d(mask, 3, 1, 1)
        cross = torch.maximum(F.max_pool2d(mask, (3, 1), 1, (1, 0)), F.max_pool2d(mask, (1, 3), 1, (0, 1)))
        mask = square if step % 2 else cross
    return mask


def _texture(images: Tensor, cells: int, rng: torch.Generator) -> Tensor:
    coarse = torch.rand(len(images), 1, cells, cells, generator=rng, device=images.device)
    return F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)
