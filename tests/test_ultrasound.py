"""Ultrasound operators, against deepinv's, against convolution written out, and on real echoes."""

from __future__ import annotations

import math

import deepinv
import numpy as np
import pytest
import torch
from conftest import LAST_DIGITS, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, signal

import operators
import pnp
from operators import bmode
from operators.sparse import MirroredMatrix
from pnp import quality

ELEMENTS = torch.stack([torch.linspace(-2e-3, 2e-3, 7), torch.zeros(7)], -1)


def plane_waves(size=(20, 15), angles=(-0.1, 0.0, 0.15), samples=80, **settings):
    return (size, torch.tensor(angles), ELEMENTS, samples, 20e6), {"pixel_size": (6e-5, 3e-4), **settings}


@settings(deadline=None, max_examples=25)
@given(
    st.integers(3, 20),
    st.integers(3, 15),
    st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=3),
    st.integers(10, 80),
    st.floats(-1e-6, 1e-6),
    st.sampled_from([None, 0.8, 2.0]),
    st.sampled_from(["rect", "hann"]),
    st.sampled_from([None, "rect", "hann"]),
    st.sampled_from([0, 1, 4, 7]),
    st.sampled_from([0, 1e9]),
)
def test_plane_waves_agree_with_deepinv(height, width, angles, samples, t0, f_number, receive, transmit, pulse, memory):
    arguments, settings = plane_waves((height, width), angles, samples, t0=t0, f_number=f_number)
    settings |= {"receive_apod_window": receive, "transmit_apod_window": transmit}
    settings["pulse"] = torch.randn(pulse) if pulse else None
    settings["pixel_origin"] = (5e-4, -2e-3)
    op = operators.PlaneWaveUltrasound(*arguments, memory_limit=memory, **settings)
    peer = deepinv.physics.UltrasoundPlaneWave(*arguments, **settings)
    assert op.uses_matrix == (memory > 0 or not op.receive_apodization.any())
    x = torch.randn(2, 1, height, width)
    y = peer.A(x)
    assert op.measurement_shape == y.shape[1:]
    assert (op.A(x) - y).norm() <= 1e-4 * y.norm()
    back = peer.A_adjoint(y)
    assert (op.A_adjoint(y) - back).norm() <= 1e-4 * back.norm()
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        report = operators.check(op, (1, height, width), dtype=dtype)
        assert report.adjointness < limit
        assert report.passed(1e-4), report


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 15),
    st.integers(1, 4),
    st.lists(st.floats(-0.3, 0.3), min_size=1, max_size=2),
    st.booleans(),
    st.sampled_from([None, 0.8, 2.0]),
    st.sampled_from([None, "rect", "hann"]),
    st.sampled_from([0.0, 2e-4]),
)
def test_symmetric_plane_waves_agree_with_deepinv(width, pairs, angles, straight, f_number, transmit, aside):
    """Array, waves and image that are their own mirror images, of which half a matrix does; or not quite."""
    angles = [*angles, *([0.0] if straight else []), *(-a for a in reversed(angles))]
    elements = torch.stack([torch.linspace(-2e-3, 2e-3, 2 * pairs), torch.zeros(2 * pairs)], -1)
    arguments = ((12, width), torch.tensor(angles), elements, 60, 20e6)
    settings = {"pixel_size": (6e-5, 3e-4), "pixel_origin": (5e-4, aside - 1.5e-4 * (width - 1))}
    settings |= {"f_number": f_number, "receive_apod_window": "hann", "transmit_apod_window": transmit}
    op = operators.PlaneWaveUltrasound(*arguments, **settings)
    peer = deepinv.physics.UltrasoundPlaneWave(*arguments, **settings)
    x = torch.randn(2, 1, 12, width)
    y = peer.A(x)
    assert (op.A(x) - y).norm() <= 1e-4 * y.norm()
    back = peer.A_adjoint(y)
    assert (op.A_adjoint(y) - back).norm() <= 1e-4 * back.norm()
    report = operators.check(op, (1, 12, width))
    assert report.adjointness < 1e-5
    assert report.passed(1e-4), report


