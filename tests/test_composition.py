"""Operators stacked, composed, scaled, copied and cast, by themselves and with deepinv's."""

from __future__ import annotations

import math
import pickle

import deepinv
import pytest
import torch
from conftest import LAST_DIGITS, relative

import operators
from operators import coils, trajectories


@pytest.fixture
def radial():
    return operators.NonCartesianMRI(trajectories.radial(7, 30), (14, 16), coils.birdcage((14, 16), 3))


@pytest.fixture
def cartesian():
    mask = operators.masks.cartesian((14, 16), 2, 4, seed=0)
    return operators.MRI(mask, coils.birdcage((14, 16), 3))


def test_scaled(radial):
    op = 3 * radial
    x = torch.randn(1, 2, 14, 16)
    assert torch.allclose(op.A(x), 3 * radial.A(x))
    assert torch.allclose((radial * 3.0).A_adjoint_A(x), 9 * radial.A_adjoint_A(x), atol=1e-4)
    assert op.measurement_shape == radial.measurement_shape
    assert operators.check(op, (2, 14, 16)).passed(5e-5)


def test_stacked(radial, cartesian):
    x = torch.randn(2, 2, 14, 16)
    for op in (radial.stack(cartesian), operators.stack(radial, cartesian)):
        assert torch.allclose(op.A_adjoint_A(x), radial.A_adjoint_A(x) + cartesian.A_adjoint_A(x), atol=1e-5)
        assert operators.check(op, (2, 14, 16)).passed(5e-5)


def test_composed_with_deepinv(radial):
    blur = deepinv.physics.BlurFFT(
        img_size=(2, 14, 16), filter=deepinv.physics.functional.blur.gaussian_blur(sigma=(1.0, 1.0))
    )
    x = torch.randn(2, 2, 14, 16)
    for op in (radial * blur, operators.compose(blur, radial)):
        assert torch.allclose(op.A(x), radial.A(blur.A(x)), atol=1e-5)
        assert operators.check(op, (2, 14, 16)).passed(5e-5)


def test_the_fast_normal_product_is_used(radial, cartesian, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a non-uniform FFT where a convolution does it")

    op = 2 * radial.stack(cartesian)
    monkeypatch.setattr(type(radial), "A", forbidden)
    op.A_adjoint_A(torch.randn(1, 2, 14, 16))


def test_what_does_not_compose():
    with pytest.raises(ValueError, match="operators: expected at least one"):
        operators.stack()
    with pytest.raises(TypeError, match="operators: expected deepinv LinearPhysics, got int"):
        operators.stack(operators.ParallelBeamCT((8, 8), [0.0, math.pi / 2]), 3)
    with pytest.raises(TypeError):
        operators.ParallelBeamCT((8, 8), [0.0]) * "2"
    with pytest.raises(TypeError, match="op: expected a deepinv LinearPhysics, got str"):
        operators.check("mri", (2, 8, 8))


ELEMENTS = torch.stack([torch.linspace(-2e-3, 2e-3, 7), torch.zeros(7)], -1)
ALL = {
    "cartesian": lambda: operators.MRI(torch.ones(12, 14), coils.birdcage((12, 14), 3)),
    "radial": lambda: operators.NonCartesianMRI(trajectories.radial(4, 12), (12, 14), coils.birdcage((12, 14), 3)),
    "parallel": lambda: operators.ParallelBeamCT((12, 14), [0.0, 1.0]),
    "fan": lambda: operators.FanBeamCT((12, 14), [0.0, 1.0], 50, 20),
    "plane waves": lambda: operators.PlaneWaveUltrasound((12, 14), [0.0, 0.1], ELEMENTS, 60, 20e6),
    "psf": lambda: operators.PSFUltrasound(torch.rand(3, 3, 5), (12, 14)),
}


@pytest.mark.parametrize("name", ALL)
def test_copied_and_cast(name):
    op = ALL[name]()
    x = torch.randn(2, *op.image_shape)
    y = op.A(x)
    assert y.shape[1:] == op.measurement_shape
    assert relative(op.clone().A(x), y) < LAST_DIGITS
    other = ALL[name]()
    other.load_state_dict(op.state_dict())
    assert torch.allclose(other.A(x), y)
    op = op.to(torch.float64)
    found = op.A(x.double())
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), y, atol=1e-4 * y.abs().max().item())


def test_gradients_of_gradients():
    for make in ALL.values():
        op = make()
        x = torch.randn(1, *op.image_shape, requires_grad=True)
        (slope,) = torch.autograd.grad(op.A(x).square().sum() / 2, x, create_graph=True)
        assert torch.allclose(slope, op.A_adjoint_A(x), atol=1e-4 * slope.abs().max().item())
        v = torch.randn_like(x)
        (curvature,) = torch.autograd.grad((slope * v).sum(), x)
        expected = op.A_adjoint_A(v)
        assert torch.allclose(curvature, expected, atol=1e-4 * expected.abs().max().item())


def test_scaled_operators_follow_updates():
    scaled, angles = 2 * operators.ParallelBeamCT((16, 16), [0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0])
    scaled.update(angles=angles)
    x = torch.rand(1, 1, 16, 16)
    assert relative(scaled.A(x), 2 * operators.ParallelBeamCT((16, 16), angles).A(x)) < LAST_DIGITS
    assert scaled.measurement_shape == scaled.A(x).shape[1:]


