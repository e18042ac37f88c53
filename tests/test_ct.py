"""CT, view by view against the analytic projections of disks and ellipses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import LAST_DIGITS, relative
from hypothesis import given, settings
from hypothesis import strategies as st

import operators
import pnp
from operators import ct, fan, fbp, phantoms
from pnp import quality

GEOMETRIES = {
    "parallel": lambda angles: operators.ParallelBeamCT((128, 128), angles),
    "parallel, odd and shifted": lambda angles: operators.ParallelBeamCT((127, 140), angles, 150, 1.0, 3.3),
    "parallel, wide bins": lambda angles: operators.ParallelBeamCT((128, 128), angles, 100, 1.7),
    "parallel, cut off": lambda angles: operators.ParallelBeamCT((128, 128), angles, 90, 0.8, -6.0),
    "fan, flat": lambda angles: operators.FanBeamCT((128, 128), 2 * angles, 256, 256, spacing=2.0),
    "fan, curved": lambda angles: operators.FanBeamCT((127, 140), 2 * angles, 200, 150, spacing=1.5, detector="curved"),
    "fan, close and wide bins": lambda angles: operators.FanBeamCT((128, 120), 2 * angles, 130, 20, spacing=1.9),
    "fan, cut off": lambda angles: operators.FanBeamCT((128, 128), 2 * angles, 300, 0, 90),
}


@pytest.mark.parametrize("name", phantoms.PHANTOMS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_every_view_is_analytic(name, geometry):
    op = GEOMETRIES[geometry](torch.arange(61) * math.pi / 61 + 0.01)
    exact = phantoms.projections(name, op)
    found = op.A(phantoms.image(name, op.image_shape[1:])[None, None])[0, 0]
    errors = (found - exact).norm(dim=1) / exact.norm(dim=1).clamp_min(0.5 * exact.norm(dim=1).mean())
    # small and thin objects: their pixels are all that is known of them
    thin = name in ("thin bar", "crossed bars", "corner disk")
    assert errors.mean() < (0.03 if thin else 0.015)
    assert errors.max() < (0.09 if thin else 0.02)


def test_phantoms_are_consistent():
    """The mass of every view is the image's."""
    op = operators.ParallelBeamCT((90, 100), torch.arange(7) * 0.4)
    for name in phantoms.PHANTOMS:
        mass = phantoms.image(name, (90, 100)).sum()
        assert torch.allclose(phantoms.projections(name, op).sum(1), mass, rtol=2e-3), name


