"""Convergent priors: value and gradient, equivariance, Lipschitz constants; and their optimiser."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import denoisers
from denoisers.muon import Muon, orthogonal


@pytest.fixture(scope="module")
def potential():
    torch.manual_seed(0)
    network = denoisers.GradientStep((16, 16, 32), 1)
    torch.nn.init.normal_(network.network.tail.weight, std=0.05)  # away from the identity
    return network.requires_grad_(False)


@settings(deadline=None, max_examples=10)
@given(st.integers(5, 30), st.integers(5, 30), st.floats(0.01, 0.5), st.integers(0, 100))
def test_the_step_is_down_the_gradient_of_the_potential(height, width, sigma, seed):
    torch.manual_seed(0)
    network = denoisers.GradientStep((16, 16, 32), 1).requires_grad_(False)
    torch.nn.init.normal_(network.network.tail.weight, std=0.05)
    x, direction = torch.rand(2, 1, 1, height, width, generator=torch.Generator().manual_seed(seed))
    direction /= direction.norm()
    step = 1e-2
    ahead, behind = (network.potential(x + s * step * direction, sigma) for s in (1, -1))
    slope = ((ahead - behind) / (2 * step)).item()
    gradient = x - network(x, sigma)
    assert torch.equal(gradient, x - (x - network.potential_grad(x, sigma)))
    assert slope == pytest.approx((gradient * direction).sum().item(), rel=0.03, abs=0.03 * gradient.norm().item())


def test_gradient_step_leaves_its_input_alone_and_can_be_trained():
    network = denoisers.GradientStep((16, 16, 32), 1)
    x = torch.rand(2, 1, 16, 16)
    loss = (network(x, 0.1) - torch.rand_like(x)).square().mean()
    assert not x.requires_grad
    loss.backward()
    assert network.network.tail.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert not network(x, torch.tensor([0.1, 0.2])).requires_grad
    x.requires_grad_()
    assert torch.autograd.grad(network(x, 0.1).sum(), x)[0].shape == x.shape


@settings(deadline=None, max_examples=10)
@given(st.integers(3, 12), st.integers(3, 12), st.booleans())
def test_equivariant_denoisers_commute_with_turns_and_reflections(height, width, average):
    kernel = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(1))

    def uneven(x, sigma):
        return torch.nn.functional.conv2d(x, kernel, padding=1)

    x = torch.rand(1, 1, height, width)
    assert torch.allclose(denoisers.Equivariant(lambda x, s: x, average=average)(x, 0.1), x)
    if average:
        whole = denoisers.Equivariant(uneven, average=True)
        for turned in (lambda x: x.flip(-1), lambda x: torch.rot90(x, 1, (-2, -1)), lambda x: x.mT):
            assert torch.allclose(whole(turned(x), 0.1), turned(whole(x, 0.1)), atol=1e-5)
    else:
        first, second = (denoisers.Equivariant(uneven, seed=3) for _ in range(2))
        assert all(torch.equal(first(x, 0.1), second(x, 0.1)) for _ in range(3))


def test_stochastic_denoisers_see_fresh_noise():
    seen = []
    denoiser = denoisers.Stochastic(lambda x, sigma: seen.append(x) or x, seed=1)
    x, sigma = torch.rand(2, 1, 64, 64), torch.tensor([0.1, 0.4])
    for _ in range(2):
        denoiser(x, sigma)
    assert [(noisy - x).std((1, 2, 3)).tolist() for noisy in seen] == [pytest.approx([0.1, 0.4], rel=0.05)] * 2
    assert not torch.equal(*seen)
    assert torch.equal(denoisers.Stochastic(lambda x, sigma: x, seed=1)(x, sigma), seen[0])


def test_lipschitz_constant_of_known_maps():
    scale = torch.tensor([0.2, 0.5, 0.9, 0.1]).reshape(1, 1, 2, 2)
    x = torch.rand(3, 1, 2, 2)
    shrink = lambda x, sigma: scale * x  # noqa: E731
    for of, expected in (("denoiser", 0.9), ("residual", 0.9), ("reflection", 0.8)):
        assert denoisers.lipschitz(shrink, x, 0.1, of=of).tolist() == pytest.approx([expected] * 3, rel=1e-2)
    with pytest.raises(ValueError, match="of: expected one of denoiser"):
        denoisers.lipschitz(shrink, x, 0.1, of="identity")


def test_lipschitz_constant_of_a_network_bounds_its_differences(potential):
    x = torch.rand(1, 1, 16, 16)
    bound = denoisers.lipschitz(potential, x, 0.1, of="denoiser", iterations=300).item()
    step = 1e-2 * torch.randn(40, 1, 16, 16)
    ratios = (potential(x + step, 0.1) - potential(x, 0.1)).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert 0 < ratios.max() <= bound * 1.05


def test_orthogonal_factor():
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16), (20, 20)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.max() < 1.25
        assert values.median() > 0.65


def test_muon_forgets_units_that_died_in_full():
    """Decaying on and on, their momentum would become denormal numbers, which slow each step down many times."""
    weight = torch.nn.Parameter(torch.randn(16, 32))
    optimiser = Muon([weight])
    for step in range(2500):
        weight.grad = torch.randn(16, 32) * (1.0 if step == 0 else torch.arange(16)[:, None] < 8)
        optimiser.step()
    mean = optimiser.state[weight]["mean"]
    assert (mean[8:] == 0).all()
    assert (mean[:8] != 0).all()


def test_muon_solves_a_regression_and_resumes():
    def run(steps, interrupted_at=None):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
        x = torch.randn(64, 16)
        target = x.flip(1)
        optimiser = Muon(net.parameters(), lr=1e-2)
        for k in range(steps):
            if k == interrupted_at:
                state, optimiser = optimiser.state_dict(), Muon(net.parameters(), lr=1e-2)
                optimiser.load_state_dict(state)
            optimiser.zero_grad()
            loss = (net(x) - target).square().mean()
            loss.backward()
            optimiser.step()
        return loss.item(), target.square().mean().item()

    loss, start = run(200)
    assert loss < 0.1 * start
    assert run(20, interrupted_at=11) == run(20)


def test_constants_of_what_is_not_finite_are_refused():
    x = torch.rand(1, 1, 16, 16)
    with pytest.raises(ValueError, match="denoiser: expected a finite image"):
        denoisers.lipschitz(lambda x, sigma: x * float("nan"), x, 0.1)
    with pytest.raises(ValueError, match="iterations: expected at least 1"):
        denoisers.lipschitz(lambda x, sigma: 0.5 * x, x, 0.1, iterations=0)
    assert denoisers.lipschitz(lambda x, sigma: x, x, 0.1).item() == 0  # the residual of the identity
