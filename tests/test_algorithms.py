"""The algorithms: against deepinv's with the same steps, and what each promises by itself."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import deepinv
import pytest
import torch
from conftest import LocalWiener, relative
from deepinv import optim
from deepinv.physics.functional.blur import gaussian_blur

import denoisers
import operators
import pnp
from operators import masks
from pnp import quality
from pnp.algorithms import (
    ADMM,
    ALGORITHMS,
    FISTA,
    HQS,
    PGD,
    RED,
    DouglasRachford,
    GradientStep,
    PrimalDual,
    TotalVariation,
)
from pnp.problem import Problem

SIGMAS = [0.2, 0.1, 0.05, 0.03]
RHOS = [0.02, 0.05, 0.2, 0.5]
CG = {"cg_iterations": 200, "cg_tolerance": 1e-6}


@pytest.fixture(params=["blur", "single-coil", "multi-coil"])
def case(request, brain, multicoil):
    """Operator, measurements and a start."""
    if request.param == "blur":
        op = deepinv.physics.BlurFFT((1, 96, 80), gaussian_blur(sigma=(1.5, 1.5)))
        y = op(brain)
    elif request.param == "single-coil":
        op = operators.MRI(masks.cartesian((96, 80), 2, 12, seed=0))
        y = op(torch.cat([brain, 0.3 * brain], 1))
    else:
        op, y, _ = multicoil
    op.max_iter, op.tol = 200, 1e-7
    return op, y, op.A_adjoint(y)


def deepinvs(kind, op, y, start, steps, *, prior=None, dual=None, g_first=False, **settings):
    """deepinv's result from the same start, with step sizes 1/rho."""
    solver = kind(
        data_fidelity=optim.L2(),
        prior=prior or optim.PnP(LocalWiener()),
        max_iter=len(steps),
        g_first=g_first,
        params_algo={"stepsize": steps, "g_param": SIGMAS, "lambda": 1.0, "beta": 1.0, "a": 3} | settings,
        custom_init=lambda y, physics: (start, start if dual is None else dual),
    )
    with torch.no_grad():
        return solver(y, op)


def ours(algorithm, op, y, start):
    return pnp.solve(op, y, LocalWiener(), algorithm=algorithm, start=start, noise=0.01).x


def test_hqs(case):
    steps = [1 / rho for rho in RHOS]
    assert relative(ours(HQS(sigma=SIGMAS, rho=RHOS, **CG), *case), deepinvs(optim.HQS, *case, steps)) < 1e-3


def test_admm(case):
    peer = deepinvs(optim.ADMM, *case, [1 / rho for rho in RHOS], dual=torch.zeros_like(case[-1]))
    assert relative(ours(ADMM(sigma=SIGMAS, rho=RHOS, **CG), *case), peer) < 1e-3


def test_douglas_rachford(case):
    peer = deepinvs(optim.DRS, *case, [1 / rho for rho in RHOS])
    algorithm = DouglasRachford(reflection=1.0, relaxation=1.0, sigma=SIGMAS, rho=RHOS, **CG)
    assert relative(ours(algorithm, *case), peer) < 1e-3


def test_proximal_gradient(case):
    rhos = [1.2, 1.0, 1.5, 2.0]
    peer = deepinvs(optim.PGD, *case, [1 / rho for rho in rhos])
    assert relative(ours(PGD(sigma=SIGMAS, rho=rhos), *case), peer) < 1e-4


def test_momentum_is_faster_and_ends_at_the_minimiser(case):
    """With a ridge prox in place of the denoiser, the minimiser is known; deepinv's momentum, (k + 2)/(k + 3), is not
    the paper's, and overshoots."""
    op, y, _ = case
    weight = 0.01
    ridge = lambda x, sigma: x / (1 + weight)  # noqa: E731
    found, far = {}, torch.zeros_like(op.A_adjoint(y))
    for kind, count in ((PGD, 60), (FISTA, 60), (FISTA, 400), (PGD, 4000)):
        algorithm = kind(sigma=[0.1] * count, rho=[1.0] * count)
        found[kind, count] = pnp.solve(op, y, ridge, algorithm=algorithm, noise=0.01, start=far).x
    minimiser = found[PGD, 4000]
    errors = {key: relative(x, minimiser) for key, x in found.items()}
    assert errors[FISTA, 400] < 4e-3
    assert errors[FISTA, 60] <= 0.5 * errors[PGD, 60]


