"""Priors with which plug-and-play provably converges, and the measure of what the proofs ask for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.loss import JacobianSpectralNorm
from deepinv.models import Denoiser
from deepinv.models.GSPnP import GSPnP
from torch import Tensor

from denoisers.unet import ResidualUNet


class GradientStep(GSPnP):
    r"""Gradient-step denoiser, :math:`D = I - \nabla g` with :math:`g(x, \sigma) = \frac12 |x - N(x, \sigma)|^2`.

    Since it is a step down an explicit function, plug-and-play with it minimises an objective that can be evaluated:
    :meth:`potential` is g, :meth:`potential_grad` its gradient (Hurault, Leclaire & Papadakis, *Gradient step denoiser
    for convergent plug-and-play*, ICLR 2022). N is a :class:`ResidualUNet`, so that D is jointly 1-homogeneous in image
    and noise level, too. One call costs about three of N.

    :param widths: channels of each level of N.
    :param blocks: residual blocks of each level.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), blocks: int = 2):
        super().__init__(ResidualUNet(widths, blocks, half=False))  # value and gradient must agree
        self.settings = self.network.settings
        # where N is the identity, g has no slope in the weights
        torch.nn.init.normal_(self.network.tail.weight, std=0.02)

    @property
    def network(self) -> ResidualUNet:
        """N."""
        return self.student_grad.model

    def potential(self, x: Tensor, sigma: float | Tensor, *args, **kwargs) -> Tensor:
        """g at images (B, 1, H, W), one value for each, (B,)."""
        # deepinv's squared norm has no second derivative at 0, where a new network starts
        return 0.5 * (x - self.network(x, sigma)).square().flatten(1).sum(1)

    def potential_grad(self, x: Tensor, sigma: float | Tensor, *args, **kwargs) -> Tensor:
        """The gradient of g at images (B, 1, H, W); differentiable where x or the weights require gradients."""
        keep = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.parameters()))
        with torch.inference_mode(False), torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().clone().requires_grad_()
            sigma = sigma.clone() if isinstance(sigma, Tensor) else sigma
            value = self.potential(x, sigma).sum()
            return torch.autograd.grad(value, x, create_graph=keep)[0]

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """Denoise images (B, 1, H, W) with noise of standard deviation sigma, a float or (B,)."""
        x = x if x.is_floating_point() else x.float()
        return x - self.potential_grad(x, sigma)


class Equivariant(Denoiser):
    """A denoiser made equivariant to turns by 90 degrees and reflections, of images of any shape.

    It turns and reflects the image at random before, and back after (Terris et al., *Equivariant plug-and-play image
    reconstruction*, CVPR 2024), which keeps plug-and-play iterations from drifting into artefacts.

    :param denoiser: callable ``denoiser(x, sigma)`` on images (B, C, H, W).
    :param average: True for the mean over all eight transforms instead, in eight times the time.
    :param seed: seed of the random transforms.
    """

    def __init__(self, denoiser: Callable, *, average: bool = False, seed: int = 0):
        super().__init__()
        self.denoiser, self.average = denoiser, average
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        every = range(8)
        chosen = every if self.average else torch.randint(8, (1,), generator=self.generator).tolist()
        return sum(self._through(k, x, sigma) for k in chosen) / len(chosen)

    def _through(self, k: int, x: Tensor, sigma: float | Tensor) -> Tensor:
        turns, reflected = k % 4, k >= 4
        turned = torch.rot90(x.flip(-1) if reflected else x, turns, (-2, -1))
        out = torch.rot90(self.denoiser(turned.contiguous(), sigma), -turns, (-2, -1))
        return out.flip(-1) if reflected else out


class Stochastic(Denoiser):
    """A denoiser that is given the image with fresh noise of the level it expects, as in its training.

    Stochastic denoising regularisation (Renaud et al., *Plug-and-play image restoration with stochastic denoising
    regularization*, ICML 2024), meant for regularisation by denoising with many iterations.

    :param denoiser: callable ``denoiser(x, sigma)``.
    :param seed: seed of the noise.
    """

    def __init__(self, denoiser: Callable, *, seed: int = 0):
        super().__init__()
        self.denoiser = denoiser
        self.generator = torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype).to(x.device)
        level = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))
        return self.denoiser(x + level * noise, sigma)