@settings(deadline=None, max_examples=15)
@given(
    st.integers(5, 40),
    st.integers(5, 40),
    st.integers(1, 9),
    st.floats(0.4, 3),
    st.floats(-5, 5),
    st.one_of(st.none(), st.integers(3, 60)),
)
def test_any_geometry_passes_the_check(height, width, views, spacing, offset, detectors):
    op = operators.ParallelBeamCT((height, width), torch.rand(views) * math.pi, detectors, spacing, offset)
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        report = operators.check(op, (1, height, width), dtype=dtype)
        assert report.adjointness < limit
        assert report.passed(1e-4), report


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    st.integers(5, 40),
    st.integers(5, 40),
    st.integers(1, 9),
    st.floats(0.4, 3),
    st.floats(29, 200),
    st.floats(0, 100),
    st.one_of(st.none(), st.integers(3, 40)),
    st.sampled_from(["flat", "curved"]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_fan_passes_the_check(height, width, views, spacing, source, distance, detectors, detector, dtype):
    op = operators.FanBeamCT(
        (height, width), torch.rand(views) * 6, source, distance, detectors, spacing, detector=detector
    )
    report = operators.check(op, (1, height, width), dtype=dtype)
    assert report.adjointness < (1e-6 if dtype == torch.float32 else 1e-12)
    assert report.passed(1e-4), report


def test_agrees_with_skimage():
    transform = pytest.importorskip("skimage.transform")
    image = phantoms.image("off-centre disks", (129, 129))  # odd: where skimage's centre is the image's, too
    degrees = np.arange(0, 180, 10.0)
    theirs = torch.from_numpy(transform.radon(image.numpy(), degrees, circle=False)).T
    op = operators.ParallelBeamCT((129, 129), torch.from_numpy(np.radians(degrees)), theirs.shape[1])
    ours = op.A(image[None, None])[0, 0]
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("filter", fbp.FILTERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda: operators.ParallelBeamCT((96, 100), torch.arange(180) * math.pi / 180),
        lambda: operators.ParallelBeamCT((96, 100), torch.arange(180) * math.pi / 180, spacing=0.8),
        lambda: operators.FanBeamCT((96, 100), torch.arange(240) * math.pi / 120, 200, 100, spacing=1.3),
        lambda: operators.FanBeamCT((96, 100), torch.arange(160) * math.pi / 120 + 1, 200, 100, spacing=1.3),
        lambda: operators.FanBeamCT((96, 100), torch.arange(240) * math.pi / 120, 150, 90, detector="curved"),
        lambda: operators.FanBeamCT(
            (96, 100), torch.arange(190) * math.pi / 120 + 5.9 - 2 * math.pi, 150, 90, detector="curved"
        ),
    ],
    ids=["parallel", "parallel, fine", "fan", "short fan", "curved fan", "longer than short curved fan"],
)
def test_filtered_back_projection(filter, make):
    op = make()
    image = phantoms.image("ellipses", (96, 100))[None, None]
    back = op.fbp(op.A(image), filter)
    for value in (1.0, 0.5):  # the values of the two ellipses, away from their edges
        inside = -torch.nn.functional.max_pool2d((image != value).float(), 7, 1, 3) == 0
        assert back[inside].mean().item() == pytest.approx(value, rel=0.02)
    assert quality.psnr(back, image).item() > 24


def test_rays_that_are_measured_twice_share_their_weight():
    """Of a ray and the one that runs along it the other way, at beta + pi - 2 gamma."""
    angles = torch.arange(900, dtype=torch.float64) * math.radians(0.25)  # 225 degrees
    gamma = torch.linspace(-20, 20, 41, dtype=torch.float64) * math.pi / 180
    weights = fan.parker_weights(angles, gamma)
    opposite = ((angles[:, None] + math.pi - 2 * gamma) / math.radians(0.25)).round().long()
    seen = (opposite >= 0) & (opposite < 900)
    partner = weights.flip(1).gather(0, opposite.clamp(0, 899))
    total = weights + torch.where(seen, partner, 0.0)
    first = ((angles[:, None] - math.pi - 2 * gamma) / math.radians(0.25)).round().long()
    before = (first >= 0) & (first < 900)
    total = total + torch.where(before, weights.flip(1).gather(0, first.clamp(0, 899)), 0.0)
    assert (total - 1).abs().max() < 0.02
    with pytest.warns(UserWarning, match="less than half a turn"):
        fan.parker_weights(angles[:600], gamma)


def test_views_over_a_full_turn_and_a_wedge_have_the_right_weights():
    assert fbp.view_weights(torch.arange(90) * math.pi / 90, math.pi).sum().item() == pytest.approx(math.pi)
    assert fbp.view_weights(torch.arange(90) * 2 * math.pi / 90, math.pi).sum().item() == pytest.approx(math.pi)
    wedge = fbp.view_weights(torch.arange(60) * math.pi / 90, math.pi)
    assert wedge.sum().item() == pytest.approx(math.pi * 60 / 90, rel=0.02)


def test_low_dose_noise_has_the_told_variance():
    noise = operators.LowDose(blank_scan=5000, electronic=8, mu=0.02, rng=torch.Generator().manual_seed(0))
    for p in (0.0, 50.0, 150.0):  # up to 5 % of the photons left
        exact = torch.full((200_000,), p)
        y = noise(exact)
        assert y.mean().item() == pytest.approx(p, abs=0.5)
        assert y.std().item() == pytest.approx(noise.std(exact[:1]).item(), rel=0.03)
        assert noise.weights(exact[:1]).item() == pytest.approx(1 / noise.std(exact[:1]).item() ** 2, rel=1e-5)
    with pytest.warns(UserWarning, match="100% of the bins count less than one of 5000 photons"):
        assert torch.isfinite(noise(torch.full((10,), 1e4))).all()  # no photon arrives
    with pytest.raises(ValueError, match="p: expected finite line integrals, about 0 or more, got -2e"):
        noise(torch.full((10,), -2e4))


