"""Where the iteration starts: what is missing is filled from around, and what the user gives."""

from __future__ import annotations

import math

import deepinv
import pytest
import torch
from conftest import relative
from deepinv.physics.functional.blur import gaussian_blur

import operators
import pnp
from pnp import quality
from pnp.problem import Problem


def test_complete_items_do_not_choose_the_start_of_sparse_ones(brain):
    mask = torch.ones(4, 1, 96, 80)
    mask[3] = torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0)) < 0.15
    y = mask * brain
    both = Problem(deepinv.physics.Inpainting((1, 96, 80), mask=mask), y, None, noise=0.02)
    for item in (0, 3):
        alone = Problem(deepinv.physics.Inpainting((1, 96, 80), mask=mask[item : item + 1]), y[item][None], None, 0.02)
        assert relative(both.first[item], alone.first[0]) < 1e-3


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_few_pixels(share, brain, medical):
    """Where nine pixels of ten are missing, what fits and is smooth is not far, and the denoiser improves on it."""
    mask = (torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0)) < share).float()
    op = deepinv.physics.Inpainting((1, 96, 80), mask=mask)
    y = op.A(brain + 0.02 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0)))
    smooth = Problem(op, y, None)
    solution = pnp.solve(op, y, medical)
    assert quality.psnr(smooth.first * smooth.scale, brain) > quality.psnr(y, brain) + 6
    assert quality.psnr(solution.x, brain) > quality.psnr(smooth.first * smooth.scale, brain) + 0.5
    assert 0.8 * 0.02 < solution.noise < 2 * 0.02


def test_what_fitted_best_may_be_the_start(multicoil):
    op, y, _ = multicoil
    first = pnp.solve(op, y, lambda x, s: x, iterations=1, noise=0.02)
    with pytest.warns(UserWarning, match="diverged"):
        worst = pnp.solve(op, y, lambda x, s: 100 * x, noise=0.02, on_divergence="warn")
    assert relative(worst.x, first.x) < 0.5


def scratched():
    mask = torch.ones(1, 64, 56)
    mask[:, :, 30:34] = 0
    return deepinv.physics.Inpainting((1, 64, 56), mask=mask)


def cut_off():
    """A blur that is only known where its kernel fits in, so that the border is hardly seen."""
    return deepinv.physics.Blur(filter=gaussian_blur(sigma=(1.5, 1.5)), padding="valid")


@pytest.mark.parametrize("make", [scratched, cut_off])
def test_holes_are_filled_from_around(make, brain, medical):
    """In the middle of a brain, about as well as by total variation; a start from nothing there stays behind."""
    op, truth = make(), brain[..., 16:80, 12:68]
    y = op.A(truth)
    y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    y = op.mask * y if hasattr(op, "mask") else y
    found, tv = (pnp.solve(op, y, medical, algorithm=name, noise=0.02).x for name in (None, "tv"))
    from_nothing = pnp.solve(op, y, medical, noise=0.02, start=op.A_adjoint(y)).x
    assert quality.psnr(found, truth) > quality.psnr(tv, truth) - 0.5
    assert quality.psnr(found, truth) > quality.psnr(from_nothing, truth) + 3


@pytest.mark.parametrize(("degrees", "detectors"), [(90, None), (180, 72)])
def test_what_few_views_show_is_continued(degrees, detectors, brain, medical):
    """Of views from half of the sides, or of its middle only, better than from a ridge-regularised start."""
    angles = torch.arange(60) * math.radians(degrees) / 60
    op = operators.ParallelBeamCT((96, 80), angles, detectors=detectors)
    y = op.A(brain)
    y = y + 0.005 * y.max() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    problem = Problem(op, y, None)
    ridge = problem.data_step(0 * problem.first, torch.full_like(problem.norm, 0.05), 60) * problem.scale
    first = problem.first * problem.scale
    assert quality.psnr(first, brain) > quality.psnr(ridge, brain) + 1
    assert quality.psnr(pnp.solve(op, y, medical).x, brain) > quality.psnr(first, brain) + 3


def test_beyond_the_scanner_nothing_is_made_up(brain, medical):
    """Of an image in a circle, which is all that the operator sees."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 80), indexing="ij")
    outside = rows**2 + columns**2 > 0.9
    image = (brain[:, :, 8:88] + 0.5).masked_fill(outside, 0)
    op = deepinv.physics.Tomography(60, 80, circle=True, normalize=True)
    x = pnp.solve(op, op.A(image), medical, noise=0.05).x
    assert x[..., outside].square().mean().sqrt() < 0.1