def test_symmetric_plane_waves_share_half_a_matrix():
    elements = torch.stack([torch.linspace(-2e-3, 2e-3, 8), torch.zeros(8)], -1)
    for angles, mirrored in (([-0.1, 0.0, 0.1], True), ([-0.1, 0.0, 0.2], False)):
        op = operators.PlaneWaveUltrasound((20, 16), angles, elements, 80, 20e6, pixel_size=(6e-5, 3e-4))
        x = torch.randn(1, 1, 20, 16)
        assert isinstance(op._tables(x).matrix, MirroredMatrix) == mirrored


def test_plane_waves_can_be_normalised():
    arguments, settings = plane_waves(pulse=torch.randn(5))
    op = operators.PlaneWaveUltrasound(*arguments, normalize=True, **settings)
    assert operators.check(op, (1, 20, 15)).norm == pytest.approx(1, rel=0.01)


def test_plane_wave_update_takes_effect():
    arguments, settings = plane_waves()
    op = operators.PlaneWaveUltrasound(*arguments, **settings)
    x = torch.randn(1, 1, 20, 15)
    op.A(x)
    op.update(angles=torch.tensor([0.05, 0.2]))
    peer = deepinv.physics.UltrasoundPlaneWave(arguments[0], torch.tensor([0.05, 0.2]), *arguments[2:], **settings)
    assert torch.allclose(op.A(x), peer.A(x), atol=1e-4)


def test_echo_of_a_point_comes_when_it_should():
    """Straight below an element, after twice the depth."""
    op = operators.PlaneWaveUltrasound(
        (1, 1), [0.0], torch.tensor([[0.0, 0.0], [3e-3, 0.0]]), 800, 20e6, 1500.0,
        t0=1e-6, pixel_grid=torch.tensor([[[0.0, 15e-3]]]),
    )  # fmt: skip
    y = op.A(torch.ones(1, 1, 1, 1))[0, 0, 0]
    samples = torch.arange(800.0)
    first, second = ((trace * samples).sum() / trace.sum() for trace in y)
    assert first.item() == pytest.approx((30e-3 / 1500 + 1e-6) * 20e6, abs=1e-2)
    assert second.item() == pytest.approx(((15e-3 + math.hypot(15e-3, 3e-3)) / 1500 + 1e-6) * 20e6, abs=1e-2)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 20), st.integers(3, 20), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3), st.booleans())
def test_psf_is_a_convolution(height, width, half_height, half_width, count, double):
    dtype = torch.float64 if double else torch.float32
    psf = torch.randn(count, 2 * half_height + 1, 2 * half_width + 1)
    op = operators.PSFUltrasound(psf, (height, width))
    x = torch.randn(1, 1, height, width, dtype=dtype)
    depths = np.linspace(0, height - 1, count)
    expected = 0
    for k in range(count):
        share = np.interp(np.arange(height), depths, np.eye(count)[k]) if count > 1 else np.ones(height)
        full = signal.convolve2d(x[0, 0].double().numpy() * share[:, None], psf[k].double().numpy())
        expected = expected + full[half_height : half_height + height, half_width : half_width + width]
    assert np.allclose(op.A(x)[0, 0].numpy(), expected, atol=1e-4 if not double else 1e-5)
    report = operators.check(op, (1, height, width), dtype=dtype)
    assert report.adjointness < (1e-12 if double else 1e-6)
    assert report.passed(1e-5), report


def test_psf_update_takes_effect():
    op = operators.PSFUltrasound(torch.ones(3, 3), (8, 8))
    op.A(torch.ones(1, 1, 8, 8))
    op.update(psf=2 * torch.ones(3, 3))
    assert op.A(torch.ones(1, 1, 8, 8))[0, 0, 4, 4].item() == pytest.approx(18)