def test_low_dose_noise_without_electronics_is_deepinvs():
    import deepinv

    p = torch.linspace(0, 100, 50_000)
    ours = operators.LowDose(1000, mu=0.02, rng=torch.Generator().manual_seed(3))(p)
    theirs = deepinv.physics.LogPoissonNoise(N0=1000.0, mu=0.02, rng=torch.Generator().manual_seed(3))(p)
    assert torch.allclose(ours, theirs, atol=1e-4)
    first, second = (operators.LowDose(1000, 5, mu=0.02)(p, seed=0) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, operators.LowDose(1000, 5, mu=0.02)(p, seed=1))
    later = operators.LowDose(1000, 5, mu=0.02)
    later(p, seed=7)
    assert not torch.equal(later(p), later(p, seed=7))  # a seed is for one call
    assert later.rng is None


def test_solves_with_the_weights_of_low_dose(brain, medical):
    geometry = torch.arange(120) * math.pi / 60, 150, 100
    op = operators.FanBeamCT((96, 80), *geometry, noise_model=operators.LowDose(4000, 5, mu=0.05))
    y = op(brain)
    weighted = pnp.solve(op, y, medical)
    assert torch.allclose(weighted.noise, op.noise_model.std(y))
    assert quality.psnr(weighted.x, brain) > quality.psnr(op.fbp(y, "hann"), brain) + 4


def test_solves_with_few_views(brain, medical):
    op = operators.ParallelBeamCT((96, 80), torch.arange(30) * math.pi / 30)
    y = op.A(brain)
    sigma = 0.005 * y.abs().max().item()
    y = y + sigma * torch.randn_like(y)
    direct, prior = (pnp.solve(op, y, medical, algorithm=name).x for name in ("direct", None))
    assert quality.psnr(prior, brain) > quality.psnr(direct, brain) + 4
    assert pnp.solve(op, y, medical, iterations=2).noise == pytest.approx(sigma, rel=0.3)


def test_hounsfield_units():
    mu = torch.tensor([0.0, 0.2, 0.4])
    assert ct.hounsfield(mu, water=0.2).tolist() == pytest.approx([-1000, 0, 1000])
    assert torch.allclose(ct.attenuation(ct.hounsfield(mu, 0.2), 0.2), mu)


def test_update_takes_effect(brain):
    op = operators.ParallelBeamCT((96, 80), torch.arange(5) * 0.3)
    op.update(angles=torch.arange(7) * 0.2)
    assert torch.allclose(op.A(brain), operators.ParallelBeamCT((96, 80), torch.arange(7) * 0.2).A(brain), atol=1e-4)
    op = operators.FanBeamCT((96, 80), torch.arange(5) * 0.3, 100, 50)
    op.update(angles=torch.arange(7) * 0.2)
    expected = operators.FanBeamCT((96, 80), torch.arange(7) * 0.2, 100, 50).A(brain)
    assert torch.allclose(op.A(brain), expected, atol=1e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="angles: expected at least one"):
        operators.ParallelBeamCT((8, 8), [])
    with pytest.raises(ValueError, match="angles: expected finite"):
        operators.ParallelBeamCT((8, 8), [math.nan])
    with pytest.warns(UserWarning, match="are they degrees"):
        operators.ParallelBeamCT((8, 8), torch.arange(180))
    with pytest.raises(ValueError, match="spacing, offset"):
        operators.ParallelBeamCT((8, 8), [0.0], spacing=0)
    with pytest.raises(ValueError, match="detectors: expected a whole number of at least 1"):
        operators.ParallelBeamCT((8, 8), [0.0], detectors=0)
    with pytest.raises(ValueError, match="source_distance: expected more than half"):
        operators.FanBeamCT((8, 8), [0.0], 5, 5)
    with pytest.raises(ValueError, match="detector_distance"):
        operators.FanBeamCT((8, 8), [0.0], 50, -5)
    with pytest.raises(ValueError, match="detector: expected flat or curved"):
        operators.FanBeamCT((8, 8), [0.0], 50, 5, detector="round")
    with pytest.raises(ValueError, match="blank_scan: expected a positive number"):
        operators.LowDose(0)
    op = operators.ParallelBeamCT((8, 8), [0.0])
    with pytest.raises(ValueError, match="x: expected finite values"):
        op.A(torch.full((1, 1, 8, 8), math.nan))
    with pytest.raises(ValueError, match="x: expected shape"):
        op.A(torch.zeros(1, 1, 8, 9))
    with pytest.raises(ValueError, match="filter: expected one of"):
        op.fbp(op.A(torch.zeros(1, 1, 8, 8)), "none")


