"""Posterior samples: shapes, seeds, and where they differ."""

from __future__ import annotations

import deepinv
import pytest
import torch
from conftest import LAST_DIGITS, relative
from scipy import stats

import pnp
from pnp import quality
from pnp.algorithms import DAPS, DDRM, PiGDM
from pnp.data_step import conjugate_gradients
from pnp.diffusion import through_denoiser
from pnp.problem import Problem
from pnp.solver import iterate
from pnp.spectrum import function_of


@pytest.mark.parametrize("name", ["diffpir", "dds", "ddnm", "ddrm", "pigdm", None])
def test_samples_differ_where_nothing_was_measured(name, brain, medical):
    mask = (torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    op = deepinv.physics.Inpainting((1, 96, 80), mask=mask)
    y = op.A(brain + 0.02 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0)))
    samples = pnp.sample(op, y, medical, n=6, steps=12, algorithm=name, noise=0.02)
    assert samples.x.shape == (6, 1, 1, 96, 80)
    assert samples.std[0, mask == 0].mean() > 1.5 * samples.std[0, mask == 1].mean()
    assert quality.psnr(samples.mean, brain) > quality.psnr(y, brain) + 8
    assert samples.calls["denoiser"] == (24 if name is None else 12)  # all samples at once


def test_spread_is_of_the_size_of_the_error(multicoil, medical):
    """Intervals from eight samples hold the truth in most pixels, and the spread is larger where the error is."""
    op, y, truth = multicoil
    samples = pnp.sample(op, y, medical, n=8, seed=0)
    error = (samples.mean - truth).norm(dim=1)
    spread = samples.std.norm(dim=1)
    body = truth.norm(dim=1) > 0.05
    reach = stats.t.ppf(0.95, 7) * (1 + 1 / 8) ** 0.5 * samples.std[:, 0]
    inside = ((samples.mean - truth)[:, 0].abs() <= reach)[body].float().mean()
    assert 0.75 <= inside <= 0.97
    assert stats.spearmanr(error[body], spread[body]).statistic > 0.1


def test_seeds(multicoil, medical):
    op, y, _ = multicoil
    first, again, other = (pnp.sample(op, y, medical, n=2, steps=3, seed=seed).x for seed in (1, 1, 2))
    assert relative(again, first) < LAST_DIGITS
    assert relative(other, first) > 1e-3
    assert not torch.allclose(first[0], first[1])


def test_batches(multicoil, medical):
    op, y, truth = multicoil
    samples = pnp.sample(op, torch.cat([y, 2 * y]), medical, n=3, steps=6, noise=0.01)
    assert samples.x.shape == (3, 2, 2, 96, 80)
    assert samples.std.shape == samples.mean.shape == (2, 2, 96, 80)
    assert quality.psnr(samples.mean, torch.cat([truth, 2 * truth])).min() > 25
    assert "3, 2, 2, 96, 80" in repr(samples)


def test_bad_input(multicoil, medical):
    op, y, _ = multicoil
    with pytest.raises(ValueError, match="n: expected a whole number of at least 1, got 0"):
        pnp.sample(op, y, medical, n=0)
    with pytest.raises(ValueError, match="iterations: expected a whole"):
        pnp.sample(op, y, medical, steps=0)
    with pytest.raises(TypeError, match="denoiser: expected a callable"):
        pnp.sample(op, y, None)
    with pytest.raises(ValueError, match="algorithm: expected a diffusion sampler"):
        pnp.sample(op, y, medical, algorithm="hqs")
    with pytest.raises(ValueError, match="algorithm: expected one of"):
        pnp.sample(op, y, medical, algorithm="magic")


def test_ddrm_is_for_decomposable_operators(multicoil, medical):
    op, y, _ = multicoil
    with pytest.raises(TypeError, match="op: expected a deepinv DecomposablePhysics for DDRM"):
        pnp.sample(op, y, medical, n=1, algorithm="ddrm")


class Gaussian(torch.nn.Module):
    """The posterior mean for pixels that are normal, of mean 0 and standard deviation 0.3."""

    def forward(self, x, sigma):
        return x / (1 + (torch.as_tensor(sigma).reshape(-1, 1, 1, 1) / 0.3) ** 2)


@pytest.fixture
def gaussian():
    """A problem in units of its own whose posterior is known: where measured, and where not."""
    rng = torch.Generator().manual_seed(1)
    mask = (torch.rand(1, 24, 24, generator=rng) < 0.6).float()
    op = deepinv.physics.Inpainting((1, 24, 24), mask=mask)
    x = 0.3 * torch.randn(1, 1, 24, 24, generator=rng)
    problem = Problem(op, op.A(x + 0.1 * torch.randn(x.shape, generator=rng)), Gaussian(), 0.1)
    problem._denoiser.offset = 0.0  # the images' mean is 0
    return problem, mask[None] > 0


