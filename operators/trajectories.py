"""k-space trajectories, tensors (M, 2) or (M, 3) in radians per pixel along [D,] H and W, within [-pi, pi)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from operators.operator import whole

GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # 111.25 degrees


def radial(spokes: int, samples: int, golden: bool = True) -> Tensor:
    """Straight lines through the centre of k-space.

    :param spokes: number of lines.
    :param samples: samples of each line, from -pi up to just below pi, through 0.
    :param golden: True to turn each line by the golden angle of 111.25 degrees (Winkelmann et al., IEEE Trans Med
        Imaging 2007), which covers k-space evenly after any number of lines; False for equal steps over half a turn.
    :return: (spokes * samples, 2), line by line.
    """
    _check(spokes=spokes, samples=samples)
    angle = torch.arange(spokes, dtype=torch.float64) * (GOLDEN_ANGLE if golden else math.pi / spokes)
    radius = 2 * math.pi * (torch.arange(samples, dtype=torch.float64) - samples // 2) / samples
    points = torch.stack([radius * torch.sin(angle)[:, None], radius * torch.cos(angle)[:, None]], -1)
    return points.reshape(-1, 2).float()


def spiral(interleaves: int, samples: int, turns: float = 16, density: float = 1.0) -> Tensor:
    """Archimedean spirals from the centre of k-space outwards, turned against each other by equal angles.

    :param interleaves: number of spirals.
    :param samples: samples of each spiral.
    :param turns: turns of each spiral; N / (2 interleaves) of them sample N pixels fully.
    :param density: 1 for equally spaced turns; larger values sample the centre more densely.
    :return: (interleaves * samples, 2), spiral by spiral.
    """
    _check(interleaves=interleaves, samples=samples)
    if turns <= 0 or density <= 0:
        raise ValueError(f"turns, density: expected positive numbers, got {turns} and {density}")
    # outside, equal steps along the arc, which grows with the square of the radius; in the middle, where gradients
    # must start from 0 and samples must not skip low frequencies, equal steps of the radius
    part = torch.arange(samples, dtype=torch.float64) / samples
    time = part / torch.sqrt(0.05 + 0.95 * part)
    start = 2 * math.pi * torch.arange(interleaves, dtype=torch.float64)[:, None] / interleaves
    angle = start + 2 * math.pi * turns * time
    radius = math.pi * time**density
    points = torch.stack([radius * torch.sin(angle), radius * torch.cos(angle)], -1)
    return points.reshape(-1, 2).clamp(-math.pi, math.nextafter(math.pi, 0)).float()


def stack_of_stars(spokes: int, samples: int, partitions: int, golden: bool = True) -> Tensor:
    """Radial sampling of each plane of a volume that is encoded by equal steps along D.

    :param spokes: lines of each plane.
    :param samples: samples of each line.
    :param partitions: planes, from -pi up to just below pi.
    :param golden: True to go on turning by the golden angle from plane to plane; False for the same lines in all.
    :return: (partitions * spokes * samples, 3), plane by plane.
    """
    _check(spokes=spokes, samples=samples, partitions=partitions)
    planes = 2 * math.pi * (torch.arange(partitions, dtype=torch.float64) - partitions // 2) / partitions
    lines = radial(spokes * partitions, samples) if golden else radial(spokes, samples, False).repeat(partitions, 1)
    return torch.cat([planes.float().repeat_interleave(spokes * samples)[:, None], lines], 1)


def _check(**counts: int) -> None:
    for name, count in counts.items():
        whole(name, count)