def test_primal_dual(case):
    op, y, start = case
    rhos = [0.5, 0.6, 0.9, 1.0]
    norm = Problem(op, y, None).norm.item()
    peer = optim.optim_iterators.CPIteration(has_cost=False)
    flat = y.flatten(1, -3)  # deepinv's identity takes images
    state = {"est": (start, start, torch.zeros_like(flat))}
    maps = {"K": lambda x: op.A(x).reshape(flat.shape), "K_adjoint": lambda u: op.A_adjoint(u.reshape(y.shape))}
    for sigma, rho in zip(SIGMAS, rhos):
        parameters = {"stepsize": 1 / rho, "stepsize_dual": rho / norm, "g_param": sigma, "lambda": 1.0, "beta": 1.0}
        prior = optim.PnP(LocalWiener())
        state = peer(state, optim.L2(), prior, parameters | maps, flat, deepinv.physics.Denoising())
    assert relative(ours(PrimalDual(sigma=SIGMAS, rho=rhos), *case), state["est"][0]) < 1e-4


def test_regularisation_by_denoising(case):
    op, y, start = case
    denoiser, rho = LocalWiener(), 0.3
    norm = Problem(op, y, None).norm.item()
    prior = optim.RED(denoiser)
    settings = {"lambda": rho, "beta": 1.0}
    peer = deepinvs(optim.GD, *case, [1 / (norm + rho)] * 4, prior=prior, **settings)
    assert relative(ours(RED(sigma=SIGMAS, rho=[rho] * 4, fixed_point=False), *case), peer) < 1e-3
    x = start
    for sigma, weight in zip(SIGMAS, RHOS):
        x = optim.L2().prox(denoiser(x, sigma), y, op, gamma=1 / weight)
    assert relative(ours(RED(sigma=SIGMAS, rho=RHOS, **CG), *case), x) < 1e-3


@pytest.mark.parametrize("acceleration", [2, 3])
@pytest.mark.parametrize("several", [False, True])
def test_the_denoiser_is_told_the_noise_that_it_sees(multicoil, acceleration, several):
    """A denoiser that knows the image takes all noise away; of what is left in its input, sigma is the deviation."""
    op, _, truth = multicoil
    op = operators.MRI(masks.cartesian(truth.shape[-2:], acceleration, 8, seed=0), op.maps if several else None)
    y = op.A(truth)
    y = y + 0.05 * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * (y != 0)
    image, seen = truth / Problem(op, y, None, noise=0.05).scale, []  # as denoisers are given it

    def knowing(x, sigma):
        seen.append(((x - image).square().mean().sqrt() / sigma).item())
        return image

    problem = Problem(op, y, knowing, noise=0.05)
    *_, last = DouglasRachford().schedule(problem)
    state = (image,)
    for _ in range(20):
        state = DouglasRachford().step(problem, state, *last)
    assert seen[-1] == pytest.approx(1, abs=0.05)


def test_reflections_are_longer_the_more_a_mask_leaves_open(multicoil):
    """The numbers of the class's description."""
    *_, truth = multicoil
    for acceleration in (1.5, 2, 5):
        mask = masks.cartesian(truth.shape[-2:], acceleration, 8, seed=0)
        one = operators.MRI(mask)
        *_, (_, _, reflection, relaxation) = DouglasRachford().schedule(Problem(one, one.A(truth), None, noise=0.01))
        assert reflection.item() == pytest.approx(0.7 + 0.1 * (1 - mask.mean().item()), abs=0.01)
        assert relaxation.item() == pytest.approx(1.7 if acceleration == 5 else 1.5, abs=0.01)


def test_little_noise_does_not_slow_the_filling_of_a_mask(brain, medical):
    """Three quarters of k-space are open, of one coil: few steps fill them better at levels that fall less far."""
    op = operators.MRI(masks.poisson((96, 80), 4, 24, seed=0))
    truth = torch.cat([brain, 0 * brain], 1)
    found = pnp.solve(op, op.A(truth), medical, noise=1e-4)
    assert found.history["sigma"][-1] == pytest.approx(2e-3, rel=0.05)
    assert quality.psnr(found.x, truth) > quality.psnr(pnp.solve(op, op.A(truth), medical, noise=1e-2).x, truth) + 0.5
    full = operators.MRI(torch.ones(96, 80))
    assert pnp.solve(full, full.A(truth), medical, noise=1e-4).history["sigma"][-1] < 1e-3


