"""pnp.solve: against deepinv's own solver, on any operator, in any units, and with bad input."""

from __future__ import annotations

import itertools
import math

import deepinv
import numpy as np
import pytest
import torch
from conftest import LAST_DIGITS, LocalWiener, relative
from deepinv.physics.functional.blur import gaussian_blur

import denoisers
import operators
import pnp
from operators import masks
from pnp import quality
from pnp.algorithms import DouglasRachford
from pnp.data_step import conjugate_gradients
from pnp.problem import Problem
from pnp.solver import iterate
from pnp.spectrum import lanczos


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e3])
def test_units_do_not_matter(factor, multicoil, medical):
    op, y, _ = multicoil
    x = pnp.solve(op, y, medical, iterations=6).x
    assert relative(pnp.solve(op, factor * y, medical, noise=0.01 * factor, iterations=6).x, factor * x) < 2e-3
    scaled = operators.MRI(op.mask[0, 0], factor * op.maps[0])
    assert relative(pnp.solve(scaled, y, medical, noise=0.01, iterations=6).x, x / factor) < 2e-3
    both = pnp.solve(scaled, factor * y, medical, noise=0.01 * factor, iterations=6).x
    assert relative(both, x) < 2e-3


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_units_do_not_matter_when_the_noise_is_estimated(factor, multicoil, medical):
    op, y, _ = multicoil
    silent = operators.MRI(op.mask[0, 0], op.maps[0])
    x, scaled = (pnp.solve(silent, scale * y, medical, iterations=4) for scale in (1, factor))
    assert scaled.noise == pytest.approx(factor * x.noise, rel=1e-3)
    assert relative(scaled.x, factor * x.x) < 2e-3


def test_grey_denoiser_on_complex_images(multicoil, medical):
    op, y, truth = multicoil
    scores = {
        name: quality.psnr(pnp.solve(op, y, medical, algorithm=name).x, truth).item()
        for name in ("direct", "cg", "hqs")
    }
    assert scores["cg"] > scores["direct"]
    assert scores["hqs"] > scores["cg"] + 3
    assert scores["hqs"] > 30


def test_phase_is_smooth_beside_the_object_and_follows_the_image(brain, medical):
    """It is taken off before the denoiser, to which a phase that is noise would look like structure."""
    phase = 0.8 * torch.linspace(-1, 1, 80)[None, :] + 0.6 * torch.linspace(-1, 1, 96)[:, None] ** 2
    truth = torch.cat([brain * phase.cos(), brain * phase.sin()], 1)
    op = operators.MRI(masks.cartesian((96, 80), 4, 6, seed=0))
    y = op.A(truth) + 0.02 * op.mask * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    off, scores = {}, {}
    for follows in (True, False):
        problem, algorithm = Problem(op, y, medical, 0.02), DouglasRachford()
        steps = (problem.phase[:, :, 1:] * problem.phase[:, :, :-1].conj()).angle()
        assert steps.abs().mean() < 0.05  # 0.02 in truth
        problem.varying = follows
        (x, *_), _, _ = iterate(problem, algorithm, list(algorithm.schedule(problem)), (problem.first,))
        error = (problem._denoiser.phase[0] * torch.polar(torch.ones_like(phase), -phase)).angle()
        off[follows] = error[brain[0, 0] > 0.2].square().mean().sqrt()
        scores[follows] = quality.psnr((x * problem.scale).norm(dim=1, keepdim=True), brain)
    assert off[True] < 0.9 * off[False] < 0.06
    assert scores[True] > scores[False] + 0.5


def test_an_image_that_the_denoiser_empties_comes_back(multicoil):
    """What strong thresholds leave of it has no phase."""
    op, y, truth = multicoil

    def emptied(grey, sigma):
        if grey.shape[1] > 1:
            raise ValueError("for grey images")
        return grey * (torch.as_tensor(sigma).amax() < 0.19)

    assert relative(pnp.solve(op, y, emptied).x, truth) < 0.3