def test_solves_a_blurred_image(brain, medical):
    psf = torch.outer(torch.exp(-(torch.arange(-4.0, 5) ** 2) / 4), torch.exp(-(torch.arange(-4.0, 5) ** 2) / 9))
    op = operators.PSFUltrasound(torch.stack([psf, psf**0.7]) / psf.sum(), (96, 80))
    y = op.A(brain)
    y = y + 0.01 * torch.randn_like(y)
    assert quality.psnr(pnp.solve(op, y, medical, noise=0.01).x, brain) > quality.psnr(y, brain) + 2


def test_envelope_and_bmode():
    t = torch.arange(400.0)
    window = torch.exp(-(((t - 200) / 40) ** 2))
    rf = (window * torch.cos(1.3 * t))[None, None, :, None] * torch.tensor([1.0, 0.1])
    found = bmode.envelope(rf)
    assert torch.allclose(found[0, 0, :, 0], window, atol=1e-3)
    assert torch.allclose(
        found[0, 0, :, 0], torch.from_numpy(np.abs(signal.hilbert(rf[0, 0, :, 0]))).float(), atol=1e-5
    )
    picture = bmode.bmode(rf, 40)
    assert picture.max().item() == pytest.approx(1)
    assert picture[0, 0, 200, 1].item() == pytest.approx(0.5, abs=0.01)  # 20 dB of 40 below
    assert picture.min() == 0
    with pytest.raises(ValueError, match="envelope: expected finite values of at least 0"):
        bmode.log_compress(rf)


@pytest.mark.parametrize("density", [None, 20])
def test_speckle_has_the_statistics_of_rayleigh(density):
    """Mean over standard deviation of a Rayleigh-distributed envelope is 1.91."""
    power = torch.ones(1, 1, 400, 300)
    power[..., 150:] = 4
    x = bmode.speckle(power, density, seed=0)
    assert (x[..., 150:].var() / x[..., :150].var()).item() == pytest.approx(4, rel=0.05)
    v, u = torch.arange(-8.0, 9), torch.arange(-6.0, 7)
    psf = torch.outer(torch.exp(-((v / 4) ** 2)) * torch.cos(1.5 * v), torch.exp(-((u / 3) ** 2)))
    found = bmode.envelope(operators.PSFUltrasound(psf, (400, 300)).A(x))[..., 20:-20, 20:130]
    assert (found.mean() / found.std()).item() == pytest.approx(1.91, rel=0.06)
    assert torch.equal(x, bmode.speckle(power, density, seed=0))


def test_contrast_metrics():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 200, 200, generator=rng)
    inside, outside = torch.zeros(200, 200), torch.zeros(200, 200)
    inside[:, :100], outside[:, 100:] = 1, 1
    x[..., :100] += 2
    assert quality.cnr(x, inside, outside).item() == pytest.approx(2 / math.sqrt(2), rel=0.03)
    exact = math.erf(1 / math.sqrt(2))  # 1 - overlap of two normal distributions two standard deviations apart
    assert quality.gcnr(x, inside, outside).item() == pytest.approx(exact, abs=0.02)
    assert quality.gcnr(x, inside, outside) == quality.gcnr(x.exp(), inside, outside)
    with pytest.raises(ValueError, match="outside: expected a region"):
        quality.cnr(x, inside, torch.zeros(200, 200))


def test_full_width_at_half_maximum():
    t = torch.arange(-50.0, 50) + 0.3
    assert quality.fwhm(torch.exp(-(t**2) / (2 * 8**2)), 0.5) == pytest.approx(8 * 2.3548 * 0.5, rel=1e-3)
    assert math.isnan(quality.fwhm(torch.ones(9)))
    with pytest.raises(ValueError, match="profile: expected finite values"):
        quality.fwhm(torch.zeros(9))


