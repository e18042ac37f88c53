"""The rule for levels and steps of Douglas-Rachford splitting: what it reads off operator and noise."""

from __future__ import annotations

import math

import pytest
import torch

import operators
import pnp
from operators import masks, trajectories
from pnp import quality
from pnp.algorithms import DouglasRachford
from pnp.problem import Problem


def test_few_steps_start_low_where_a_mask_leaves_little_open(brain, medical):
    """Four calls are then nearly as good as twelve; what is mostly open has a longer way to go."""
    truth = torch.cat([brain, 0 * brain], 1)
    starts = []
    for acceleration in (2, 3, 8):
        op = operators.MRI(masks.poisson((96, 80), acceleration, 16, seed=0))
        y = op.A(truth) + 0.01 * op.mask * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
        few, whole = (pnp.solve(op, y, medical, iterations=count, noise=0.01) for count in (4, 12))
        starts.append(few.history["sigma"][0] / whole.history["sigma"][0])
        if acceleration == 2:
            assert quality.psnr(few.x, truth) > quality.psnr(whole.x, truth) - 1
    assert starts == sorted(starts)
    assert starts[0] < 0.9
    assert starts[-1] == pytest.approx(1)


@pytest.mark.parametrize("radius", [0.3, 0.6, 1.2])
def test_coarsest_structure_that_is_left_open(radius):
    """Of k-space within a circle, the coarsest structure outside has the circle's frequency."""
    rows, columns = torch.meshgrid(*(torch.fft.fftshift(torch.fft.fftfreq(96)) * 2 * math.pi,) * 2, indexing="ij")
    op = operators.MRI((rows**2 + columns**2 < radius**2).float())
    problem = Problem(op, torch.randn(1, 2, 96, 96, generator=torch.Generator().manual_seed(0)) * op.mask, None)
    assert problem.unseen.sqrt().item() == pytest.approx(radius, rel=0.25)


def test_levels_begin_with_what_may_be_wrong_in_the_start(brain):
    """They follow the noise where all is seen; coarse structure that is not makes them begin high in any case."""

    def first(degrees, noise):
        op = operators.ParallelBeamCT((96, 80), torch.arange(90) * math.radians(degrees) / 90)
        return next(iter(DouglasRachford().schedule(Problem(op, op.A(brain), None, noise=noise))))[0].item()

    little, more, much = (first(180, noise) for noise in (0.01, 0.3, 30.0))
    assert little == pytest.approx(0.1)
    assert 0.15 < more < 0.6
    assert 0.55 < much < 0.71
    assert first(100, 0.01) > 0.4


def test_low_noise_is_not_lost_to_high_levels(multicoil, medical):
    """Of hardly any noise, levels that begin at half of the range leave more."""
    cartesian, _, truth = multicoil
    op = operators.NonCartesianMRI(trajectories.radial(20, 192), (96, 80), cartesian.maps)
    low, high = (
        pnp.solve(op, op.A(truth), medical, algorithm=DouglasRachford(first=level), noise=1e-4) for level in (None, 0.5)
    )
    assert quality.psnr(low.x, truth) > quality.psnr(high.x, truth) + 0.2


def test_many_steps_are_as_good_as_some(brain, medical):
    """They would smooth away what is there, if each went as far: by 0.4 dB here."""
    op = operators.ParallelBeamCT((96, 80), torch.arange(90) * math.pi / 90)
    sinogram = op.A(brain)
    y = sinogram + 0.02 * sinogram.max() * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(0))
    some, many = (pnp.solve(op, y, medical, iterations=count) for count in (16, 80))
    assert quality.psnr(many.x, brain) > quality.psnr(some.x, brain) - 0.1


@pytest.mark.parametrize(("degrees", "noise", "enough"), [(180, 3.0, 9), (180, 0.01, 16), (100, 3.0, 16)])
def test_steps_get_shorter_once_the_noise_is_gone(degrees, noise, enough, brain):
    """After nine where noise is all that is wrong at first; later where little of it is, or structure is missing."""
    op = operators.ParallelBeamCT((96, 80), torch.arange(90) * math.radians(degrees) / 90)
    problem = Problem(op, op.A(brain), None, noise=noise)
    once, twice = (next(iter(DouglasRachford(count).schedule(problem)))[3].item() for count in (enough, 2 * enough))
    assert twice == pytest.approx(once / 2, rel=0.1)  # the share of tomography in it is 0.9 here
    fewer = next(iter(DouglasRachford(min(enough - 1, 10)).schedule(problem)))[3].item()
    assert fewer == pytest.approx(once, rel=0.01)


def test_steps_are_longer_where_structure_is_wrong_rather_than_noise(brain):
    """With ten iterations, not with five."""
    op = operators.ParallelBeamCT((96, 80), torch.arange(15) * math.pi / 15)

    def steps(noise, iterations):
        _, _, reflection, factor = next(iter(DouglasRachford(iterations).schedule(problem(noise))))
        return reflection.item(), factor.item()

    def problem(noise):
        return Problem(op, op.A(brain), None, noise=noise)

    quiet, loud = steps(0.01, 10), steps(3.0, 10)
    assert quiet == pytest.approx((0.7, 1.7), abs=0.02)
    assert loud[0] < 0.65
    assert loud[1] < 1.6
    assert steps(0.01, 5) == pytest.approx((0.6, 1.5), abs=0.02)


def test_data_weigh_more_where_they_hardly_have_noise(brain, medical):
    """The least weight that suits the usual noise leaves 0.07 dB of what they tell."""
    op = operators.ParallelBeamCT((96, 80), torch.arange(60) * math.pi / 60)
    sinogram = op.A(brain)
    y = sinogram + 0.02 * torch.randn(sinogram.shape, generator=torch.Generator().manual_seed(0))  # of 60
    ruled, usual = (
        pnp.solve(op, y, medical, algorithm=DouglasRachford(10, weights=weights)) for weights in (None, (0.17, 1.0))
    )
    assert quality.psnr(ruled.x, brain) > quality.psnr(usual.x, brain) + 0.03


@pytest.mark.parametrize("weights", [0.2, (), (0.2,), (1.0, 0.2), (-0.1, 1.0), (0.1, math.inf), (math.nan, 1.0)])
def test_weights_that_make_no_sense(weights):
    with pytest.raises(ValueError, match="weights: expected the least and the largest"):
        DouglasRachford(weights=weights)