def test_phase_of_the_image_does_not_matter(multicoil, medical):
    op, y, _ = multicoil
    x = pnp.solve(op, y, medical, iterations=4).x
    turned = pnp.solve(op, torch.stack([-y[:, 1], y[:, 0]], 1), medical, iterations=4).x  # times i
    assert relative(turned, torch.stack([-x[:, 1], x[:, 0]], 1)) < 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda shape: deepinv.physics.Denoising(),
        lambda shape: deepinv.physics.Inpainting(shape, mask=0.5),
        lambda shape: deepinv.physics.BlurFFT(shape, gaussian_blur(sigma=(1.2, 1.2))),
        lambda shape: deepinv.physics.Blur(gaussian_blur(sigma=(1.2, 1.2)), padding="reflect"),
        lambda shape: deepinv.physics.Downsampling(shape, filter="gaussian", factor=2),
    ],
)
@pytest.mark.parametrize("told", [True, False])
def test_any_deepinv_operator(make, told, brain, medical):
    torch.manual_seed(1)
    op = make((1, 96, 80))
    op.set_noise_model(deepinv.physics.ZeroNoise())
    y = op.A(brain)
    y = y + 0.03 * torch.randn_like(y) * (y != 0)
    solution = pnp.solve(op, y, medical, noise=0.03 if told else None)
    reference = quality.psnr(op.A_adjoint(y) if y.shape != brain.shape else y, brain).item()
    assert quality.psnr(solution.x, brain).item() > reference + 1.5
    assert solution.converged


@pytest.mark.parametrize("name", ["median", "tv"])
def test_any_deepinv_denoiser(name, multicoil):
    op, y, truth = multicoil
    denoiser = {"median": deepinv.models.MedianFilter(), "tv": deepinv.models.TVDenoiser(n_it_max=20)}[name]
    solution = pnp.solve(op, y, denoiser, iterations=6)
    assert solution.x.shape == truth.shape
    assert torch.isfinite(solution.x).all()


def test_stacked_operators(brain, medical):
    parts = [deepinv.physics.BlurFFT((1, 96, 80), gaussian_blur(sigma=s)) for s in ((2, 0.5), (0.5, 2))]
    op = deepinv.physics.stack(*parts)
    y = op.A(brain)
    y = deepinv.utils.TensorList([part + 0.01 * torch.randn_like(part) for part in y])
    solution = pnp.solve(op, y, medical)
    assert solution.noise == pytest.approx(0.01, rel=0.5)
    assert quality.psnr(solution.x, brain).item() > quality.psnr(y[0], brain).item() + 3


def test_operators_that_are_no_blur_are_not_taken_for_one(multicoil, medical):
    """What has the image's shape is no image: here it is k-space."""
    _, _, truth = multicoil
    op = operators.MRI(masks.poisson((96, 80), 2, 16, seed=0))
    theirs = deepinv.physics.LinearPhysics(A=op.A, A_adjoint=op.A_adjoint)
    y = op.A(truth) + 0.02 * op.mask * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="noise: cannot be estimated"):
        assert pnp.solve(theirs, y, medical, iterations=2).noise < 0.03


def test_pixels_beyond_the_mask_do_not_count_as_noise(brain):
    mask = (torch.rand(1, 96, 80, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    noisy = brain + 0.02 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0))
    blurred = deepinv.physics.Inpainting((1, 96, 80), mask=mask) * deepinv.physics.Denoising()
    for op in (deepinv.physics.Inpainting((1, 96, 80), mask=mask), blurred):
        with pytest.warns(UserWarning, match="y: holds values"):
            found = Problem(op, noisy, None).measured_noise
        assert found == pytest.approx(Problem(op, mask * noisy, None).measured_noise, rel=1e-4)


