"""Denoisers without training: optimality of what they minimise, contract, and what they do to real-looking images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import denoisers
import operators
import pnp
from pnp import demo

NAMES = ("tv", "wavelet", "nlm")


@pytest.fixture(scope="module")
def brain():
    return (demo.brain()[0][:1] / demo.brain()[0].max())[..., 40:168, 40:168]


@pytest.mark.parametrize("name", NAMES)
def test_noise_goes_and_the_image_stays(name, brain):
    noisy = brain + 0.1 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0))
    found = denoisers.load(name)(noisy, 0.1)
    assert found.shape == noisy.shape
    assert found.dtype == noisy.dtype
    assert (found - brain).norm() < 0.5 * (noisy - brain).norm()
    assert (denoisers.load(name)(brain, 1e-5) - brain).norm() < 1e-3 * brain.norm()


@settings(deadline=None, max_examples=8)
@given(st.sampled_from(NAMES), st.integers(24, 40), st.integers(24, 40), st.integers(1, 2), st.floats(0.05, 0.3))
def test_contract(name, height, width, channels, sigma):
    denoiser = denoisers.load(name)
    x = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(height))
    levels = torch.tensor([sigma, 0.5 * sigma])
    out = denoiser(x, levels)
    alone = torch.cat([denoiser(x[:1], sigma), denoiser(x[1:], 0.5 * sigma)])
    assert out.shape == x.shape
    assert torch.allclose(out, alone, atol=2e-3)  # deepinv's TV stops by the change of the whole batch
    assert torch.equal(denoiser(x, levels), out)  # no memory of earlier calls
    scaled = denoiser(3 * x, 3 * levels)
    assert torch.allclose(scaled, 3 * out, atol=1e-2)


def test_total_variation_of_a_step_is_lowered_by_the_weight():
    # of a step between halves, each n pixels wide, the minimiser moves each level by weight / n towards the other
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    x[..., 16:] = 1
    found = denoisers.classical.TotalVariation(weight=1.0, iterations=3000)(x, 0.8)
    expected = 0.8 / 16
    assert found[..., :16].mean().item() == pytest.approx(expected, rel=0.02)
    assert found[..., 16:].mean().item() == pytest.approx(1 - expected, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_as_a_prior(name, brain):
    op = operators.MRI(operators.masks.cartesian(brain.shape[-2:], 3, calibration=16, seed=0))
    x = torch.cat([brain, torch.zeros_like(brain)], 1)
    y = op(x) + 0.01 * torch.randn(op(x).shape, generator=torch.Generator().manual_seed(0)) * op.mask
    solution = pnp.solve(op, y, denoisers.load(name), noise=0.01)
    assert (solution.x - x).norm() < 0.9 * (op.A_adjoint(y) - x).norm()


def test_block_matching_without_its_authors_program():
    x = torch.zeros(1, 1, 32, 32)
    x[..., 8:24, 8:24] = 1
    noisy = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    found = denoisers.classical.BlockMatching(authors=False)(noisy, 0.1)
    assert (found - x).norm() < 0.35 * (noisy - x).norm()


@pytest.mark.parametrize("name", NAMES)
def test_levels_that_do_not_fit(name):
    with pytest.raises(ValueError, match="sigma: expected a number or one for each of 2 images"):
        denoisers.load(name)(torch.rand(2, 1, 16, 16), torch.rand(3))


def test_total_variation_without_noise_is_the_image():
    x = torch.zeros(2, 1, 12, 12)
    x[..., 4:8, 4:8] = 1
    out = denoisers.load("tv")(x, torch.tensor([0.0, 0.1]))
    assert torch.equal(out[0], x[0])
    assert torch.isfinite(out).all()