def test_douglas_rachford_without_reflection_is_half_quadratic_splitting(multicoil):
    op, y, _ = multicoil
    reflected = pnp.solve(
        op, y, LocalWiener(), algorithm=DouglasRachford(6, reflection=0.0, relaxation=1.0, cg_iterations=60)
    )
    problem = Problem(op, y, None)
    sigma = [s * problem.scale.item() for s in reflected.history["sigma"]]
    rho = [r * problem.norm.item() for r in reflected.history["rho"]]
    split = HQS(sigma=sigma, rho=rho, cg_iterations=60, cg_tolerance=1e-3)
    assert relative(reflected.x, pnp.solve(op, y, LocalWiener(), algorithm=split).x) < 1e-3


@pytest.mark.parametrize("proximal", [True, False])
def test_gradient_step_decreases_its_objective(proximal, multicoil):
    op, y, truth = multicoil
    algorithm = GradientStep(iterations=25, proximal=proximal)
    solution = pnp.solve(op, y, denoisers.load("gradient-step"), algorithm=algorithm)
    values = solution.history["objective"]
    assert len(values) == solution.iterations
    assert all(after <= before for before, after in pairwise(values))
    assert values[-1] < 0.999 * values[0]
    assert quality.psnr(solution.x, truth) > quality.psnr(pnp.solve(op, y, None, algorithm="cg").x, truth) + 3


class Quadratic(deepinv.models.Denoiser):
    """D = I - grad g for g(x) = 0.4 |x|^2 / 2."""

    def forward(self, x, sigma, **kwargs):
        return 0.6 * x

    def potential(self, x, sigma):
        return 0.2 * x.square().flatten(1).sum(1)


@pytest.mark.parametrize("proximal", [True, False])
def test_gradient_step_finds_the_minimiser(proximal, multicoil):
    op, y, _ = multicoil
    algorithm = GradientStep(iterations=200, proximal=proximal)
    solution = pnp.solve(op, y, Quadratic(), algorithm=algorithm, noise=0.2)
    weight = 0.4 * solution.history["rho"][0]
    problem = Problem(op, y, None)
    zero = torch.zeros_like(problem.first)
    expected = problem.data_step(zero, torch.full_like(problem.norm, weight), 200, 1e-6) * problem.scale
    assert relative(solution.x, expected) < (2e-3 if proximal else 1e-2)


def test_gradient_step_is_proximal_descent(brain):
    """Where every step is accepted at its first size, it is deepinv's proximal descent on the same objective."""
    op = deepinv.physics.BlurFFT((1, 96, 80), gaussian_blur(sigma=(1.5, 1.5)))
    op.max_iter, op.tol = 200, 1e-7
    y, denoiser = op(brain), denoisers.load("gradient-step")
    problem = Problem(op, y, denoiser, 0.01)
    level, rho = (problem.noise * problem.scale).item(), 0.23 * problem.norm.item()
    settings = {"lambda": rho, "g_param": level}
    prior = optim.RED(denoisers.adapt(denoiser, scale=problem.scale, offset=problem.offset))
    peer = deepinvs(optim.PGD, op, y, op.A_adjoint(y), [1 / rho] * 4, prior=prior, g_first=True, **settings)
    mine = GradientStep(4, start=0, cg_iterations=100)
    assert relative(pnp.solve(op, y, denoiser, algorithm=mine, start=op.A_adjoint(y), noise=0.01).x, peer) < 1e-3


def test_gradient_step_needs_a_potential(multicoil, medical):
    op, y, _ = multicoil
    with pytest.raises(TypeError, match="denoiser: expected one with a potential"):
        pnp.solve(op, y, medical, algorithm="gradient-step")


def test_total_variation_is_minimal(brain):
    """The subgradient at the minimiser: A'(Ax - y) = -lambda D'p with p = Dx/|Dx| where Dx is not 0, |p| <= 1."""
    op = deepinv.physics.Denoising()
    y = brain + 0.05 * torch.randn(brain.shape, generator=torch.Generator().manual_seed(0))
    solution = pnp.solve(op, y, None, algorithm=TotalVariation(iterations=2000, threshold=1.0), noise=0.05)
    peer = deepinv.models.TVDenoiser(n_it_max=3000, crit=1e-7)(y, 0.05)
    assert relative(solution.x, peer) < 5e-3


