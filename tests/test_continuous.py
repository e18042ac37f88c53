"""The continuous U-Net: its flow against a closed form, order of the solver, homogeneity, and its weights."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import denoisers
from denoisers.continuous import Oscillator


def linear(frequency: float, damping: float, steps: int) -> Oscillator:
    """A flow with x'' = -frequency^2 x - damping x', on positive features of one channel and their negatives."""
    flow = Oscillator(2, steps).requires_grad_(False)
    for weights in flow.parameters():
        weights.zero_()
    flow.inward.weight[:, 0, 1, 1] = torch.tensor([1.0, -1.0])  # relu(x) and relu(-x)
    flow.outward.weight[0, :, 1, 1] = frequency**2 * torch.tensor([-1.0, 1.0])  # x again
    flow.gain[:, 0] = 1
    flow.damping[:] = damping
    return flow


def test_flow_of_a_damped_oscillator():
    frequency, damping = 2.0, 0.6
    omega = math.sqrt(frequency**2 - damping**2 / 4)
    exact = math.exp(-damping / 2) * (math.cos(omega) + damping / (2 * omega) * math.sin(omega))
    errors = []
    for steps in (20, 40, 80):
        x = torch.zeros(1, 2, 1, 1)
        x[0, 0] = 1
        errors.append(abs(linear(frequency, damping, steps)(x, torch.zeros(1, 1, 1, 1))[0, 0].item() - exact))
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)  # first order
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def network(steps=2):
    torch.manual_seed(0)
    unet = denoisers.ContinuousUNet((16, 16), steps, half=False).requires_grad_(False)
    for weights in unet.parameters():
        weights.add_(0.1 * torch.randn_like(weights))
    return unet


@settings(deadline=None, max_examples=10)
@given(st.integers(3, 20), st.integers(3, 20), st.floats(0.01, 1), st.floats(0.1, 10))
def test_homogeneous_on_any_shape(height, width, sigma, factor):
    x = torch.rand(2, 1, height, width)
    levels = torch.tensor([sigma, sigma / 2])
    out = network()(x, levels)
    assert out.shape == x.shape
    scaled = network()(factor * x, factor * levels)
    assert torch.allclose(scaled, factor * out, rtol=1e-3, atol=1e-3 * factor * out.abs().max().item())
    assert torch.allclose(network()(x[:1], sigma), out[:1], atol=1e-4)


def test_steps_can_be_changed_and_weights_kept(tmp_path):
    unet = network()
    x = torch.rand(1, 1, 16, 16)
    path = denoisers.save(unet, tmp_path / "weights.safetensors")
    loaded = denoisers.load(path)
    loaded.half_trunk = unet.half_trunk = False  # weights are kept in half precision, which bfloat16 would add to
    assert torch.allclose(loaded(x, 0.1), unet(x, 0.1), atol=1e-2)
    parameters = sum(p.numel() for p in unet.parameters())
    assert sum(p.numel() for p in network(5).parameters()) == parameters
    before = unet(x, 0.1)
    for flow in [*unet.down, unet.body, *unet.up]:
        flow.steps = 5
    assert not torch.equal(unet(x, 0.1), before)
    assert torch.equal(unet(x, 0.1), network(5)(x, 0.1))


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="blocks: expected one number or 2"):
        denoisers.ResidualUNet((8, 16), (1, 2, 3))


def test_changed_steps_are_saved(tmp_path):
    network = denoisers.load("continuous")
    for level in (*network.down, network.body, *network.up):
        level.steps = 2
    x = torch.rand(1, 1, 24, 24)
    loaded = denoisers.load(denoisers.save(network, tmp_path / "short.safetensors"))
    torch.testing.assert_close(loaded(x, 0.1), network(x, 0.1))