@pytest.mark.parametrize(
    ("sampler", "tolerance"), [(DAPS(100, weight=1.0), 0.03), (PiGDM(300, range=0.3), 0.2), (DDRM(300), 0.4)]
)
def test_samples_of_a_gaussian_posterior(gaussian, sampler, tolerance):
    problem, measured = gaussian
    level = problem.noise.item()
    std = (1 / (1 / level**2 + 1 / 0.3**2)) ** 0.5
    mean = std**2 / level**2 * problem.adjoint_y
    many = problem.repeated(64)
    (x, *_), _, _ = iterate(many, sampler, list(sampler.schedule(many)), (many.first,))
    assert (x.mean(0, keepdim=True) - mean)[measured].abs().mean() < 0.25 * std
    assert x.std(0, keepdim=True)[measured].mean().item() == pytest.approx(std, rel=tolerance)
    assert x.std(0, keepdim=True)[~measured].mean().item() == pytest.approx(0.3, rel=0.2)


def test_what_the_data_step_leaves_open(multicoil, medical):
    """Its covariance, from many draws, applied to an image."""
    op, y, _ = multicoil
    problem = Problem(op, y, medical, 0.01, seed=0)
    many = problem.repeated(200)
    draws = many.left_open(torch.full_like(many.norm, 0.2))
    x = problem.first / problem.first.norm()
    wanted = problem.noise**2 * conjugate_gradients(problem.normal, x, torch.full_like(problem.norm, 0.2), 50)
    found = (draws * x).sum((1, 2, 3)).square().mean().item()
    assert found == pytest.approx((x * wanted).sum().item(), rel=0.3)


def test_function_of_a_map():
    eigenvalues = torch.linspace(0.01, 1, 64).view(1, 1, 8, 8).repeat(2, 1, 1, 1)
    v = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = function_of(lambda x: eigenvalues * x, v, torch.sqrt, steps=12)
    assert (found - eigenvalues.sqrt() * v).norm() < 0.02 * v.norm()


def test_gradient_through_the_denoiser_is_deepinvs(multicoil, medical):
    op, y, _ = multicoil
    problem = Problem(op, y, medical, 0.01)
    problem.varying = False  # both take the phase of the first image off
    z = problem.first + 0.1 * problem.white()
    sigma = torch.full_like(problem.norm, 0.1)

    def pull(d):
        return problem.gradient(d) / (2 * problem.data_term(d)).sqrt()

    _, found = through_denoiser(problem, z, sigma, pull)
    fidelity = deepinv.sampling.DPSDataFidelity(denoiser=lambda x, _: problem.denoise(x, sigma), clip=None)
    unit = problem.norm.sqrt().item() * problem.scale.item()
    scaled = deepinv.physics.LinearPhysics(A=lambda x: op.A(x) / problem.norm.sqrt().item())
    wanted = fidelity.grad(z.clone(), y / unit, scaled, 0.1)
    assert (found - wanted).norm() < 1e-2 * wanted.norm()


def test_ddrm_where_the_spectrum_has_other_axes(brain, medical):
    """Blur by FFT: items of a batch with noise of their own are what they are alone."""
    op = deepinv.physics.BlurFFT((1, 96, 80), filter=torch.ones(1, 1, 3, 3) / 9)
    level = torch.tensor([0.01, 0.1]).view(2, 1, 1, 1)
    y = op.A(brain.repeat(2, 1, 1, 1)) + level * torch.randn(2, 1, 96, 80)
    both = pnp.solve(op, y, medical, algorithm="ddrm", noise=level).x
    for k in range(2):
        alone = pnp.solve(op, y[k : k + 1], medical, algorithm="ddrm", noise=level[k].item()).x
        assert abs(quality.psnr(both[k : k + 1], brain) - quality.psnr(alone, brain)) < 0.7
    assert pnp.sample(op, y[:1], medical, n=2, steps=4, algorithm="ddrm").x.shape == (2, 1, 1, 96, 80)
    with pytest.raises(ValueError, match="noise: expected a number or one for each image"):
        pnp.solve(op, y, medical, algorithm="ddrm", noise=torch.full(y.shape, 0.1))


def test_steps_and_seeds_of_samples(multicoil, medical):
    op, y, _ = multicoil
    own = pnp.sample(op, y, medical, n=1, algorithm=pnp.algorithms.DiffPIR(iterations=3))
    assert own.calls["denoiser"] == 3
    first, second = (pnp.sample(op, y, medical, n=1, steps=2).x for _ in range(2))
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="std: expected at least two samples"):
        _ = own.std


def test_samples_in_inference_mode(multicoil, medical):
    op, y, _ = multicoil
    with torch.inference_mode():
        assert pnp.sample(op, y, medical, n=1, steps=2, algorithm="dps").x.isfinite().all()
