"""The segmentation networks: published checkpoints, any size of image, the differential equations."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmentation import UKAN, ImplicitUKAN2, TransUNet, UNet
from segmentation.kan import KANLinear, MultKAN, SharedKAN
from segmentation.ode import SecondOrderBlock, _Derivative, integrate

SMALL = {
    "unet": lambda k, c: UNet(k, c, widths=(4, 8, 8)),
    "ukan": lambda k, c: UKAN(k, c, embed_dims=(16, 24, 32)),
    "transunet": lambda k, c: TransUNet(k, c, 32, None, 16, 32, 2, 1, 0.5, (1, 1, 1), (8, 8, 8, 8)),
    "paper": lambda k, c: ImplicitUKAN2(k, c, "paper", widths=(4, 8, 8, 8, 12, 12)),
    "light": lambda k, c: ImplicitUKAN2(k, c, widths=(8, 8, 12, 12, 16)),
}


@pytest.mark.parametrize(("file", "network"), [("ukan_small", UKAN), ("transunet_small", TransUNet)])
def test_published_code(reference, file, network):
    saved = torch.load(reference / "segmentation" / f"{file}.pt", weights_only=False)
    saved["config"].pop("image_size" if network is UKAN else None, None)
    network = network(**saved["config"]).eval()
    network.load_state_dict(saved["state_dict"], strict=True)
    with torch.no_grad():
        assert (network(saved["input"]) - saved["output"]).abs().max() <= 1e-4
        network.to(memory_format=torch.channels_last)
        assert (network(saved["input"]) - saved["output"]).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("file", "network"),
    [("ukan_state_dict", lambda: UKAN(1, 3)), ("transunet_r50_vit_b16_state_dict", lambda: TransUNet(9))],
)
def test_published_sizes(reference, file, network):
    lines = (reference / "segmentation" / f"{file}.txt").read_text().splitlines()
    with torch.device("meta"):
        state = network().state_dict()
    assert dict(line.split() for line in lines) == {
        name: "x".join(map(str, tensor.shape)) or "scalar" for name, tensor in state.items()
    }


@pytest.mark.parametrize("name", SMALL)
@settings(deadline=None, max_examples=6)
@given(st.integers(17, 70), st.integers(17, 70), st.integers(1, 2), st.integers(2, 5), st.sampled_from([1, 3]))
def test_any_size(name, height, width, batch, classes, channels):
    network = SMALL[name](classes, channels).eval()
    with torch.no_grad():
        assert network(torch.randn(batch, channels, height, width)).shape == (batch, classes, height, width)
    with pytest.raises(ValueError, match="x: expected images"):
        network(torch.randn(batch, 2, height, width))


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_learns(name):
    network = SMALL[name](3, 1)
    network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [name for name in idle if not name.endswith("key.bias")]  # softmax does not see a key's bias


def test_without_curves_there_are_none():
    assert not any(isinstance(part, KANLinear) for part in UKAN(2, kan=False).modules())
    plain = ImplicitUKAN2(2, curves=False)
    assert not any(isinstance(part, (KANLinear, SharedKAN, MultKAN)) for part in plain.modules())


def test_light_is_light():
    assert sum(p.numel() for p in ImplicitUKAN2(2, variant="light").parameters()) <= 1.5e6
    with pytest.raises(ValueError, match="variant: expected"):
        ImplicitUKAN2(2, variant="heavy")
    with pytest.raises(TypeError, match="changes: expected any of"):
        ImplicitUKAN2(2, width=(3,))


def oscillator(x, v, t):
    return -4 * x - v + math.sin(3 * float(t))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("verlet", 2), ("rk4", 4)])
def test_order_of_the_solvers(solver, order):
    """On a damped, driven oscillator, which depends on position, velocity and time, against a fine solution."""
    x, v = torch.tensor([1.0], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    exact, _ = integrate(oscillator, x, v, 2000, "rk4")[-1]
    errors = [(integrate(oscillator, x, v, steps, solver)[-1][0] - exact).abs().item() for steps in (10, 20, 40)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.5)


def test_block_converges_to_the_adaptive_solution():
    block, x = SecondOrderBlock(8).double(), torch.randn(2, 8, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        block.outer.weight.mul_(4)
        v = block.velocity(x)
        exact, _ = integrate(block.force, x, v, 1, "dopri5", tolerance=1e-10)[-1]
        for solver, order in (("euler", 1), ("verlet", 2)):
            errors = [(integrate(block.force, x, v, k, solver)[-1][0] - exact).norm().item() for k in (32, 64)]
            assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


def test_position_moves_by_velocity_and_force_by_time():
    block, x = SecondOrderBlock(8), torch.randn(1, 8, 10, 10)
    with torch.no_grad():
        block.gain.add_(0.3 * torch.randn_like(block.gain))
        v = torch.randn_like(x)
        change, acceleration = _Derivative(block.force)(torch.tensor(0.2), (x, v))
        assert torch.equal(change, v)
        assert acceleration.min() < 0 < acceleration.max()
        assert (block.force(x, v, 0.9) - acceleration).norm() > 0.01 * acceleration.norm()
        assert (block.force(x, 2 * v, 0.2) - acceleration).norm() > 0.01 * acceleration.norm()


def test_adjoint_gradients():
    """The adjoint equation's gradients are those of backpropagation through the steps, up to the solver's error."""
    block, x = SecondOrderBlock(4, steps=20, solver="rk4").double(), torch.randn(1, 4, 8, 8, dtype=torch.float64)
    gradients = []
    for adjoint in (False, True):
        block.adjoint = adjoint
        block.zero_grad()
        block(x).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in block.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[0].norm()


def _copy(network):
    again = type(network)(**network.settings).eval()
    again.load_state_dict(network.state_dict())
    return again


def test_trajectory_ends_at_the_answer():
    network, x = SMALL["light"](3, 1).eval(), torch.randn(1, 1, 40, 40)
    with torch.no_grad():
        network.solve_with(steps=3)
        path = network.trajectory(x)
        assert len(path) == 4
        torch.testing.assert_close(path[-1], network(x))
        assert (path[0] - path[-1]).abs().max() > 0
        network.solve_with(solver="dopri5")
        assert torch.isfinite(network(x)).all()
        network.solve_with(4, "rk4")
        torch.testing.assert_close(_copy(network)(x), network(x))  # what is saved
    with pytest.raises(ValueError, match="solver: expected"):
        integrate(oscillator, x, x, 2, "leapfrog")
    with pytest.raises(ValueError, match="steps: expected"):
        integrate(oscillator, x, x, 0)
