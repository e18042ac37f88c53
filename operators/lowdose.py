"""The noise of CT: photon counts and the detector's electronics, after the logarithm."""

from __future__ import annotations

import math
import warnings

import torch
from deepinv.physics import NoiseModel
from torch import Tensor


class LowDose(NoiseModel):
    r"""Noise of CT projections, :math:`y = -\log(\max(N, 1) / I_0) / \mu` with :math:`N = \text{Poisson}(I_0
    e^{-\mu p}) + \sigma_e n`.

    (Thibault et al., *A recursive filter for noise reduction in statistical iterative tomographic imaging*, 2006;
    without electronic noise it is ``deepinv.physics.LogPoissonNoise``.) Detector bins that received no photon count as
    one, as scanners do it, so that no measurement is infinite.

    :param blank_scan: photons I0 that a bin counts without an object.
    :param electronic: standard deviation sigma_e of the electronic noise, in photons.
    :param mu: attenuation, per pixel, of an image value of 1.
    :param rng: random generator, as in deepinv.
    :raises ValueError: for numbers that are not positive, or not finite.
    """

    def __init__(self, blank_scan: float = 1e4, electronic: float = 0.0, mu: float = 1.0, rng=None):
        super().__init__(rng=rng)
        for name, value, least in (("blank_scan", blank_scan, 1e-9), ("electronic", electronic, 0), ("mu", mu, 1e-12)):
            if not (math.isfinite(value) and value >= least):
                kind = "at least 0" if least == 0 else "a positive number"
                raise ValueError(f"{name}: expected {kind}, got {value}")
            self.register_buffer(name, torch.tensor(float(value)))

    def forward(self, p: Tensor, seed: int | None = None, **kwargs) -> Tensor:
        """Noisy projections of exact ones, of any shape; with a seed, the same ones again.

        A warning tells where more than a tenth of the bins are expected to count less than one photon.
        """
        self.update_parameters(**kwargs)
        generator = self.rng
        if seed is not None:  # which deepinv would ignore without a generator
            generator = (generator or torch.Generator(p.device)).manual_seed(seed)
        self.to(p.device)
        mean = self.blank_scan * torch.exp(-self.mu * p)
        if not (mean < 1e15).all():  # nor NaN
            raise ValueError(f"p: expected finite line integrals, about 0 or more, got {p.min():.4g} to {p.max():.4g}")
        dark = (mean < 1).float().mean()
        if dark > 0.1:
            warnings.warn(
                f"p: {dark:.0%} of the bins count less than one of {self.blank_scan.item():.4g} photons; mu "
                f"{self.mu.item():.4g} is the attenuation of an image value of 1 along one pixel",
                stacklevel=2,
            )
        counts = torch.poisson(mean, generator=generator)
        counts = counts + self.electronic * torch.empty_like(p).normal_(generator=generator)
        return -torch.log(counts.clamp_min(1) / self.blank_scan) / self.mu

    def weights(self, y: Tensor) -> Tensor:
        r"""Inverse variance of each projection, the weights of a penalised weighted least-squares fit.

        :math:`w = \mu^2 N^2 / (N + \sigma_e^2)` with the counts N that y tells (Sauer & Bouman, IEEE Trans Signal
        Process 1993, with electronic noise as in Thibault et al. 2006).
        """
        counts = (self.blank_scan * torch.exp(-self.mu * y)).clamp_min(1)
        return self.mu**2 * counts**2 / (counts + self.electronic**2)

    def std(self, y: Tensor) -> Tensor:
        """Standard deviation of each projection, as ``pnp.solve(..., noise=...)`` takes it."""
        return self.weights(y).rsqrt()
