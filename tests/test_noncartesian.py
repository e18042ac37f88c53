"""Non-Cartesian MRI and its trajectories, against the discrete Fourier transform written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import operators
import pnp
from operators import coils, trajectories
from operators.mri import to_complex
from pnp import quality


@settings(deadline=None, max_examples=15)
@given(st.integers(8, 30), st.integers(8, 30), st.integers(0, 3), st.integers(1, 2), st.booleans(), st.integers(0, 999))
def test_agrees_with_the_discrete_fourier_transform(height, width, coil_count, batch, golden, seed):
    rng = torch.Generator().manual_seed(seed)
    points = trajectories.radial(7, 24, golden)
    maps = torch.randn(coil_count, height, width, dtype=torch.complex64, generator=rng) if coil_count else None
    op = operators.NonCartesianMRI(points, (height, width), maps)
    x = torch.randn(batch, 2, height, width, generator=rng)
    rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
    phase = points[:, 0, None, None] * rows[:, None] + points[:, 1, None, None] * columns
    matrix = torch.exp(-1j * phase.double()) / math.sqrt(height * width)
    coil_images = to_complex(x)[:, None] * (1 if maps is None else maps)
    expected = torch.einsum("mhw,bnhw->bnm", matrix, coil_images.to(torch.complex128))
    y = op.A(x)
    assert y.shape == (batch, *op.measurement_shape)
    found = to_complex(y).reshape(expected.shape)
    assert (found - expected).norm() < 5e-5 * expected.norm()
    report = operators.check(op, (2, height, width))
    assert report.passed(5e-5), report


def test_volumes_agree_with_the_discrete_fourier_transform():
    points = trajectories.stack_of_stars(5, 16, 6)
    assert points.shape == (5 * 16 * 6, 3)
    assert points.abs().max() <= math.pi
    maps = torch.randn(2, 6, 9, 11, dtype=torch.complex64)
    op = operators.NonCartesianMRI(points, (6, 9, 11), maps)
    x = torch.randn(2, 2, 6, 9, 11)
    rows = [torch.arange(n, dtype=torch.float64) - n // 2 for n in (6, 9, 11)]
    phases = [torch.exp(-1j * points[:, d, None].double() * rows[d]) for d in range(3)]
    coil_images = (to_complex(x)[:, None] * maps).to(torch.complex128)
    expected = torch.einsum("bndhw,md,mh,mw->bnm", coil_images, *phases) / math.sqrt(6 * 9 * 11)
    found = to_complex(op.A(x))
    assert (found - expected).norm() < 5e-5 * expected.norm()
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        report = operators.check(op, (2, 6, 9, 11), dtype=dtype)
        assert report.adjointness < limit
        assert report.passed(5e-5), report


def test_radial_covers_k_space():
    points = trajectories.radial(10, 32)
    assert points.shape == (320, 2)
    assert points.abs().max() <= math.pi
    assert (points.reshape(10, 32, 2)[:, 16] == 0).all()
    direction = points.reshape(10, 32, 2)[:, 0]
    angles = torch.atan2(direction[:, 0], direction[:, 1])
    step = torch.remainder(angles[1:] - angles[:-1], math.pi)
    assert torch.allclose(step, torch.tensor(math.radians(111.246)), atol=1e-4)


def test_spiral_has_steady_arcs():
    points = trajectories.spiral(4, 2000, turns=8).reshape(4, 2000, 2)
    radius = points.norm(dim=-1)
    assert (radius.diff(dim=1) > 0).all()
    assert math.pi * 0.99 < radius.max() <= math.pi
    steps = points.diff(dim=1).norm(dim=-1)[:, 400:]
    assert steps.max() < 1.3 * steps.min()


@pytest.mark.parametrize(
    "make", [lambda: trajectories.radial(160, 192), lambda: trajectories.spiral(24, 1000, turns=4)]
)
def test_density_compensation_grids_to_the_image(make, brain):
    op = operators.NonCartesianMRI(make(), (96, 80))
    x = torch.cat([brain, 0 * brain], 1)
    gridded = op.A_adjoint(op.A(x) * op.density_compensation())
    assert quality.psnr(gridded, x).item() > 28
    assert gridded[:, 0].mean().item() == pytest.approx(x[:, 0].mean().item(), rel=0.02)


@pytest.mark.parametrize("step", [1.0, 0.5, 0.25])
def test_density_of_known_samples(step):
    """Samples on a grid stand for its cells."""
    v, u = torch.meshgrid(torch.arange(-16.0, 16), torch.arange(-16, 16, step), indexing="ij")
    points = torch.stack([v, u], -1).reshape(-1, 2) * math.pi / 16
    weights = operators.NonCartesianMRI(points, (32, 32)).density_compensation().reshape(v.shape)
    inside = weights[4:-4, 16:-16] if step < 1 else weights[4:-4, 4:-4]
    assert torch.allclose(inside, torch.tensor(step), rtol=0.1)


def test_solves(brain, medical):
    op = operators.NonCartesianMRI(trajectories.radial(24, 160), (96, 80), coils.birdcage((96, 80), 4))
    x = torch.cat([0.8 * brain, 0.6 * brain], 1)
    y = op.A(x)
    y = y + 0.01 * torch.randn_like(y)
    plain, prior = (pnp.solve(op, y, medical, algorithm=name, noise=0.01).x for name in ("cg", "hqs"))
    assert quality.psnr(prior, x) > quality.psnr(plain, x) + 1
    assert quality.psnr(prior, x) > 30


def test_update_and_copies_take_effect():
    first, second = trajectories.radial(5, 20), trajectories.radial(6, 20)
    op = operators.NonCartesianMRI(first, (16, 18))
    x = torch.randn(1, 2, 16, 18)
    copy = op.clone()
    op.update(trajectory=second)
    fresh = operators.NonCartesianMRI(second, (16, 18))
    assert torch.allclose(op.A(x), fresh.A(x), atol=1e-6)
    assert torch.allclose(op.A_adjoint_A(x), fresh.A_adjoint_A(x), atol=1e-5)
    assert torch.allclose(copy.A(x), operators.NonCartesianMRI(first, (16, 18)).A(x), atol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match=r"trajectory: expected shape \(M, 2\)"):
        operators.NonCartesianMRI(torch.zeros(5), (8, 8))
    with pytest.raises(ValueError, match=r"trajectory: expected radians per pixel in \[-pi, pi\)"):
        operators.NonCartesianMRI(torch.tensor([[0.0, 40.0]]), (8, 8))
    with pytest.raises(ValueError, match="trajectory: expected radians"):
        operators.NonCartesianMRI(torch.tensor([[0.0, math.nan]]), (8, 8))
    with pytest.raises(ValueError, match="maps: expected"):
        operators.NonCartesianMRI(torch.zeros(5, 2), (8, 8), torch.ones(2, 8, 9, dtype=torch.complex64))
    with pytest.raises(ValueError, match="y: expected shape"):
        operators.NonCartesianMRI(torch.zeros(5, 2), (8, 8)).A_adjoint(torch.zeros(1, 2, 6))
    with pytest.raises(ValueError, match="spokes: expected a whole number of at least 1"):
        trajectories.radial(0, 5)
    with pytest.raises(ValueError, match="turns, density"):
        trajectories.spiral(3, 5, turns=0)


def test_an_operator_keeps_its_own_trajectory():
    points = trajectories.radial(10, 64).double()
    op = operators.NonCartesianMRI(points, (64, 64))
    x = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0))
    before = op.A(x)
    points *= 0.5
    torch.testing.assert_close(op.A(x.repeat(2, 1, 1, 1))[:1], before)


def test_cycles_per_pixel_are_asked_about():
    trajectory = trajectories.radial(8, 64)
    with pytest.warns(UserWarning, match="cycles per pixel"):
        operators.NonCartesianMRI(trajectory / (2 * torch.pi), (32, 32))