@pytest.mark.parametrize("theirs", [False, True])
def test_measurements_beyond_the_mask_are_named_and_left_out(theirs, multicoil, medical):
    op, y, truth = multicoil
    everywhere = y + (1 - op.mask[:, :, None]) * torch.randn_like(y)
    if theirs:
        op = deepinv.physics.MultiCoilMRI(op.mask, op.maps, img_size=truth.shape[1:])
    wanted = pnp.solve(op, y, medical, noise=0.01, iterations=3)
    with pytest.warns(UserWarning, match="y: holds values where op's mask is 0"):
        solution = pnp.solve(op, everywhere, medical, noise=0.01, iterations=3)
    assert relative(solution.x, wanted.x) < 1e-4
    assert solution.history["residual"] == pytest.approx(wanted.history["residual"], rel=1e-3)


def test_images_of_a_batch_do_not_influence_each_other(multicoil, medical):
    op, y, _ = multicoil
    other = 20 * y.flip(1)
    both = pnp.solve(op, torch.cat([y, other]), medical, noise=0.01, iterations=4).x
    assert relative(both[:1], pnp.solve(op, y, medical, noise=0.01, iterations=4).x) < 2e-3
    assert relative(both[1:], pnp.solve(op, other, medical, noise=0.01, iterations=4).x) < 2e-3


def test_images_of_other_ranges(brain, medical):
    op = deepinv.physics.Denoising(deepinv.physics.ZeroNoise())
    hounsfield = 2000 * brain - 1000
    y = hounsfield + 60 * torch.randn_like(brain)
    solution = pnp.solve(op, y, medical)
    unit = pnp.solve(op, (y + 1000) / 2000, medical)
    assert solution.noise == pytest.approx(60, rel=0.15)
    assert quality.nrmse(solution.x + 1000, hounsfield + 1000).item() < 1.1 * quality.nrmse(unit.x, brain).item()


def test_solution_tells_what_was_done(multicoil, medical):
    op, y, _ = multicoil
    seen = []
    solution = pnp.solve(op, y, medical, iterations=5, callback=lambda k, x: seen.append((k, x.shape)))
    assert solution.iterations == len(seen) == solution.calls["denoiser"] == 5
    assert {len(values) for values in solution.history.values()} == {5}
    assert solution.calls["A_adjoint"] == 1
    assert solution.noise == pytest.approx(0.01)
    assert "denoiser" in repr(solution)
    again = pnp.solve(op, y, medical, algorithm=solution.algorithm)
    assert relative(again.x, solution.x) < LAST_DIGITS
    stopped = pnp.solve(op, y, medical, callback=lambda k, x: k == 2)
    assert stopped.iterations == 3


def test_stops_when_nothing_moves(multicoil):
    op, y, _ = multicoil
    algorithm = pnp.algorithms.HQS(sigma=[0.1] * 300, rho=[0.3] * 300, cg_iterations=30, cg_tolerance=1e-4)
    solution = pnp.solve(op, y, lambda x, sigma: 0.9 * x, algorithm=algorithm)
    assert solution.converged
    assert solution.iterations < 200
    assert not pnp.solve(op, y, lambda x, sigma: 0.3 * x, iterations=2).converged


def test_residual_reaches_the_noise(multicoil, medical):
    op, y, _ = multicoil
    assert pnp.solve(op, y, medical).history["residual"][-1] == pytest.approx(1, abs=0.15)


def test_direct_is_the_adjoint(multicoil):
    op, y, _ = multicoil
    x = pnp.solve(op, y, None, algorithm="direct").x
    adjoint = op.A_adjoint(y)
    assert relative(x * (adjoint.norm() / x.norm()), adjoint) < 1e-5


def test_divergence_is_an_error(multicoil):
    op, y, _ = multicoil
    with pytest.raises(pnp.DivergenceError, match="diverged in iteration") as caught:
        pnp.solve(op, y, lambda x, sigma: 40 * x)
    assert len(caught.value.history["sigma"]) >= 1


@pytest.mark.parametrize("algorithm", ["drs", "hqs", "red", "diffpir", "dds", "daps", "fire"])
def test_values_that_are_not_finite_are_the_denoisers(multicoil, algorithm):
    op, y, _ = multicoil
    with pytest.raises(pnp.DivergenceError, match="the denoiser returned values that are not finite"):
        pnp.solve(op, y, lambda x, sigma: x * torch.nan, algorithm=algorithm)


