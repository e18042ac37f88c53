"""Posterior samples: shapes, seeds, and where they differ."""

from __future__ import annotations

import deepinv
import pytest
import torch
from scipy import stats

import pnp
from pnp import quality


@pytest.mark.parametrize("name", ["diffpir", "dds", None])
def test_samples_differ_where_nothing_was_measured(name, brain, medical):
    mask = (torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    op = deepinv.physics.Inpainting((1, 96, 80), mask=mask)
    y = op.A(brain + 0.02 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0)))
    samples = pnp.sample(op, y, medical, n=6, steps=12, algorithm=name, noise=0.02)
    assert samples.x.shape == (6, 1, 1, 96, 80)
    assert samples.std[0, mask == 0].mean() > 2 * samples.std[0, mask == 1].mean()
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
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
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
    with pytest.raises(ValueError, match="n: expected at least 1, got 0"):
        pnp.sample(op, y, medical, n=0)
    with pytest.raises(ValueError, match="iterations: expected at least 1"):
        pnp.sample(op, y, medical, steps=0)
    with pytest.raises(TypeError, match="denoiser: expected a callable"):
        pnp.sample(op, y, None)
    with pytest.raises(ValueError, match="algorithm: expected a diffusion sampler"):
        pnp.sample(op, y, medical, algorithm="hqs")
    with pytest.raises(ValueError, match="algorithm: expected one of"):
        pnp.sample(op, y, medical, algorithm="magic")
