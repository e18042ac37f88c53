"""The Kolmogorov-Arnold layers against scipy's splines and the published layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline
from torch.nn.functional import silu

from segmentation.kan import KANLinear, MultKAN, SharedKAN, bases


def spline(coefficients, points, low, high, cells):
    """Sum of scipy's cubic B-splines; the knots go on to both sides, so that all values count."""
    knots = low + np.arange(-3, cells + 4) * (high - low) / cells
    values = BSpline(knots, np.asarray(coefficients, float), 3, extrapolate=False)(points)
    inside = (points >= knots[3]) & (points < knots[cells + 3])  # rounding may move the last one
    return values, inside


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.floats(-5, 0), st.floats(0.5, 6))
def test_basis_is_the_b_spline(cells, low, width):
    high = low + width
    points = torch.linspace(low - width, high + width, 301, dtype=torch.float64)
    found = bases(points, low, high, cells)
    assert found.shape == (cells + 3, 301)
    for k in range(cells + 3):
        wanted, inside = spline(np.eye(cells + 3)[k], points.numpy(), low, high, cells)
        np.testing.assert_allclose(found[k].numpy()[inside], wanted[inside], atol=1e-12)
    inside = (points >= low) & (points <= high)
    torch.testing.assert_close(found.sum(0)[inside], torch.ones(int(inside.sum()), dtype=torch.float64))
    beyond = points > high + 3 * width / cells + 1e-9  # rounding may leave the last knot inside
    assert (found[:, beyond] == 0).all()


def test_published_layer(reference):
    saved = torch.load(reference / "segmentation" / "kan_linear.pt", weights_only=False)
    layer = KANLinear(saved["config"]["in_features"], saved["config"]["out_features"])
    layer.load_state_dict(saved["state_dict"])
    x = saved["input"].clone().requires_grad_()
    y = layer(x)
    y.backward(saved["grad_output"])
    pairs = [(y, saved["output"]), (x.grad, saved["grad_input"])]
    pairs += [(getattr(layer, name).grad, wanted) for name, wanted in saved["grad_params"].items()]
    for found, wanted in pairs:
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("kind", [KANLinear, SharedKAN])
def test_gradients_by_finite_differences(kind):
    layer = kind(5, 4, grid_size=4).double()
    x = (1.5 * torch.randn(7, 5, dtype=torch.float64)).requires_grad_()
    names, values = zip(*layer.named_parameters())

    def function(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values), atol=1e-6)


def test_layer_is_the_sum_of_its_curves():
    layer, x = KANLinear(3, 2), torch.linspace(-2, 2, 41)
    curves = layer.curves(x)
    assert curves.shape == (2, 3, 41)
    inputs = torch.stack([x, x.flip(0), 0.5 * x], 1)
    wanted = curves[:, 0] + curves[:, 1].flip(-1) + layer.curves(0.5 * x)[:, 2]
    torch.testing.assert_close(layer(inputs).T, wanted, atol=1e-6, rtol=1e-5)
    weights = (layer.spline_weight * layer.spline_scaler[..., None])[1, 2].detach()
    values, inside = spline(weights, x.numpy(), -1, 1, 5)
    alone = values + (layer.base_weight[1, 2] * silu(x)).detach().numpy()
    np.testing.assert_allclose(curves[1, 2].numpy()[inside], alone[inside], atol=1e-6)


def test_shared_layer_is_linear_in_its_curves():
    layer, x = SharedKAN(4, 3), torch.linspace(-4, 4, 50)
    inputs = x[:, None].expand(-1, 4)
    torch.testing.assert_close(layer.activation(inputs).T, layer.curves(x), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(layer(inputs), layer.linear(layer.curves(x).T), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [KANLinear, SharedKAN])
def test_products_are_products_and_all_live(kind):
    layer = MultKAN(6, 10, 4, kind)
    x = torch.randn(2, 50, 6, requires_grad=True)
    y = layer(x)
    inner = layer.layer(x)
    torch.testing.assert_close(y[..., :6], inner[..., :6])
    torch.testing.assert_close(y[..., 6:], inner[..., 6:10] * inner[..., 10:])
    assert y.shape == (2, 50, 10)
    assert (y.std((0, 1)) > 1e-6).all()  # no output is constant
    for channel in range(10):
        (gradient,) = torch.autograd.grad(y[..., channel].square().sum(), x, retain_graph=True)
        assert gradient.abs().sum() > 0
    with pytest.raises(ValueError, match="products: expected 0 to 10"):
        MultKAN(6, 10, 11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [KANLinear, SharedKAN])
def test_half_precision(kind, dtype):
    layer = kind(16, 8)
    x = torch.randn(600, 16)
    x[0] = 2e4
    full = layer(x)
    with torch.autocast("cpu", dtype):
        half = layer(x)
        half.float().mean().backward()
    assert half.dtype == dtype
    assert (half.float() - full).norm() <= 0.02 * full.norm()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_memory_holds_the_input_only():
    """What autograd keeps for the layer, in elements: less than one basis function more than the input."""
    layer, x = KANLinear(32, 8), torch.randn(500, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in kept}
    parameters = sum(p.numel() for p in layer.parameters())
    assert sum(sizes.values()) <= x.numel() + 3 * parameters


def test_bad_input():
    with pytest.raises(ValueError, match="x: expected 4 features"):
        KANLinear(4, 2)(torch.zeros(3, 5))
    assert KANLinear(4, 2)(torch.zeros(0, 4)).shape == (0, 2)
    assert KANLinear(4, 2)(torch.zeros(2, 3, 5, 4)).shape == (2, 3, 5, 2)
