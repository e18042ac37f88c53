"""Noise levels: told by operators and users, of each item and each stacked operator, or found in measurements."""

from __future__ import annotations

import math

import deepinv
import pytest
import torch
import torch.nn.functional as F
from conftest import LAST_DIGITS, relative
from deepinv.physics.functional.blur import gaussian_blur

import operators
import pnp
from operators import coils, masks
from pnp import quality
from pnp.problem import Problem


def test_the_noise_that_was_found_can_be_told(multicoil, medical):
    """One level for each image of a batch, broadcastable to measurements of several coils."""
    op, y, _ = multicoil
    op.set_noise_model(deepinv.physics.ZeroNoise())
    found = pnp.solve(op, torch.cat([y, 3 * y]), None, algorithm="direct").noise
    assert found.shape == (2, 1, 1, 1, 1)
    assert found[1].item() == pytest.approx(3 * found[0].item(), rel=0.01)
    told = pnp.solve(op, torch.cat([y, 3 * y]), medical, noise=found, iterations=2)
    assert torch.isfinite(told.x).all()


def test_noise_of_each_coil(multicoil, medical):
    """Three coils that are all but useless must not spoil the fourth, once their noise is told."""
    op, _, truth = multicoil
    sigma = torch.tensor([0.005, 0.3, 0.3, 0.3]).view(1, 1, 4, 1, 1)
    y = op.A(truth) + sigma * torch.randn(1, 2, 4, 96, 80) * op.mask[:, :, None]
    told, mean = (pnp.solve(op, y, medical, noise=level).x for level in (sigma, sigma.square().mean().sqrt().item()))
    assert quality.psnr(told, truth) > quality.psnr(mean, truth) + 3


def noisy(kind, brain, truth):
    """An operator, and noise-free measurements of two images."""
    images = torch.cat([brain, brain.flip(-1)])
    coil_images = torch.cat([truth, truth.flip(-1)])
    maps, shape = coils.birdcage((96, 80), 4), (96, 80)
    if kind == "coils":
        op = operators.MRI(masks.poisson(shape, 3, 12, seed=0), maps)
    elif kind == "lines":
        op, coil_images = operators.MRI(masks.cartesian((112, 80), 3, 12, seed=0)), F.pad(coil_images, (0, 0, 8, 8))
    elif kind == "discs":
        op, coil_images = operators.MRI(masks.poisson((128, 112), 3, seed=0)), F.pad(coil_images, (16, 16, 16, 16))
    elif kind == "radial":
        op = operators.NonCartesianMRI(operators.trajectories.radial(30, 160), shape, maps)
    elif kind == "ct":
        op = operators.ParallelBeamCT(shape, torch.arange(60) * math.pi / 60)
    elif kind == "blur":
        op = deepinv.physics.BlurFFT((1, *shape), gaussian_blur(sigma=(1.5, 1.5)))
    else:
        op = deepinv.physics.Inpainting((1, *shape), mask=(torch.rand(1, *shape) < 0.6).float())
    return op, op.A(coil_images if kind in ("coils", "lines", "discs", "radial") else images)


@pytest.mark.parametrize("kind", ["coils", "lines", "discs", "radial", "ct", "blur", "inpainting"])
@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.05])
def test_noise_estimates(kind, sigma, brain, multicoil):
    op, y = noisy(kind, brain, multicoil[2])
    sigma = sigma * (y.abs().max().item() if kind == "ct" else 1)
    levels = torch.tensor([sigma, 2 * sigma]).reshape(2, *[1] * (y.ndim - 1))
    measured = op.A(op.A_adjoint(torch.ones_like(y))) != 0 if kind in ("coils", "lines", "discs", "inpainting") else 1
    y = y + levels * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * measured
    found = Problem(op, y, None).measured_noise.flatten() / levels.flatten()
    assert found.min() > 0.85
    # signal between pixels that are not neighbours cannot be told from noise that is fainter
    assert found.max() < (1.2 + 0.01 / sigma if kind == "inpainting" else 1.2)


def test_noise_that_nothing_tells(brain, medical):
    op = deepinv.physics.CompressedSensing(m=500, img_size=(1, 96, 80))
    with pytest.warns(UserWarning, match="noise: cannot be estimated"):
        pnp.solve(op, op.A(brain), medical, iterations=2)


def test_noise_of_stacked_operators(brain, medical):
    """A second, much noisier measurement does not spoil the first, whether operators or the user tell its noise."""
    parts = [
        operators.ParallelBeamCT((96, 80), torch.arange(60) * math.pi / 60 + shift, noise_model=model)
        for shift, model in ((0.0, deepinv.physics.GaussianNoise(0.1)), (0.01, deepinv.physics.GaussianNoise(2.0)))
    ]
    op = operators.stack(*parts)
    y = op(brain)
    alone = quality.psnr(pnp.solve(parts[0], y[0], medical).x, brain)
    told, given = pnp.solve(op, y, medical), pnp.solve(op, y, medical, noise=[0.1, 2.0])
    assert relative(told.x, given.x) < 1e-3  # several threads sum in any order
    assert quality.psnr(told.x, brain) > alone - 0.1
    assert quality.psnr(pnp.solve(op, y, medical, noise=1.0).x, brain) < alone - 1
    assert "noise 0.1 to 2" in repr(told)
    for scaled in (2 * op, operators.compose(deepinv.physics.Denoising(), op)):
        y = scaled.A(brain) + (op(brain) - op.A(brain))
        for noise in (None, [0.1, 2.0]):
            assert quality.psnr(pnp.solve(scaled, y, medical, noise=noise).x, brain) > alone - 0.1
    with pytest.raises(ValueError, match="noise: expected a number or one for each of 2 stacked operators, got 3"):
        pnp.solve(op, y, medical, noise=[0.1, 2.0, 1.0])


