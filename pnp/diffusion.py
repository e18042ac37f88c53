"""Diffusion samplers: the loop of the splittings, with noise added back before each call of the denoiser.

In all of them x is the estimate of the image, and z = x + sigma e what a diffusion would have reached at the level
sigma (in its variance-exploding form). They differ in how x is made to fit the measurements, and in which noise e is
added: that which z held, or fresh one.

In units of the problem, A has norm 1, the image a range of 1, and s is the noise level of y.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.physics import DecomposablePhysics
from torch import Tensor

from pnp.data_step import conjugate_gradients
from pnp.problem import Problem
from pnp.schedules import log_spaced
from pnp.spectrum import function_of
from pnp.splitting import HQS, State


@dataclass(frozen=True)
class DiffPIR(HQS):
    """Denoising diffusion for plug-and-play restoration (Zhu et al., CVPR Workshops 2023); the others are its variants.

    In few iterations, fresh noise alone reaches far more than what z held, and the spread of the samples is about half
    of their error. Levels and data weights as in :class:`HQS`.

    :param renewal: share zeta of fresh noise in what is added back; None for as much as the ancestral sampler of a
        diffusion renews (Ho, Jain & Abbeel, NeurIPS 2020), which is little where the levels are many.
    """

    iterations: int = 20
    weight: float = 1.0
    renewal: float | None = 1.0
    first: float = 1.0

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        x, e, before = state if len(state) > 1 else (*state, problem.white(), sigma)
        renewal = 1 - (sigma / before) ** 2 if self.renewal is None else torch.full_like(sigma, self.renewal)
        z = x + sigma * ((1 - renewal).sqrt() * e + renewal.sqrt() * problem.white())
        x, d = self.estimate(problem, z, sigma, rho)
        return x, (z - d) / sigma, sigma

    def estimate(self, problem: Problem, z: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        """The image in z, made to fit the measurements, and the image with which the noise that z held is told."""
        x = self.data_step(problem, problem.denoise(z, sigma), rho)
        return x, x


@dataclass(frozen=True)
class DDS(DiffPIR):
    """Decomposed diffusion sampler (Chung, Lee & Ye, ICLR 2024): a few conjugate-gradient iterations, always alike.

    Further parameters as in :class:`DiffPIR`.

    :param gamma: weight of the measurements; the data step has rho = 1/gamma.
    """

    renewal: float | None = 0.72  # their eta = 0.85
    gamma: float = 5.0
    cg_iterations: int = 5
    cg_tolerance: float = 0.0

    def estimate(self, problem: Problem, z: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        x = self.data_step(problem, problem.denoise(z, sigma), torch.full_like(rho, 1 / self.gamma))
        return x, x


@dataclass(frozen=True)
class DDNM(DiffPIR):
    """Denoising diffusion null-space model (Wang, Yu & Zhang, ICLR 2023): what was measured is put in place of D(z).

    The pseudo-inverse is regularised (Wiener's filter) for images that may differ from D(z) by sigma, which stands for
    their scaling of noisy directions. Further parameters as in :class:`DiffPIR`.

    :param contrast: standard deviation of images, in units of their range: they differ from D(z) by no more.
    """

    renewal: float | None = 0.72  # their eta = 0.85
    contrast: float = 0.2

    def estimate(self, problem: Problem, z: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        d = problem.denoise(z, sigma)
        return self.data_step(problem, d, (problem.noise / sigma.clamp_max(self.contrast)) ** 2), d


@dataclass(frozen=True)
class DDRM(DiffPIR):
    """Denoising diffusion restoration models (Kawar et al., NeurIPS 2022), in the spectral domain of A.

    For deepinv's decomposable operators (its own single-coil ``MRI``, ``BlurFFT``, inpainting, denoising). Parameters
    as in :class:`DiffPIR`.

    :param eta: share of fresh noise where the level is below that of the measurement, or nothing was measured.
    :raises TypeError: for other operators.
    """

    eta: float = 0.85

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        op, kept = problem.measured.op, (1 - self.eta**2) ** 0.5
        if not isinstance(op, DecomposablePhysics):
            raise TypeError(f"op: expected a deepinv DecomposablePhysics for DDRM, got {type(op).__name__}")
        if problem.measured.weight is not None:
            raise ValueError("noise: expected a number or one for each image for DDRM, got one for each measurement")
        x, z, before = state if len(state) > 1 else (*state, state[0] + sigma * problem.white(), sigma)
        level = sigma
        d, z, fresh, told = map(op.V_adjoint, (x, z, problem.white(), problem.adjoint_y))
        # the spectral domain may have other axes than the image
        sigma, before, norm, noise = (
            value.reshape(-1, *[1] * (d.ndim - 1)) for value in (sigma, before, problem.norm, problem.noise)
        )
        values = (torch.as_tensor(op.mask).abs() / norm.sqrt()).clamp_min(1e-6)
        told, strength = told / values**2, noise / values
        hidden = d + sigma * (kept * (z - d) / before + self.eta * fresh)
        noisy = d + sigma * (kept * (told - d) / strength + self.eta * fresh)
        clear = told + (sigma**2 - strength**2).clamp_min(0).sqrt() * fresh
        z = op.V(torch.where(strength <= sigma, clear, torch.where(values > 1e-3, noisy, hidden)))
        return problem.denoise(z, level), z, level


@dataclass(frozen=True)
class DPS(DiffPIR):
    """Diffusion posterior sampling (Chung et al., ICLR 2023): a gradient of |A D(z) - y|, through the denoiser.

    Made for a thousand levels. Parameters as in :class:`DiffPIR`.

    :param guidance: length of a step along the gradient, zeta; None for 300 over the number of levels, at most 3.
    """

    iterations: int = 1000
    renewal: float | None = None
    guidance: float | None = None
    differentiable = False

    def estimate(self, problem: Problem, z: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        def pull(d):
            return problem.gradient(d) / (2 * problem.data_term(d)).sqrt()

        d, gradient = through_denoiser(problem, z, sigma, pull)
        guidance = min(300 / self.iterations, 3.0) if self.guidance is None else self.guidance
        return d - guidance * gradient, d


@dataclass(frozen=True)
class PiGDM(DiffPIR):
    """Pseudo-inverse guided diffusion (Song et al., ICLR 2023): the gradient of the likelihood, through the denoiser.

    The image given z is taken as normal around D(z), of variance r^2 = sigma^2 / (1 + (sigma / range)^2). Parameters as
    in :class:`DiffPIR`.

    :param range: standard deviation of the images' pixels.
    """

    iterations: int = 100
    renewal: float | None = None
    range: float = 0.5
    differentiable = False

    def estimate(self, problem: Problem, z: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        variance = sigma**2 / (1 + (sigma / self.range) ** 2)

        def pull(d):
            rho = problem.noise**2 / variance
            return conjugate_gradients(problem.normal, -problem.gradient(d), rho, self.cg_iterations) / variance

        d, gradient = through_denoiser(problem, z, sigma, pull)
        x = d + sigma**2 * gradient
        return x, x


@dataclass(frozen=True)
class DAPS(DiffPIR):
    """Decoupled annealing posterior sampling (Zhang et al., CVPR 2025).

    At each level an image is drawn that may be the one in z and fits the measurements: where their paper takes steps of
    Langevin dynamics, exactly, by solving a perturbed data step (Orieux, Feron & Giovannelli, SPL 2012). Further
    parameters as in :class:`DiffPIR`.

    :param weight: (sigma/r)^2, where r is the error of the denoiser at the level sigma.
    """

    weight: float = 10.0

    def estimate(self, problem: Problem, z: Tensor, sigma: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
        x = self.data_step(problem, problem.denoise(z, sigma), rho) + problem.left_open(rho)
        return x, x


@dataclass(frozen=True)
class FIRE(DiffPIR):
    """Renoising that makes the error white (Shastri, Ahmad & Schniter, *Fast iterative renoising*, ICML 2025).

    After the data step, with rho = (s/r)^2, the error of the image is small where A measures: its covariance is
    s^2 (A'A + rho)^-1. The noise added has what is missing to sigma^2, so that the denoiser sees white noise. Further
    parameters as in :class:`DiffPIR`.

    :param weight: (sigma/r)^2, where r stands for the error of the denoiser at the level sigma. Images come out best,
        on MRI, CT and ultrasound, where it is taken as larger than it is.
    """

    weight: float = 0.25
    last: float = 1.0

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        x, before = state if len(state) > 1 else (*state, None)
        noise = sigma * problem.white()
        if before is not None:

            def share(theta):
                missing = sigma.flatten()[:, None] ** 2 - problem.noise.flatten()[:, None] ** 2 / (theta + before)
                return (missing.clamp_min(0) / sigma.flatten()[:, None] ** 2).sqrt()

            noise = function_of(problem.normal, noise, share)
        d = problem.denoise(x + noise, sigma)
        return self.data_step(problem, d, rho), rho.flatten()[:, None]


@dataclass(frozen=True)
class REDDiff(DiffPIR):
    """Variational sampling (RED-diff; Mardani et al., ICLR 2024): Adam on the misfit and the pull of the denoiser.

    It descends towards one image: its samples hardly differ.

    :param weight: of the denoiser's pull.
    :param learning_rate: of Adam. Their values, 0.25 and 0.1, do worse here.
    """

    iterations: int = 100
    weight: float = 0.05
    learning_rate: float = 0.05

    def rule(self, problem: Problem):
        sigma = log_spaced(self.first, problem.noise.clamp_max(self.first), self.iterations)
        return zip(sigma, torch.full_like(sigma, self.weight))

    def step(self, problem: Problem, state: State, sigma: Tensor, rho: Tensor) -> State:
        x, mean, square, k = state if len(state) > 1 else (*state, 0.0, 0.0, 0)
        d = problem.denoise(x + sigma * problem.white(), sigma)
        gradient = problem.gradient(x) + rho * (x - d)
        mean, square, k = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2, k + 1
        step = (mean / (1 - 0.9**k)) / ((square / (1 - 0.99**k)).sqrt() + 1e-8)
        return x - self.learning_rate * step, mean, square, k


def through_denoiser(problem: Problem, z: Tensor, sigma: Tensor, pull: Callable) -> tuple[Tensor, Tensor]:
    """D(z) and J' pull(D(z)), where J is the derivative of D at z; the memory is that of one call."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        d = problem.denoise(z, sigma)
        if not d.requires_grad:
            raise TypeError("denoiser: expected one that can be differentiated")
        (gradient,) = torch.autograd.grad(d, z, pull(d.detach()))
    return d.detach(), gradient
