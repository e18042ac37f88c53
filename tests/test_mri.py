"""The Cartesian MRI operator, its masks and coil sensitivities, against deepinv, SigPy and closed forms."""

from __future__ import annotations

import deepinv
import numpy as np
import pytest
import torch
from conftest import LAST_DIGITS, relative
from hypothesis import given, settings
from hypothesis import strategies as st

import operators
from operators import coils, masks
from operators.mri import from_complex, to_complex


@settings(deadline=None, max_examples=30)
@given(
    height=st.integers(4, 37),
    width=st.integers(4, 37),
    coil_count=st.integers(0, 4),
    batch=st.integers(1, 3),
    lines=st.sampled_from(["rows", "columns", "points", "full"]),
    seed=st.integers(0, 10_000),
)
def test_agrees_with_deepinv(height, width, coil_count, batch, lines, seed):
    rng = torch.Generator().manual_seed(seed)
    points = (torch.rand(height, width, generator=rng) < 0.5).float()
    points[height // 2, width // 2] = 1
    mask = {
        "rows": points[:, width // 2 : width // 2 + 1].expand(height, width),
        "columns": points[height // 2 : height // 2 + 1].expand(height, width),
        "points": points,
        "full": torch.ones(height, width),
    }[lines]
    x = torch.randn(batch, 2, height, width, generator=rng)
    if coil_count:
        maps = torch.randn(coil_count, height, width, dtype=torch.complex64, generator=rng)
        op = operators.MRI(mask, maps)
        peer = deepinv.physics.MultiCoilMRI(mask=mask, coil_maps=maps[None], img_size=(height, width))
    else:
        op, peer = operators.MRI(mask), deepinv.physics.MRI(mask=mask, img_size=(height, width))
    y = op(x)
    assert y.shape == (batch, *op.measurement_shape)
    assert relative(y, peer.A(x)) < 1e-5
    assert relative(op.A_adjoint(y), peer.A_adjoint(y)) < 1e-5
    assert relative(op.A_adjoint_A(x), peer.A_adjoint_A(x)) < 1e-5
    report = operators.check(op, (2, height, width))
    assert report.passed(1e-5), report


def test_check_finds_what_is_wrong():
    class Broken(operators.MRI):
        def A_adjoint(self, y, **kwargs):
            return super().A_adjoint(y, **kwargs).roll(1, -1)

    good, broken = (kind(masks.cartesian((16, 20), 2, 4, seed=0)) for kind in (operators.MRI, Broken))
    assert operators.check(good, (2, 16, 20)).passed()
    report = operators.check(broken, (2, 16, 20))
    assert report.adjointness > 1e-3
    assert not report.passed()
    affine = deepinv.physics.LinearPhysics(A=lambda x, **kwargs: x + 1, A_adjoint=lambda y, **kwargs: y)
    assert operators.check(affine, (1, 8, 8)).linearity > 0.1


def test_norm_is_deepinvs():
    mask, maps = masks.cartesian((32, 40), 3, 8, seed=0), coils.birdcage((32, 40), 4)
    x = torch.randn(1, 2, 32, 40)
    peer = deepinv.physics.MultiCoilMRI(mask=mask, coil_maps=maps[None], img_size=(32, 40))
    norms = [
        op.compute_sqnorm(x, max_iter=2000, tol=1e-8, verbose=False).item() for op in (operators.MRI(mask, maps), peer)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] <= 1 + 1e-5  # maps of unit norm, unitary transform


def test_each_image_of_a_batch_has_its_own_mask_and_maps():
    mask = torch.stack([masks.cartesian((24, 20), 2, 4, seed=s) for s in range(3)])[:, None]
    maps = torch.randn(3, 2, 24, 20, dtype=torch.complex64)
    x = torch.randn(3, 2, 24, 20)
    together = operators.MRI(mask, maps)
    for i in range(3):
        alone = operators.MRI(mask[i, 0], maps[i])
        assert relative(together.A(x)[i : i + 1], alone.A(x[i : i + 1])) < 1e-6
        assert relative(together.A_adjoint_A(x)[i : i + 1], alone.A_adjoint_A(x[i : i + 1])) < 1e-6


def test_closed_form_inverse():
    op = operators.MRI(masks.poisson((33, 30), 2, 8, seed=0))
    b = torch.randn(2, 2, 33, 30)
    rho = torch.tensor([0.1, 2.0]).view(2, 1, 1, 1)
    x = op.normal_inverse()(b, rho)
    assert relative(op.A_adjoint_A(x) + rho * x, b) < 1e-5
    assert operators.MRI(torch.ones(8, 8), coils.birdcage((8, 8), 2)).normal_inverse() is None


@settings(deadline=None, max_examples=10)
@given(st.integers(3, 8), st.integers(4, 12), st.integers(4, 12), st.integers(0, 3), st.booleans(), st.integers(0, 999))
def test_volumes_agree_with_deepinv(depth, height, width, coil_count, double, seed):
    rng = torch.Generator().manual_seed(seed)
    mask = (torch.rand(1, height, width, generator=rng) > 0.4).float().expand(depth, -1, -1).contiguous()
    mask[:, 0, 0] = 1
    shape = (depth, height, width)
    x = torch.randn(2, 2, *shape, generator=rng)
    if coil_count:
        maps = torch.randn(coil_count, *shape, dtype=torch.complex64, generator=rng)
        op = operators.MRI(mask, maps)
        peer = deepinv.physics.MultiCoilMRI(mask=mask[None, None], coil_maps=maps[None], img_size=shape, three_d=True)
    else:
        op = operators.MRI(mask)
        peer = deepinv.physics.MRI(mask=mask[None, None], img_size=(2, *shape), three_d=True)
    assert torch.allclose(op.A(x), peer.A(x), atol=1e-4)
    report = operators.check(op, (2, *shape), dtype=torch.float64 if double else torch.float32)
    assert report.adjointness < (1e-14 if double else 1e-6)
    assert report.passed(1e-12 if double else 1e-5), report


def test_frames_of_a_series_are_a_batch():
    rng = torch.Generator().manual_seed(0)
    frames = (torch.rand(5, 1, 1, 12, generator=rng) > 0.5).float().expand(-1, -1, 10, -1)
    maps = torch.randn(3, 10, 12, dtype=torch.complex64, generator=rng)
    series = torch.randn(5, 2, 10, 12, generator=rng)
    y = operators.MRI(frames, maps).A(series)
    for t in range(5):
        assert torch.allclose(y[t], operators.MRI(frames[t, 0], maps).A(series[t : t + 1])[0], atol=1e-6)


def test_any_precision_stays_complex():
    maps = torch.randn(3, 10, 12, dtype=torch.complex64)
    op = operators.MRI(torch.ones(10, 12), maps).to(torch.float64)
    assert torch.equal(op.maps, maps[None].to(torch.complex128))


def test_update_takes_effect():
    first, second = (masks.cartesian((16, 16), 2, 4, seed=s) for s in (0, 1))
    op, x = operators.MRI(first), torch.randn(1, 2, 16, 16)
    op.update(mask=second)
    assert relative(op.A(x), operators.MRI(second).A(x)) < LAST_DIGITS
    assert relative(op.A_adjoint_A(x), operators.MRI(second).A_adjoint_A(x)) < LAST_DIGITS


def test_gradients_flow_both_ways():
    op = operators.MRI(masks.cartesian((12, 14), 2, 4, seed=0), coils.birdcage((12, 14), 2))
    x = torch.randn(1, 2, 12, 14, requires_grad=True)
    (op.A(x) ** 2).sum().backward()
    assert relative(x.grad, 2 * op.A_adjoint_A(x.detach())) < 1e-5
    x.grad = None
    (x * op.A_adjoint_A(x)).sum().backward()
    assert relative(x.grad, 2 * op.A_adjoint_A(x.detach())) < 1e-5


def test_noise_only_where_sampled():
    mask = masks.cartesian((32, 32), 2, 8, seed=0)
    op = operators.MRI(mask, coils.birdcage((32, 32), 3), noise_model=deepinv.physics.GaussianNoise(0.1))
    y = op(torch.zeros(1, 2, 32, 32))
    assert (y[..., mask == 0] == 0).all()
    assert y[..., mask == 1].std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize(
    ("mask", "maps", "message"),
    [
        (torch.zeros(8, 8), None, "mask: expected at least one sample"),
        (torch.ones(8), None, r"mask: expected shape \(H, W\)"),
        (torch.ones(8, 8, dtype=torch.complex64), None, "mask: expected real"),
        (torch.full((8, 8), torch.nan), None, "mask: expected finite"),
        (torch.ones(8, 8), torch.ones(2, 8, 8), "maps: expected complex"),
        (torch.ones(8, 8), torch.ones(2, 8, 9, dtype=torch.complex64), "maps: expected .* 8 x 8"),
    ],
)
def test_bad_operators(mask, maps, message):
    with pytest.raises(ValueError, match=message):
        operators.MRI(mask, maps)


@pytest.mark.parametrize("x", [torch.zeros(1, 1, 8, 8), torch.zeros(1, 2, 8, 9), torch.zeros(2, 8, 8)])
def test_bad_images(x):
    with pytest.raises(ValueError, match=r"x: expected shape \(B, 2, 8, 8\)"):
        operators.MRI(torch.ones(8, 8)).A(x)
    with pytest.raises(ValueError, match="x: expected a real tensor"):
        operators.MRI(torch.ones(8, 8)).A(torch.zeros(1, 2, 8, 8, dtype=torch.complex64))


@settings(deadline=None, max_examples=20)
@given(st.integers(40, 90), st.integers(40, 90), st.floats(1.5, 3.5), st.integers(0, 99))
def test_cartesian_masks(height, width, acceleration, seed):
    mask = masks.cartesian((height, width), acceleration, calibration=8, seed=seed)
    assert mask.shape == (height, width)
    assert mask[0].sum().item() == round(width / acceleration)
    assert (mask == mask[:1]).all()
    assert mask[0, width // 2 - 4 : width // 2 + 4].all()
    assert torch.equal(mask, masks.cartesian((height, width), acceleration, calibration=8, seed=seed))


@pytest.mark.parametrize("acceleration", [4, 8])
def test_poisson_masks(acceleration):
    mask = masks.poisson((96, 80), acceleration, calibration=12, seed=3)
    assert mask.numel() / mask.sum().item() == pytest.approx(acceleration, rel=0.02)
    assert mask[42:54, 34:46].all()
    outside = mask.clone()
    outside[40:56, 32:48] = 0
    rows, columns = np.nonzero(outside.numpy())
    distances = np.hypot(rows[:, None] - rows, columns[:, None] - columns) + 1e9 * np.eye(len(rows))
    grid = np.random.default_rng(0).random(mask.shape) < outside.mean().item()
    r, c = np.nonzero(grid)
    random_distances = np.hypot(r[:, None] - r, c[:, None] - c) + 1e9 * np.eye(len(r))
    assert np.median(distances.min(1)) > np.median(random_distances.min(1))  # farther apart than by chance


def test_radial_masks():
    mask = masks.radial((64, 64), 2)
    assert mask[32].all()
    assert mask[:, 32].all()
    assert mask.sum() == 127
    many = masks.radial((65, 48), 20)
    assert many[32, 24] == 1
    assert 20 * 24 < many.sum() < 20 * 65
    assert many[28:37, 20:29].mean() > 2 * many.mean()  # denser in the middle
    with pytest.raises(ValueError, match="spokes: expected a whole number of at least 1"):
        masks.radial((8, 8), 0)


@pytest.mark.parametrize("pattern", ["variable", "random", "equispaced"])
def test_patterns_of_lines(pattern):
    mask = masks.cartesian((6, 200), 4, 20, 0, pattern)
    lines = mask[0].nonzero()[:, 0]
    assert len(lines) == 50
    assert mask[:, 90:110].all()
    gaps = torch.cat([lines[lines < 90].diff(), lines[lines >= 110].diff()])
    if pattern == "equispaced":
        assert set(gaps.tolist()) <= {5, 6, 7}
    else:
        assert gaps.max() > 8
    centre = ((lines > 50) & (lines < 150)).sum().item() - 20
    assert centre > 15 if pattern == "variable" else 6 < centre < 24


@pytest.mark.parametrize("make", [masks.cartesian, masks.poisson])
def test_bad_masks(make):
    with pytest.raises(ValueError, match="calibration: "):
        make((32, 32), 8, calibration=30)
    with pytest.raises(ValueError, match="acceleration: expected at least 1"):
        make((32, 32), 0.5)
    with pytest.raises(ValueError, match="shape: "):
        make((32,), 2)


def test_espirit_agrees_with_sigpy(kspace):
    sigpy_mri = pytest.importorskip("sigpy.mri")
    ours = coils.espirit(torch.from_numpy(kspace), 24)
    theirs = sigpy_mri.app.EspiritCalib(
        kspace, calib_width=24, thresh=0.02, kernel_width=6, crop=0.95, max_iter=100, show_pbar=False
    ).run()
    _compare_maps(ours, torch.from_numpy(np.asarray(theirs)), kspace)


def test_espirit_agrees_with_sigpy_on_a_scan(data):
    sigpy_mri = pytest.importorskip("sigpy.mri")
    kspace = np.load(data / "kspace8ch" / "full.npy")
    ours = coils.espirit(torch.from_numpy(kspace), 24)
    theirs = sigpy_mri.app.EspiritCalib(kspace, calib_width=24, crop=0.95, show_pbar=False).run()
    _compare_maps(ours, torch.from_numpy(np.asarray(theirs)), kspace)


def _compare_maps(ours, theirs, kspace):
    """Where there is signal; elsewhere the leading eigenvector is not determined."""
    images = np.fft.fftshift(np.fft.ifft2(kspace), axes=(-2, -1))
    energy = np.sqrt((np.abs(images) ** 2).sum(0))
    signal = torch.from_numpy(energy > 0.1 * energy.max())
    ours, theirs = (m[:, signal] * torch.exp(-1j * m[0, signal].angle()) for m in (ours, theirs))  # one reference
    supported = (ours.abs().sum(0) > 0), (theirs.abs().sum(0) > 0)
    assert (supported[0] == supported[1]).float().mean() > 0.99
    assert (ours - theirs)[:, supported[0] & supported[1]].abs().max() < 5e-3


def test_birdcage_agrees_with_sigpy():
    sigpy_mri = pytest.importorskip("sigpy.mri")
    maps = coils.birdcage((40, 30), 6)
    assert np.abs(maps.numpy() - sigpy_mri.birdcage_maps((6, 40, 30))).max() < 1e-4
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(40, 30), atol=1e-5)


def test_whitening_and_compression():
    factor = torch.randn(4, 4, dtype=torch.complex64) + 2 * torch.eye(4)
    noise = factor @ torch.randn(4, 20_000, dtype=torch.complex64)
    white = coils.whiten(noise.reshape(4, 100, 200), coils.noise_covariance(noise))
    assert (coils.noise_covariance(white) - torch.eye(4)).abs().max() < 1e-3
    signal = 20 * torch.randn(4, 1, dtype=torch.complex64) * torch.randn(1, 2000)
    spoiled = torch.cat([noise[:, 2000:], noise[:, :2000] + signal], 1)
    found, truth = coils.noise_covariance(spoiled, contaminated=True), coils.noise_covariance(noise)
    assert (found - truth).norm() < 0.2 * truth.norm() < 0.1 * (coils.noise_covariance(spoiled) - truth).norm()
    basis = torch.randn(6, 2, dtype=torch.complex64)
    low_rank = (basis @ torch.randn(2, 100, dtype=torch.complex64)).reshape(6, 10, 10)
    assert coils.compress(low_rank, 2).norm().item() == pytest.approx(low_rank.norm().item(), rel=1e-4)
    with pytest.raises(ValueError, match="covariance: expected a positive definite"):
        coils.whiten(noise, torch.zeros(4, 4))
    with pytest.raises(ValueError, match="coils: expected 1 to 6"):
        coils.compress(low_rank, 7)


def test_espirit_wants_a_calibration_region(kspace):
    holes = torch.from_numpy(kspace).clone()
    holes[:, :, ::2] = 0
    with pytest.raises(ValueError, match="not fully sampled"):
        coils.espirit(holes)
    with pytest.raises(ValueError, match="kspace: expected complex"):
        coils.espirit(torch.zeros(4, 32, 32))


def test_complex_and_real_layouts_are_inverse():
    x = torch.randn(2, 2, 5, 7)
    assert torch.equal(from_complex(to_complex(x)), x)


def test_one_image_seen_with_several_masks():
    several = torch.stack([masks.cartesian((12, 16), 2, 4, seed)[None] for seed in range(3)])
    op = operators.MRI(several, coils.birdcage((12, 16), 4))
    x = torch.randn(1, 2, 12, 16)
    assert torch.allclose(op.A_adjoint_A(x), op.A_adjoint(op.A(x)), atol=1e-5)
    with pytest.raises(ValueError, match="x: expected 1 or 3 items, for which there are parameters, got 2"):
        op.A(x.expand(2, -1, -1, -1))
    with pytest.raises(ValueError, match="maps: expected those of 1 or 3 items, as the mask's, got 2"):
        operators.MRI(several, coils.birdcage((12, 16), 4).expand(2, -1, -1, -1))


def test_an_operator_keeps_its_own_mask():
    mask = torch.ones(8, 8)
    op = operators.MRI(mask)
    mask[:4] = 0
    assert (op.A(torch.ones(1, 2, 8, 8)) == operators.MRI(torch.ones(8, 8)).A(torch.ones(1, 2, 8, 8))).all()
    assert op.mask.all()


def test_gradients_reach_the_maps_again_and_again():
    maps = coils.birdcage((8, 8), 2).requires_grad_()
    op = operators.MRI(torch.ones(8, 8), maps)
    x = torch.randn(1, 2, 8, 8)
    first, second = (torch.autograd.grad(op.A(x).square().sum(), maps)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.abs().max() > 0


def test_default_calibration_leaves_room():
    for make in (masks.cartesian, masks.poisson):
        mask = make((128, 128), 8, seed=0)
        assert 128**2 / mask.sum().item() == pytest.approx(8, rel=0.02)
        assert make((64, 64), 12, seed=0).any()
        with pytest.raises(ValueError, match="acceleration: expected at most"):
            make((8, 8), 1000)
    assert torch.equal(masks.cartesian((96, 128), 4, seed=0), masks.cartesian((96, 128), 4, 24, seed=0))


def test_espirit_phase_does_not_hang_on_one_coil(kspace):
    """A first coil that sees nothing but noise does not roughen the phase of the others."""
    kspace = torch.from_numpy(kspace)
    noise = 1e-3 * kspace.abs().mean() * torch.randn_like(kspace[:1])
    first, last = (coils.espirit(torch.cat(parts), 24) for parts in ((noise, kspace), (kspace, noise)))
    assert torch.allclose(first[1:], last[:-1], atol=1e-3)


@pytest.mark.parametrize("mask", [torch.full((8, 6), 0.5), torch.tensor([0.2, 0.9, 1, 1, 0.4, 0.1]).repeat(8, 1)])
def test_gradients_of_learned_masks(mask):
    """The normal product's slope reaches every sample, also of a mask that is constant along an axis."""
    mask = mask.double().requires_grad_()
    op = operators.MRI(mask)
    x, weights = torch.randn(2, 1, 2, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fast, plain = (
        torch.autograd.grad((made * weights).sum(), mask)[0] for made in (op.A_adjoint_A(x), op.A_adjoint(op.A(x)))
    )
    torch.testing.assert_close(fast, plain)


def test_calibration_lines_may_be_all():
    assert masks.cartesian((64, 24), 1, calibration=24).all()


def test_masks_in_double_precision_leave_the_images_single(brain):
    mask = masks.cartesian((96, 80), 3, 12, seed=0).double()
    x = torch.cat([brain, brain], 1)
    op = operators.MRI(mask)
    inverted = op.normal_inverse()(x, torch.ones(1, 1, 1, 1))
    assert {part.dtype for part in (op.A(x), op.A_adjoint(op.A(x)), op.A_adjoint_A(x), inverted)} == {torch.float32}