MAPS = {
    "denoiser": lambda x, d: d,
    "residual": lambda x, d: x - d,
    "reflection": lambda x, d: 2 * d - x,
}


def lipschitz(
    denoiser: Callable, x: Tensor, sigma: float | Tensor, *, of: str = "residual", iterations: int = 50
) -> Tensor:
    """Local Lipschitz constant of a denoiser at images: the largest singular value of its Jacobian.

    By power iterations (deepinv's ``JacobianSpectralNorm``), a lower bound that they approach. Plug-and-play
    forward-backward and ADMM converge for strongly convex data terms where the residual's is below 1 (Ryu et al.,
    ICML 2019); they converge for all where the reflection's is at most 1 everywhere, which is firm non-expansiveness
    (Pesquet et al., SIAM J Imaging Sci 2021).

    :param denoiser: callable ``denoiser(x, sigma)``, differentiable.
    :param x: images (B, C, H, W) at which to measure.
    :param sigma: noise level, a float or (B,).
    :param of: "denoiser" for D, "residual" for I - D, "reflection" for 2 D - I.
    :param iterations: power iterations.
    :return: one value for each image, (B,).
    :raises ValueError: for another name, less than one iteration, or where the result is not finite.
    """
    if of not in MAPS:
        raise ValueError(f"of: expected one of {', '.join(MAPS)}, got {of!r}")
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    measure = JacobianSpectralNorm(max_iter=iterations, tol=1e-4, eval_mode=True)
    levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1).expand(len(x))
    norms = []
    for image, level in zip(x.split(1), levels.split(1)):
        with torch.inference_mode(False), torch.enable_grad():
            image = image.detach().clone().requires_grad_()
            mapped = MAPS[of](image, denoiser(image, level.clone()))
            if not mapped.requires_grad:
                raise TypeError("denoiser: expected one that can be differentiated")
            derivative = torch.autograd.grad(mapped.sum(), image, retain_graph=True)[0]
            if not torch.isfinite(mapped).all() or not torch.isfinite(derivative).all():
                raise ValueError("denoiser: expected a finite image with finite derivatives, got NaN or infinity")
            norms.append(measure(mapped, image).detach().nan_to_num())  # of a map to 0, the iterations give 0 / 0
    return torch.stack(norms).reshape(-1)


def expansion(
    denoiser: Callable, x: Tensor, sigma: Tensor, *, iterations: int = 5, generator: torch.Generator | None = None
) -> Tensor:
    """By how much the squared norm of the Jacobian of 2 D - I exceeds 1 at images: a penalty, differentiable.

    Where it vanishes everywhere, D is firmly non-expansive, and plug-and-play converges to the solution of a monotone
    inclusion (Pesquet, Repetti, Terris & Wiaux, *Learning maximally monotone operators for image recovery*, SIAM J
    Imaging Sci 2021). deepinv's ``FNEJacobianSpectralNorm`` keeps the graph of all its power iterations; here, only
    the last product, with the direction that they found, is differentiated.

    :param denoiser: callable ``denoiser(x, sigma)``, twice differentiable.
    :param x: images (B, C, H, W).
    :param sigma: noise levels (B,).
    :param iterations: power iterations.
    :param generator: source of the first direction.
    :return: one value for each image, (B,), zero where the norm is below 1.
    """
    x = x.detach().requires_grad_()
    out = 2 * denoiser(x, sigma) - x
    weights = torch.zeros_like(out, requires_grad=True)
    transposed = torch.autograd.grad(out, x, weights, create_graph=True)[0]  # linear in the weights: its transpose is J
    u = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    for _ in range(iterations):
        u = u / torch.linalg.vector_norm(u, dim=(1, 2, 3), keepdim=True)
        forward = torch.autograd.grad(transposed, weights, u, retain_graph=True)[0]
        u = torch.autograd.grad(out, x, forward, retain_graph=True)[0]
    u = u / torch.linalg.vector_norm(u, dim=(1, 2, 3), keepdim=True)
    forward = torch.autograd.grad(transposed, weights, u, create_graph=True)[0]
    return (forward.square().sum((1, 2, 3)) - 1).relu()