@pytest.mark.parametrize("kind", ["two steps", "random", "two wedges"])
def test_fbp_of_irregular_angles_keeps_the_brightness(kind):
    degrees = {
        "two steps": torch.cat([torch.arange(0, 90, 0.5), torch.arange(90, 180, 2.0)]),
        "random": 180 * torch.rand(240, generator=torch.Generator().manual_seed(0)),
        "two wedges": torch.cat([torch.arange(0, 60, 1.0), torch.arange(90, 150, 1.0)]),
    }[kind]
    share = 120 / 180 if kind == "two wedges" else 1
    op = operators.ParallelBeamCT((64, 64), degrees * math.pi / 180)
    disk = phantoms.image("disk", (64, 64))[None, None]
    assert op.fbp(op.A(disk))[..., 28:36, 28:36].mean().item() == pytest.approx(share, abs=0.05)


@pytest.mark.filterwarnings("ignore:angles")
@pytest.mark.parametrize("degrees", [190, 200, 222, 224, 260, 360])
def test_fan_fbp_of_any_turn_keeps_the_brightness(degrees):
    op = operators.FanBeamCT((64, 64), torch.arange(degrees) * math.pi / 180, 120, 60)
    disk = phantoms.image("disk", (64, 64))[None, None]
    assert op.fbp(op.A(disk))[..., 28:36, 28:36].mean().item() == pytest.approx(1, abs=0.03)


def test_what_is_fixed_is_not_replaced():
    op = operators.ParallelBeamCT((8, 8), torch.linspace(0, 3, 5))
    with pytest.raises(ValueError, match="offset: cannot be replaced; make another ParallelBeamCT"):
        op.update(offset=torch.tensor(3.0))
    with pytest.raises(ValueError, match="angles: expected real radians, without gradient"):
        operators.ParallelBeamCT((8, 8), torch.linspace(0, 3, 5).requires_grad_())
    with pytest.raises(ValueError, match=r"shape: H: expected a whole number of at least 1, got 8\.5"):
        operators.ParallelBeamCT((8.5, 8), torch.linspace(0, 3, 5))
    with pytest.raises(ValueError, match="x: expected at least one item, got 0"):
        op.A(torch.zeros(0, 1, 8, 8))
    with pytest.raises(ValueError, match="eps: expected a relative error between 0 and 1, got 0"):
        operators.ParallelBeamCT((8, 8), torch.linspace(0, 3, 5), eps=0)


def test_an_operator_keeps_its_own_angles():
    angles = torch.linspace(0, 3, 5)
    op = operators.ParallelBeamCT((8, 8), angles)
    y = op.A(torch.rand(1, 1, 8, 8))
    before = op.fbp(y)
    angles.zero_()
    assert relative(op.fbp(y), before) < LAST_DIGITS


def test_fans_keep_their_own_angles():
    angles = torch.linspace(0, 2 * math.pi, 61)[:-1]
    op = operators.FanBeamCT((32, 32), angles, 60.0, 40.0)
    y = op.A(torch.rand(1, 1, 32, 32))
    before = op.fbp(y)
    angles += 1
    torch.testing.assert_close(op.fbp(y), before)