def test_an_item_without_signal_stays_empty(multicoil, medical):
    op, y, _ = multicoil
    both, alone = (pnp.solve(op, batch, medical).x for batch in (torch.cat([y, 0 * y]), y))
    assert relative(both[:1], alone) < 1e-4
    assert both[1].abs().max() < 1e-3


def test_items_with_masks_of_their_own(brain):
    """The number of samples counts for each item, not for the batch."""
    mask = torch.ones(2, 1, 96, 80)
    mask[1, :, ::2] = 0
    op = deepinv.physics.Inpainting((1, 96, 80), mask=mask)
    y = op.A(brain.repeat(2, 1, 1, 1) + 0.05 * torch.randn(2, 1, 96, 80, generator=torch.Generator().manual_seed(0)))
    assert Problem(op, y, None, noise=0.05).measured.count.flatten().tolist() == [96 * 80, 48 * 80]


def test_seeds_reach_the_denoiser(multicoil, medical):
    op, y, _ = multicoil
    prior = denoisers.Equivariant(medical)
    first, again, other = (pnp.solve(op, y, prior, iterations=4, seed=seed).x for seed in (1, 1, 2))
    assert relative(again, first) < LAST_DIGITS
    assert relative(other, first) > 1e-3
    own = denoisers.Equivariant(medical, seed=5)
    assert relative(pnp.solve(op, y, own, iterations=4).x, first) > 1e-3
    assert own.generator.initial_seed() == 5
    assert relative(pnp.solve(op, y, prior, iterations=4, seed=np.int64(1)).x, first) < LAST_DIGITS