@pytest.mark.parametrize("algorithm", ["drs", pnp.algorithms.HQS(sigma=[0.3, 0.1, 0.03], rho=[1.0, 10.0, 100.0])])
def test_noise_told_for_each_item_is_no_other_problem(algorithm, brain, medical):
    op = operators.ParallelBeamCT((96, 80), torch.arange(60) * math.pi / 60)
    y = op.A(brain).repeat(2, 1, 1, 1)
    y = y + 0.3 * torch.randn(y.shape)
    number, items = (
        pnp.solve(op, y, medical, noise=noise, algorithm=algorithm).x for noise in (0.3, torch.full((2, 1, 1, 1), 0.3))
    )
    assert relative(items, number) < 1e-3  # several threads sum in any order
    if algorithm != "drs":  # weights in the user's units mean the same with noise for each measurement
        each = pnp.solve(op, y, medical, noise=torch.full(y.shape, 0.3), algorithm=algorithm).x
        assert relative(each, number) < 0.01


def test_noise_of_each_coil_for_a_batch_of_as_many(multicoil, medical):
    """Four items and four coils: a level for each coil is not one for each item."""
    op, y, _ = multicoil
    coils = y.shape[2]
    levels = torch.tensor([0.01] * (coils - 1) + [0.3]).reshape(coils, 1, 1)
    many = y.repeat(coils, 1, 1, 1, 1)
    short, whole = (pnp.solve(op, many, medical, iterations=2, noise=noise).x for noise in (levels, levels[None, None]))
    assert relative(short, whole) < LAST_DIGITS
    pnp.solve(op, y, medical, iterations=2, noise=levels)


def test_noise_where_only_k_space_tells(brain, medical):
    """Of one coil with a map, the residual does not tell the noise, the outermost samples do."""
    shape = brain.shape[-2:]
    image = torch.cat([brain, 0 * brain], 1)
    op = operators.MRI(operators.masks.cartesian(shape, 3, seed=0), torch.ones(1, *shape, dtype=torch.complex64))
    op.set_noise_model(deepinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(0)))
    y = op(image)
    op.set_noise_model(deepinv.physics.ZeroNoise())
    found = pnp.solve(op, y, medical, iterations=2).noise
    assert found == pytest.approx(0.1, rel=0.15)
    single = operators.MRI(op.mask[0, 0])
    for scaled in (single, 2 * single):
        assert pnp.solve(scaled, scaled.A(image) + y[:, :, 0], medical, iterations=2).noise == pytest.approx(
            pnp.solve(single, single.A(image) + y[:, :, 0], medical, iterations=2).noise, rel=0.25
        )


def test_an_item_of_one_coil_without_signal(brain):
    op = operators.MRI(masks.cartesian(brain.shape[-2:], 3, 12, seed=0))
    y = op.A(torch.cat([brain, 0 * brain], 1))
    y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * (y != 0)
    found = Problem(op, torch.cat([y, 0 * y]), None).measured_noise.flatten()
    assert found[0] == pytest.approx(Problem(op, y, None).measured_noise)
    assert found[1] == 0


def test_factors_and_what_stands_before_do_not_matter(multicoil):
    op, y, _ = multicoil
    found = Problem(op, y, None).measured_noise
    for same in (1 * op, operators.compose(deepinv.physics.Denoising(), op)):
        assert Problem(same, y, None).measured_noise == pytest.approx(found, rel=1e-4)


def test_what_was_found_of_an_item_without_signal_can_be_told(multicoil, medical):
    op, y, _ = multicoil
    batch = torch.cat([y, 0 * y])
    first = pnp.solve(op, batch, medical, iterations=2)
    assert relative(pnp.solve(op, batch, medical, iterations=2, noise=first.noise).x, first.x) < LAST_DIGITS
    assert torch.isfinite(pnp.sample(op, batch, medical, n=2, steps=2).x).all()
    with pytest.raises(ValueError, match="noise: expected positive"):
        pnp.solve(op, batch, medical, noise=(y != 0).float())


@pytest.mark.parametrize("missing", [0.01, 0.05, 0.09])
def test_dead_pixels_are_no_noise(missing, brain):
    mask = (torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0)) >= missing).float()
    op, whole = (deepinv.physics.Inpainting((1, 96, 80), mask=m) for m in (mask, torch.ones_like(mask)))
    image = brain + 0.02 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(1)) + 0.3
    found, expected = (Problem(o, o.A(image), None).measured_noise for o in (op, whole))
    assert found == pytest.approx(expected, rel=0.15)


def test_each_stacked_operator_has_noise_of_its_own(brain, medical):
    """Found where it differs, so that a noisy scan does no harm to another."""
    truth = torch.cat([brain, 0 * brain], 1)
    scans = [operators.MRI(masks.cartesian((96, 80), 3, 12, seed=seed)) for seed in (0, 1)]
    op, rng = operators.stack(*scans), torch.Generator().manual_seed(0)
    y = op.A(truth)
    for part, scan, level in zip(y, scans, (0.01, 0.2)):
        part += level * scan.mask * torch.randn(part.shape, generator=rng)
    both, alone, same = (
        pnp.solve(*problem, medical, iterations=6, noise=noise)
        for problem, noise in (((op, y), None), ((scans[0], y[0]), None), ((op, y), 0.14))
    )
    assert both.noise[1] > 3 * both.noise[0]
    assert quality.psnr(both.x, truth) > quality.psnr(same.x, truth) + 1
    assert quality.psnr(both.x, truth) > quality.psnr(alone.x, truth) - 0.1
    even = operators.stack(scans[0], scans[0])
    assert isinstance(pnp.solve(even, even.A(truth) + 0 * y, None, algorithm="direct").noise, float)