def test_total_variation_of_a_volume_is_minimal():
    """The gradient has a larger norm than in two dimensions."""
    truth = torch.zeros(1, 1, 16, 18, 20)
    truth[..., 5:12, 4:14, 6:15] = 1
    y = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    algorithm = TotalVariation(iterations=1000, threshold=1.0)
    solution = pnp.solve(deepinv.physics.Denoising(), y, None, algorithm=algorithm, noise=0.05)
    peer = deepinv.models.TVDenoiser(n_it_max=3000, crit=1e-7)(y, 0.05)
    assert relative(solution.x, peer) < 2e-2  # the loop ends where an iteration moves a thousandth of the noise
    assert relative(solution.x, truth) < 0.4 * relative(y, truth)


def test_wavelets_of_a_volume_settle():
    """All slices count in each iteration."""
    y = torch.randn(1, 1, 16, 18, 20, generator=torch.Generator().manual_seed(0)).cumsum(-1)
    ends = [
        pnp.solve(deepinv.physics.Denoising(), y, None, algorithm="wavelet", noise=1.0, iterations=n).x
        for n in (30, 31)
    ]
    assert relative(*ends) < 1e-3


def test_an_algorithm_of_ones_own(multicoil, medical):
    """What the module's text asks for is enough."""

    @dataclass
    class Mine:
        iterations: int = 3

        def schedule(self, problem):
            return [(0.05 + problem.noise, 1 + 0 * problem.noise)] * self.iterations

        def step(self, problem, state, sigma, rho):
            return (problem.data_step(problem.denoise(state[0], sigma), rho),)

    op, y, _ = multicoil
    assert pnp.solve(op, y, medical, algorithm=Mine(), iterations=2).calls["denoiser"] == 2


# without those that are for other operators (ddrm), or need a prior that can draw whole images (dps)
@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"gradient-step", "direct", "cg", "ddrm", "dps"}))
def test_by_name_better_than_without_a_prior(name, multicoil, medical):
    op, y, truth = multicoil
    plain = quality.psnr(pnp.solve(op, y, None, algorithm="cg").x, truth)
    solution = pnp.solve(op, y, None if name in ("tv", "wavelet") else medical, algorithm=name)
    assert quality.psnr(solution.x, truth) > plain + 2
    assert {len(values) for values in solution.history.values()} == {solution.iterations}


@pytest.mark.parametrize("name", sorted(set(ALGORITHMS) - {"ddrm"}))
def test_units_do_not_matter(name, multicoil):
    op, y, _ = multicoil
    denoiser = denoisers.load("gradient-step" if name == "gradient-step" else "medical")
    denoiser.half_trunk = False  # so that rounding does not grow
    x = pnp.solve(op, y, denoiser, algorithm=name, iterations=4).x
    scaled = operators.MRI(op.mask[0, 0], 30 * op.maps[0])
    other = pnp.solve(scaled, 1e3 * y, denoiser, algorithm=name, iterations=4, noise=10.0).x
    assert relative(other, 1e3 / 30 * x) < 5e-3


def test_direct_grids_radial_samples(brain):
    """Density-compensated gridding of fully sampled spokes is near the image; the adjoint alone is far from it."""
    shape = tuple(brain.shape[-2:])
    op = operators.NonCartesianMRI(operators.trajectories.radial(150, 192), shape)
    truth = torch.cat([brain, torch.zeros_like(brain)], 1)
    found = pnp.solve(op, op.A(truth), None, algorithm="direct", noise=1e-3).x
    assert quality.nrmse(found, truth).item() < 0.05


def test_direct_back_projects_what_was_measured():
    """Also where the noise is another in each measurement, by which iterative algorithms weight them."""
    x = torch.zeros(1, 1, 32, 32)
    x[..., 8:24, 10:20] = 1
    noise = operators.LowDose(1e4, mu=0.05)
    op = operators.ParallelBeamCT((32, 32), torch.arange(40) * torch.pi / 40, noise_model=noise)
    y = op(x)
    torch.testing.assert_close(pnp.solve(op, y, None, algorithm="direct").x, op.fbp(y))