def test_bad_input(multicoil, medical):
    op, y, truth = multicoil
    explicit = pnp.algorithms.HQS(sigma=[0.1, 0.05], rho=[0.1, 0.1])
    broken = y.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    blur = deepinv.physics.BlurFFT((1, 96, 80), gaussian_blur(sigma=(1.2, 1.2)))
    theirs = deepinv.physics.MultiCoilMRI(op.mask, op.maps, img_size=truth.shape[1:])
    cases = [
        (ValueError, "y: expected finite", lambda: pnp.solve(op, broken, medical)),
        (ValueError, "y: expected", lambda: pnp.solve(op, y[..., :-1], medical)),
        (ValueError, "y: expected", lambda: pnp.solve(op, y[:, :, 0], medical)),
        (ValueError, "y: expected measurements, got only zeros", lambda: pnp.solve(op, 0 * y, medical)),
        (TypeError, "y: expected a real", lambda: pnp.solve(op, y + 0j, medical)),
        (TypeError, "y: expected a real", lambda: pnp.solve(op, 3, medical)),
        (TypeError, "op: expected a deepinv LinearPhysics", lambda: pnp.solve(torch.nn.Identity(), y, medical)),
        (TypeError, "denoiser: expected a callable", lambda: pnp.solve(op, y, "medical")),
        (TypeError, "denoiser: expected a callable", lambda: pnp.solve(op, y, None)),
        (ValueError, "denoiser: expected it to return", lambda: pnp.solve(op, y, lambda x, sigma: x[..., :-1])),
        (ValueError, "noise: expected", lambda: pnp.solve(op, y, medical, noise=-1)),
        (ValueError, "noise: expected", lambda: pnp.solve(op, y, medical, noise=math.nan)),
        (ValueError, "noise: expected", lambda: pnp.solve(op, y, medical, noise=torch.ones(3))),
        (ValueError, "algorithm: expected one of", lambda: pnp.solve(op, y, medical, algorithm="magic")),
        (TypeError, "algorithm: expected a name", lambda: pnp.solve(op, y, medical, algorithm=3)),
        (ValueError, "iterations: expected a whole", lambda: pnp.solve(op, y, medical, iterations=0)),
        (ValueError, "iterations: expected a whole", lambda: pnp.solve(op, y, medical, iterations=2.5)),
        (ValueError, "iterations: expected 2", lambda: pnp.solve(op, y, medical, algorithm=explicit, iterations=5)),
        (TypeError, "noise: expected a number", lambda: pnp.solve(op, y, medical, noise="a")),
        (ValueError, "seed: expected a whole", lambda: pnp.solve(op, y, medical, seed="a")),
        (ValueError, "y: expected the operator's", lambda: pnp.solve(blur, truth[:, :1, :-1], medical)),
        (ValueError, "y: expected the operator's", lambda: pnp.solve(theirs, y[..., :-1], medical)),
        (ValueError, "start: expected the image's shape", lambda: pnp.solve(op, y, medical, start=truth[..., :-1])),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


def test_conjugate_gradients_solve_a_linear_system():
    matrix = torch.randn(12, 12)
    matrix = matrix @ matrix.T / 12

    def normal(x):
        return (x.flatten(1) @ matrix).reshape(x.shape)

    b, rho = torch.randn(3, 1, 3, 4), torch.tensor([0.01, 0.1, 1.0]).view(3, 1, 1, 1)
    x = conjugate_gradients(normal, b, rho, iterations=60, tolerance=1e-6)
    for i in range(3):
        exact = torch.linalg.solve(matrix + rho[i].item() * torch.eye(12), b[i].flatten())
        assert relative(x[i].flatten(), exact) < 1e-3


def test_lanczos_finds_the_largest_eigenvalue():
    values = torch.linspace(0, 3, 400).reshape(1, 1, 20, 20)
    ritz, weights = lanczos(lambda x: values * x, torch.zeros(2, 1, 20, 20), steps=30)
    assert ritz.shape == (2, 30)
    assert ritz[:, -1] == pytest.approx(torch.full((2,), 3.0), rel=1e-3)
    assert (weights * ritz).sum(1) == pytest.approx(torch.full((2,), 1.5), rel=0.02)  # the mean of the spectrum


def test_problem_is_normalised(multicoil, medical):
    op, y, truth = multicoil
    problem = Problem(op, y, medical)
    assert problem.first.square().sum(1).sqrt().quantile(0.999).item() == pytest.approx(1, rel=0.01)
    assert relative(problem.first * problem.scale, truth) < 0.3


@pytest.mark.parametrize("depth", [4, 24])
def test_volumes(brain, depth):
    """A volume that is undersampled in two directions, its noise unknown, is better than by least squares."""
    plane = brain[..., 8:72, 8:72]
    profile = torch.linspace(0.6, 1.0, depth).view(-1, 1, 1)
    truth = torch.cat([plane[:, :, None] * profile, torch.zeros(1, 1, depth, 64, 64)], 1)
    op = operators.MRI(masks.poisson((64, 64), 4, 16, seed=0).expand(depth, 64, 64)[None, None])
    y = op(truth) + 0.02 * op.mask * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    axes = []

    class Slices(LocalWiener):
        def forward(self, x, sigma, **kwargs):
            axes.append(tuple(x.shape[-2:]))
            return super().forward(x, sigma)

    solution = pnp.solve(op, y, Slices())
    assert solution.x.shape == truth.shape
    assert set(axes) - {(32, 32)} == ({(64, 64)} if depth < 16 else {(64, 64), (24, 64)})
    assert solution.noise == pytest.approx(0.02, rel=0.3)
    assert relative(solution.x, truth) < 0.75 * relative(pnp.solve(op, y, None, algorithm="cg").x, truth)


class Flipped(deepinv.physics.Denoising):
    def A_adjoint(self, y, **kwargs):
        return y.flip(-1)


class Doubled(deepinv.physics.Denoising):
    def A_adjoint_A(self, x, **kwargs):
        return 2 * x


@pytest.mark.parametrize(("op", "name"), [(Flipped(), "A_adjoint "), (Doubled(), "A_adjoint_A ")])
def test_operators_that_do_not_fit_their_adjoint(op, name, brain, medical):
    with pytest.raises(ValueError, match=f"op: its {name}is not"):
        pnp.solve(op, brain, medical)


def test_divergence_may_be_a_warning(multicoil):
    op, y, _ = multicoil
    calls = []

    def denoiser(x, sigma):
        calls.append(sigma)
        return x if len(calls) < 5 else 40 * x

    with pytest.warns(UserWarning, match="diverged in iteration"):
        solution = pnp.solve(op, y, denoiser, on_divergence="warn")
    assert not solution.converged
    assert torch.isfinite(solution.x).all()
    assert solution.history["residual"][-1] > 2 * min(solution.history["residual"])
    fit = (op.A(solution.x) - y).square().sum() / (y != 0).sum()
    assert fit.sqrt().item() / 0.01 == pytest.approx(min(solution.history["residual"]), rel=1e-2)
    with pytest.raises(ValueError, match="on_divergence: expected"):
        pnp.solve(op, y, denoiser, on_divergence="ignore")


def test_plot_shows_every_curve(multicoil, medical, tmp_path):
    op, y, _ = multicoil
    figure = pnp.solve(op, y, medical, iterations=4).plot()
    figure.savefig(tmp_path / "solution.png")
    assert [len(line.get_xdata()) for line in figure.axes[1].lines[:3]] == [4, 4, 4]


def test_offsets_of_either_sign_are_taken_off(brain, medical):
    op = deepinv.physics.Denoising(deepinv.physics.ZeroNoise())
    y = brain + 0.1 * torch.randn(brain.shape)
    scores = [quality.psnr(pnp.solve(op, y + c, medical, noise=0.1).x - c, brain).item() for c in (0, -10, 10)]
    assert max(scores) - min(scores) < 0.3


def test_a_blank_item_does_not_spoil_gradients(multicoil, medical):
    op, y, _ = multicoil
    y = torch.cat([y, 0 * y]).requires_grad_()
    pnp.solve(op, y, medical, iterations=2, gradients="unrolled", noise=0.02).x.square().sum().backward()
    assert torch.isfinite(y.grad).all()
    assert y.grad[0].abs().max() > 0


def test_gradient_step_descends_on_volumes():
    volume = torch.zeros(1, 1, 16, 18, 20)
    volume[..., 4:12, 5:13, 6:14] = 1
    op = deepinv.physics.Denoising(deepinv.physics.ZeroNoise())
    y = volume + 0.1 * torch.randn(volume.shape)
    solution = pnp.solve(op, y, denoisers.load("gradient-step"), algorithm="gradient-step", noise=0.1, iterations=8)
    objective = solution.history["objective"]
    assert len(objective) > 2
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(objective))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations: expected a whole number of at least 1"),
        ({"sigma": [], "rho": []}, "iterations: expected a whole number of at least 1"),
        ({"first": 0}, "first: expected a positive number, got 0"),
        ({"weight": -1}, "weight: expected a positive number, got -1"),
        ({"sigma": [-0.2], "rho": [1.0]}, "sigma: expected finite values of at least 0"),
        ({"cg_iterations": 0}, "cg_iterations, cg_tolerance: expected at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message, multicoil, medical):
    op, y, _ = multicoil
    with pytest.raises(ValueError, match=message):
        pnp.solve(op, y, medical, algorithm=pnp.algorithms.HQS(**settings))


@pytest.mark.parametrize("settings", [{"relaxation": 3.0}, {"reflection": -0.1}])
def test_steps_out_of_their_range(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}: expected a number from 0 to"):
        pnp.algorithms.DouglasRachford(**settings)


def test_a_class_is_no_algorithm(multicoil, medical):
    op, y, _ = multicoil
    with pytest.raises(TypeError, match="algorithm: expected a name or an algorithm, got the class HQS"):
        pnp.solve(op, y, medical, algorithm=pnp.algorithms.HQS)
    with pytest.raises(ValueError, match="gradients: expected None with DPS"):
        pnp.solve(op, y, medical, algorithm="dps", iterations=2, gradients="unrolled")


def test_measurements_of_too_few_operators(multicoil, medical):
    op, y, _ = multicoil
    with pytest.raises(ValueError, match="y: expected the measurements of 2 stacked operators, got 1"):
        pnp.solve(operators.stack(op, op), deepinv.utils.TensorList([y]), medical)
