"""Parallel-beam CT, view by view against the analytic projections of disks and ellipses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import operators
import pnp
from operators import ct
from pnp import quality

ELLIPSES = {  # (x, y, half axes, turn, value), pixels and radians
    "disk": [(0, 0, 40, 40, 0, 1.0)],
    "off-centre disks": [(30, -25, 30, 30, 0, 1.0), (-40, 12, 18, 18, 0, 0.7), (10, 40, 6, 6, 0, 1.5)],
    "ellipses": [(5, 8, 50, 25, 0.4, 1.0), (-20, -15, 12, 6, 1.2, -0.5)],
    "thin bar": [(10, -5, 45, 4, 0.9, 1.0)],
}


def rasterise(shape, ellipses, finer=8):
    """The ellipses' averages over pixels, (H, W)."""
    y, x = np.mgrid[0 : shape[0] * finer, 0 : shape[1] * finer]
    x, y = (x + 0.5) / finer - shape[1] / 2, shape[0] / 2 - (y + 0.5) / finer
    image = np.zeros(x.shape, np.float32)
    for cx, cy, a, b, turn, value in ellipses:
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        image += value * ((u / a) ** 2 + (v / b) ** 2 <= 1)
    return torch.from_numpy(image.reshape(shape[0], finer, shape[1], finer).mean((1, 3)))


def analytic(ellipses, op):
    """Exact projections, averaged over the detector's bins, (V, D)."""
    edges = (np.arange(op.detectors + 1) - op.detectors / 2) * op.spacing + op.offset
    views = []
    for theta in op.angles.double().tolist():
        integral = 0
        for cx, cy, a, b, turn, value in ellipses:
            half = math.hypot(a * math.cos(theta - turn), b * math.sin(theta - turn))
            t = np.clip((edges - cx * math.cos(theta) - cy * math.sin(theta)) / half, -1, 1)
            integral = integral + value * a * b * (t * np.sqrt(1 - t**2) + np.arcsin(t))
        views.append(np.diff(integral) / op.spacing)
    return torch.from_numpy(np.array(views)).float()


@pytest.mark.parametrize("name", ELLIPSES)
@pytest.mark.parametrize(
    ("shape", "detectors", "spacing", "offset"),
    [
        ((128, 128), None, 1.0, 0.0),
        ((127, 140), 150, 1.0, 3.3),
        ((128, 128), 100, 1.7, 0.0),
        ((128, 128), 90, 0.8, -6.0),
    ],
)
def test_every_view_is_analytic(name, shape, detectors, spacing, offset):
    op = operators.ParallelBeamCT(shape, torch.arange(61) * math.pi / 61 + 0.01, detectors, spacing, offset)
    exact = analytic(ELLIPSES[name], op)
    found = op.A(rasterise(shape, ELLIPSES[name])[None, None])[0, 0]
    errors = (found - exact).norm(dim=1) / exact.norm(dim=1).mean()
    assert errors.mean() < 0.01
    assert errors.max() < (0.08 if name == "thin bar" else 0.015)  # along the bar, its pixels are all that is known


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
    report = operators.check(op, (1, height, width))
    assert report.adjointness < 1e-6
    assert report.passed(1e-4), report


def test_agrees_with_skimage():
    transform = pytest.importorskip("skimage.transform")
    image = rasterise((129, 129), ELLIPSES["off-centre disks"])  # odd: where skimage's centre is the image's, too
    degrees = np.arange(0, 180, 10.0)
    theirs = torch.from_numpy(transform.radon(image.numpy(), degrees, circle=False)).T
    op = operators.ParallelBeamCT((129, 129), torch.from_numpy(np.radians(degrees)), theirs.shape[1])
    ours = op.A(image[None, None])[0, 0]
    assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("filter", ct.FILTERS)
@pytest.mark.parametrize("spacing", [0.8, 1.0])
def test_filtered_back_projection(filter, spacing):
    image = rasterise((96, 100), [(5, -8, 30, 22, 0.3, 1.0), (0, 0, 8, 8, 0, 0.5)])[None, None]
    op = operators.ParallelBeamCT((96, 100), torch.arange(180) * math.pi / 180, spacing=spacing)
    back = op.fbp(op.A(image), filter)
    inside = rasterise((96, 100), [(5, -8, 24, 16, 0.3, 1.0)])[None, None] == 1
    assert back[inside].mean().item() == pytest.approx(image[inside].mean().item(), rel=0.01)
    assert quality.psnr(back, image).item() > 24


def test_views_over_a_full_turn_and_a_wedge_have_the_right_weights():
    assert ct.view_weights(torch.arange(90) * math.pi / 90).sum().item() == pytest.approx(math.pi)
    assert ct.view_weights(torch.arange(90) * 2 * math.pi / 90).sum().item() == pytest.approx(math.pi)
    wedge = ct.view_weights(torch.arange(60) * math.pi / 90)
    assert wedge.sum().item() == pytest.approx(math.pi * 60 / 90, rel=0.02)


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


def test_bad_input():
    with pytest.raises(ValueError, match="angles: expected at least one"):
        operators.ParallelBeamCT((8, 8), [])
    with pytest.raises(ValueError, match="angles: expected finite"):
        operators.ParallelBeamCT((8, 8), [math.nan])
    with pytest.warns(UserWarning, match="are they degrees"):
        operators.ParallelBeamCT((8, 8), torch.arange(180))
    with pytest.raises(ValueError, match="spacing, offset"):
        operators.ParallelBeamCT((8, 8), [0.0], spacing=0)
    with pytest.raises(ValueError, match="detectors: expected at least 1"):
        operators.ParallelBeamCT((8, 8), [0.0], detectors=0)
    op = operators.ParallelBeamCT((8, 8), [0.0])
    with pytest.raises(ValueError, match="x: expected shape"):
        op.A(torch.zeros(1, 1, 8, 9))
    with pytest.raises(ValueError, match="filter: expected one of"):
        op.fbp(op.A(torch.zeros(1, 1, 8, 8)), "none")