def test_bad_input():
    arguments, settings = plane_waves()
    make = operators.PlaneWaveUltrasound
    with pytest.warns(UserWarning, match="are they degrees"):
        make(arguments[0], torch.tensor([-10.0, 10.0]), *arguments[2:], **settings)
    for name, wrong in (("angles", torch.tensor([])), ("element_positions", torch.zeros(5)), ("n_samples", 0)):
        position = ("img_size", "angles", "element_positions", "n_samples").index(name)
        with pytest.raises(ValueError, match=f"{name}: expected"):
            make(*arguments[:position], wrong, *arguments[position + 1 :], **settings)
    for name, wrong in (
        ("sound_speed", 0.0), ("t0", torch.zeros(2)), ("f_number", -1), ("receive_apod_window", "round"),
        ("pulse", torch.tensor([math.nan])), ("pixel_grid", torch.zeros(3, 3, 2)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}.*: expected"):
            make(*arguments, **(settings | {name: wrong}))
    op = make(*arguments, **settings)
    with pytest.raises(ValueError, match="x: expected finite values"):
        op.A(torch.full((1, 1, 20, 15), math.nan))
    with pytest.raises(ValueError, match="y: expected shape"):
        op.A_adjoint(torch.zeros(1, 1, 3, 7, 81))
    with pytest.raises(ValueError, match="psf: expected"):
        operators.PSFUltrasound(torch.ones(4, 3), (8, 8))
    with pytest.raises(ValueError, match="depths: expected increasing"):
        operators.PSFUltrasound(torch.ones(2, 3, 3), (8, 8), depths=[5.0, 5.0])


def test_wires_are_sharp(data):
    """Real echoes, with the start of recording that the example finds: fibres at equal distances, half a mm wide."""
    import scipy.io

    file = scipy.io.loadmat(data / "us_rf" / "fibres_L7-4.mat")
    rf = torch.from_numpy(file["RF1"][..., 3].astype(np.float32).T) - 128
    rf = (rf - rf.mean(-1, keepdim=True))[None, None, None]
    pitch, depth = 0.298e-3, 1540 / 20e6 / 2
    elements = torch.stack([(torch.arange(128) - 63.5) * pitch, torch.zeros(128)], -1)
    op = operators.PlaneWaveUltrasound(
        (1700, 9), [0.0], elements, 2688, 20e6, t0=1.375e-6, pixel_size=(depth, pitch),
        pixel_origin=(0.015, -1e-3 / 2), f_number=1.5,
    )  # fmt: skip
    profile = bmode.envelope(op.A_adjoint(rf))[0, 0].amax(1)
    peaks, _ = signal.find_peaks(
        ndimage.gaussian_filter1d(profile, 5), height=0.35 * profile.max().item(), distance=200
    )
    assert np.allclose(np.diff(peaks) * depth, 0.0196, atol=5e-4)
    assert all(quality.fwhm(profile[p - 40 : p + 40], 1e3 * depth) < 0.5 for p in peaks[:3])


def test_depths_are_replaced():
    psf = torch.rand(3, 3, 3)
    op = operators.PSFUltrasound(psf, (12, 6))
    op.update(depths=[0.0, 2.0, 4.0])
    x = torch.rand(1, 1, 12, 6)
    assert relative(op.A(x), operators.PSFUltrasound(psf, (12, 6), [0.0, 2.0, 4.0]).A(x)) < LAST_DIGITS


def test_state_of_another_array():
    def array(width):
        elements = torch.stack([width * torch.linspace(-5e-3, 5e-3, 8), torch.zeros(8)], 1)
        return operators.PlaneWaveUltrasound((10, 8), [0.0, 0.1], elements, 300, 20e6, pixel_origin=(5e-3, -4e-3))

    one, other = array(1.0), array(1.3)
    x = torch.rand(1, 1, 10, 8)
    one.A(x)
    one.load_state_dict(other.state_dict())
    assert relative(one.A(x), other.A(x)) < LAST_DIGITS


def test_gcnr_of_the_same_tissue_is_low():
    x = torch.randn(1, 1, 20, 20)
    inside = torch.zeros(20, 20)
    inside[:10] = 1
    assert quality.gcnr(x, inside, 1 - inside).item() < 0.25
    with pytest.raises(ValueError, match=r"inside: expected a region of size .20, 20. with at least two pixels"):
        quality.cnr(x, torch.zeros(20, 20), inside)
    assert quality.cnr(x.expand(2, -1, -1, -1), inside[None], 1 - inside).shape == (2,)
