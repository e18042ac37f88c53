"""Gradients through the solver, against finite differences."""

from __future__ import annotations

import pytest
import torch

import operators
import pnp
from operators import masks
from pnp.algorithms import ADMM, HQS, PGD, RED, DouglasRachford
from pnp.implicit import fixed_point

SHAPE = (16, 12)
SCHEDULE = {"sigma": [0.2, 0.1, 0.05], "rho": [0.3, 0.4, 0.5]}


class Convolution(torch.nn.Module):
    """A linear denoiser with a parameter: a convex combination of the image and its local mean."""

    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def forward(self, x, sigma):
        return x + self.share * (torch.nn.functional.avg_pool2d(x, 3, 1, 1) - x)


@pytest.fixture
def case():
    op = operators.MRI(masks.cartesian(SHAPE, 2, 4, seed=0), torch.randn(3, *SHAPE, dtype=torch.complex128))
    x = torch.rand(1, 2, *SHAPE, dtype=torch.float64)
    return op, op.A(x), torch.randn(x.shape, dtype=torch.float64)


def derivative(function, at, direction, step=1e-5):
    return ((function(at + step * direction) - function(at - step * direction)) / (2 * step)).item()


@pytest.mark.parametrize(
    ("gradients", "algorithm"),
    [
        ("unrolled", HQS(**SCHEDULE, cg_iterations=60, cg_tolerance=1e-10)),
        ("unrolled", ADMM(**SCHEDULE, cg_iterations=60, cg_tolerance=1e-10)),
        ("unrolled", DouglasRachford(**SCHEDULE, cg_iterations=60, cg_tolerance=1e-10)),
        ("unrolled", RED(**SCHEDULE, cg_iterations=60, cg_tolerance=1e-10)),
        ("implicit", HQS(sigma=[0.1] * 5, rho=[2.0] * 5, cg_iterations=60, cg_tolerance=1e-10)),
        ("implicit", PGD(sigma=[0.1] * 5, rho=[40.0] * 5)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_gradients_are_those_of_finite_differences(gradients, algorithm, case):
    op, y, probe = case
    denoiser = Convolution()
    start = op.A_adjoint(y)

    def value(y, share=0.4, gradients=gradients):
        with torch.no_grad():
            denoiser.share.fill_(share)
        found = pnp.solve(op, y, denoiser, algorithm=algorithm, start=start, noise=0.1, gradients=gradients)
        return (found.x * probe).sum()

    y = y.clone().requires_grad_()
    by_y, by_share = torch.autograd.grad(value(y), [y, denoiser.share])
    direction = torch.randn_like(y)
    direction *= op.mask[:, :, None]
    tolerance = 1e-5 if gradients == "unrolled" else 2e-3
    assert (by_y * direction).sum().item() == pytest.approx(derivative(value, y.detach(), direction), rel=tolerance)
    numeric = derivative(lambda share: value(y.detach(), share.item()), torch.tensor(0.4).double(), 1.0)
    assert by_share.item() == pytest.approx(numeric, rel=tolerance)


def test_no_gradients_unless_asked_for(case):
    op, y, _ = case
    assert not pnp.solve(op, y.requires_grad_(), Convolution(), iterations=2).x.requires_grad


def test_bad_input(case):
    op, y, _ = case
    with pytest.raises(ValueError, match="gradients: expected None"):
        pnp.solve(op, y, Convolution(), gradients="all")
    with pytest.raises(ValueError, match='gradients: "implicit" expects an algorithm'):
        pnp.solve(op, y, Convolution(), algorithm="admm", iterations=2, gradients="implicit")


def test_a_bundled_network_learns_through_the_solver(multicoil):
    """A few unrolled iterations lower their own error by a step down the gradient."""
    import denoisers

    op, y, truth = multicoil
    network = denoisers.load("medical").requires_grad_()

    def loss():
        return (pnp.solve(op, y, network, iterations=3, gradients="unrolled").x - truth).square().mean()

    before = loss()
    before.backward()
    norm = sum(p.grad.square().sum() for p in network.parameters())
    with torch.no_grad():
        for p in network.parameters():
            p -= 0.02 * before.detach() / norm * p.grad
    assert loss() < before


def test_a_fixed_point_that_is_not_reached_is_told():
    with pytest.raises(pnp.DivergenceError, match="fixed-point"):
        fixed_point(lambda x: 10 * x + 1, torch.ones(3))
    with pytest.warns(UserWarning, match="not reached"):
        fixed_point(lambda x: 0.999 * x + 1, torch.zeros(3), iterations=20)