def make(kind, seed):
    rng = torch.Generator().manual_seed(seed)
    angles = torch.rand(3, generator=rng)
    elements = torch.stack([torch.linspace(-1e-3, 1e-3, 4), torch.zeros(4)], 1)
    return {
        "parallel": lambda: operators.ParallelBeamCT((16, 16), angles),
        "fan": lambda: operators.FanBeamCT((16, 16), angles, 40.0, 20.0),
        "mri": lambda: operators.MRI(torch.rand(16, 16, generator=rng)),
        "radial": lambda: operators.NonCartesianMRI(torch.rand(40, 2, generator=rng), (16, 16)),
        "plane waves": lambda: operators.PlaneWaveUltrasound((16, 16), angles / 5, elements, 80, 20e6, 1540.0),
        "psf": lambda: operators.PSFUltrasound(torch.rand(3, 3, generator=rng), (16, 16)),
    }[kind]()


def assert_the_same(op, other):
    x = torch.rand(1, *other.image_shape)
    y = other.A(x)
    assert relative(op.A(x), y) < LAST_DIGITS
    assert relative(op.A_adjoint(y), other.A_adjoint(y)) < LAST_DIGITS
    assert relative(op.A_adjoint_A(x), other.A_adjoint_A(x)) < LAST_DIGITS


@pytest.mark.parametrize("kind", ["parallel", "fan", "mri", "radial", "psf"])
def test_operators_follow_loaded_parameters(kind):
    op, other = make(kind, 0), make(kind, 1)
    op.A(torch.rand(1, *op.image_shape))
    op.load_state_dict(other.state_dict())
    assert_the_same(op, other)


PARAMETERS = {
    "parallel": "angles", "fan": "angles", "mri": "mask", "radial": "trajectory", "plane waves": "angles", "psf": "psf"
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), PARAMETERS.items())
@pytest.mark.parametrize("in_place", [False, True])
def test_operators_follow_parameters_that_are_set(kind, name, in_place):
    op, other = make(kind, 0), make(kind, 1)
    op.A_adjoint_A(torch.rand(1, *op.image_shape))
    if in_place:
        getattr(op, name).copy_(getattr(other, name))
    else:
        setattr(op, name, getattr(other, name))
    assert_the_same(op, other)


def test_a_mask_that_is_set_is_checked():
    op, mask = make("mri", 0), operators.masks.cartesian((16, 18), 2, 4, seed=0)
    op.mask = mask
    assert_the_same(op, operators.MRI(mask))
    op.mask = math.nan * mask
    with pytest.raises(ValueError, match="mask: expected finite values"):
        op.A(torch.rand(1, 2, 16, 18))


@pytest.mark.parametrize(("kind", "name"), PARAMETERS.items())
def test_parameters_that_are_set_are_checked(kind, name):
    op = make(kind, 0)
    setattr(op, name, math.nan * getattr(op, name))
    with pytest.raises(ValueError, match=f"{name}: expected"):
        op.A(torch.rand(1, *op.image_shape))


@pytest.mark.parametrize("kind", PARAMETERS)
def test_operators_can_be_pickled(kind):
    op = make(kind, 0)
    op.A(torch.rand(1, *op.image_shape))
    assert_the_same(pickle.loads(pickle.dumps(op)), op)
    assert_the_same(pickle.loads(pickle.dumps(2 * op)), 2 * op)


def test_gradients_after_inference_mode():
    for op in (operators.MRI(torch.ones(16, 16)), operators.ParallelBeamCT((16, 16), [0.0, 1.0])):
        x = torch.rand(1, *op.image_shape)
        with torch.inference_mode():
            y = op.A(x)
        op.A(x.requires_grad_()).square().sum().backward()
        assert torch.allclose(x.grad, 2 * op.A_adjoint(y.clone()), atol=1e-5)


def test_functional_derivatives():
    op = operators.ParallelBeamCT((16, 16), [0.0, 1.0])
    y, pull = torch.func.vjp(op.A, torch.rand(1, 1, 16, 16))
    assert torch.allclose(pull(y)[0], op.A_adjoint(y))


def test_check_knows_parameters_for_each_image_and_missing_gradients():
    series = operators.MRI(torch.stack([operators.masks.cartesian((16, 16), 2, 4, seed) for seed in range(3)])[:, None])
    assert operators.check(series, (3, 2, 16, 16)).passed()
    detached = deepinv.physics.LinearPhysics(A=lambda x, **_: x.detach(), A_adjoint=lambda y, **_: y.detach())
    assert operators.check(detached, (1, 8, 8)).gradient == pytest.approx(1)


def test_noise_of_composed_operators_only_where_sampled():
    mask = operators.masks.cartesian((16, 16), 2, 4, seed=0)
    mri = operators.MRI(mask, noise_model=deepinv.physics.GaussianNoise(0.1))
    for op in (2 * mri, operators.compose(deepinv.physics.Denoising(), mri), operators.stack(mri, mri)):
        y = op(torch.zeros(1, 2, 16, 16))
        y = y[0] if isinstance(y, deepinv.utils.TensorList) else y
        assert (y[..., mask == 0] == 0).all()
        assert (y[..., mask == 1] != 0).any()


def test_noise_of_stacked_operators_scaled_and_composed(cartesian):
    """It stays that of the parts."""
    levels = (0.05, 0.1)
    parts = [operators.MRI(cartesian.mask, noise_model=deepinv.physics.GaussianNoise(level)) for level in levels]
    stacked = operators.stack(*parts)
    zero = torch.zeros(8, *cartesian.image_shape)
    for op in (stacked, 2 * stacked, operators.compose(parts[0], stacked)):
        for measured, part, level in zip(op(zero), parts, levels):
            assert measured[:, part.mask[0].expand(measured.shape[1:]) > 0].std().item() == pytest.approx(
                level, rel=0.1
            )
