"""Denoisers that nobody trains: total variation, wavelets, non-local means and BM3D, as ``denoiser(x, sigma)``."""

from __future__ import annotations

import importlib.util

import deepinv
import numpy as np
import torch
from deepinv.models import Denoiser
from torch import Tensor


class TotalVariation(deepinv.models.TVDenoiser):
    r"""The minimiser of :math:`\frac12 |x - y|^2 + w \sigma\, \mathrm{TV}(x)` (Rudin, Osher & Fatemi, 1992).

    deepinv's over-relaxed Chambolle-Pock, started anew with every call, so that a result depends on its input alone.

    :param weight: w, in units of the noise.
    :param iterations: most iterations.
    """

    def __init__(self, weight: float = 0.8, iterations: int = 200):
        super().__init__(n_it_max=iterations, tau=0.05, crit=1e-6)
        self.weight = weight

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """Denoise images (B, C, H, W) with noise of standard deviation sigma, a float or (B,)."""
        self.x2 = self.u2 = None
        levels = _levels(x, self.weight * sigma)
        out = super().forward(x, levels.clamp_min(torch.finfo(x.dtype).tiny))
        return torch.where((levels > 0)[:, None, None, None], out, x)  # without noise, 0 / 0 where x is flat


class Wavelet(deepinv.models.WaveletDenoiser):
    """Soft thresholds on orthogonal wavelet coefficients (Donoho, 1995), averaged over shifts of the image.

    Without the shifts (cycle spinning, Coifman & Donoho, 1995), block edges would show. Needs ``pip install ptwt``.

    :param weight: threshold in units of the noise.
    :param level: levels of the decomposition.
    :param wavelet: its name in PyWavelets.
    :param shifts: number of shifts along the diagonal.
    """

    def __init__(self, weight: float = 1.5, level: int = 3, wavelet: str = "sym4", shifts: int = 4):
        super().__init__(level=level, wv=wavelet, mode="symmetric")
        self.weight, self.shifts = weight, shifts

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """Denoise images (B, C, H, W) with noise of standard deviation sigma, a float or (B,)."""
        threshold = _levels(x, self.weight * sigma)
        out = 0
        for shift in range(self.shifts):
            turned = super().forward(x.roll((shift, shift), (-2, -1)), threshold)
            out = out + turned.roll((-shift, -shift), (-2, -1))
        return out / self.shifts


class NonLocalMeans(Denoiser):
    """Non-local means (Buades, Coll & Morel, 2005): scikit-image's, image by image and channel by channel.

    Needs ``pip install scikit-image``; runs on the CPU and has no gradient.

    :param weight: decay of the patch weights in units of the noise.
    :param patch: side of the patches in pixels.
    :param distance: radius in pixels in which they are looked for.
    """

    def __init__(self, weight: float = 0.8, patch: int = 5, distance: int = 10):
        super().__init__()
        if importlib.util.find_spec("skimage") is None:
            raise ImportError("non-local means: scikit-image was not found; pip install scikit-image")
        self.weight, self.patch, self.distance = weight, patch, distance

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """Denoise images (B, C, H, W) with noise of standard deviation sigma, a float or (B,)."""
        from skimage.restoration import denoise_nl_means

        out = torch.empty_like(x)
        for index, level in zip(np.ndindex(x.shape[:2]), _levels(x, sigma).repeat_interleave(x.shape[1]).tolist()):
            image = x[index].detach().cpu().numpy()
            found = denoise_nl_means(image, self.patch, self.distance, self.weight * level, sigma=level)
            out[index] = torch.from_numpy(found)
        return out


class BlockMatching(deepinv.models.BM3D):
    """BM3D (Dabov et al., *Image denoising by sparse 3-D transform-domain collaborative filtering*, TIP 2007).

    With ``pip install bm3d`` it is its authors' program, whose licence allows non-commercial use only, on the CPU;
    else deepinv's own implementation, which needs ``pip install ptwt``, runs on any device, takes about 20 s for 256 x
    256 pixels on a CPU, and reaches the same PSNR.

    :param authors: True or False to choose; None for the authors' program where it is installed.
    """

    def __init__(self, authors: bool | None = None, device: torch.device | str = "cpu"):
        found = importlib.util.find_spec("bm3d") is not None
        super().__init__(use_legacy=found if authors is None else authors, device=device)

    def forward(self, x: Tensor, sigma: float | Tensor, **kwargs) -> Tensor:
        """Denoise images (B, C, H, W) with noise of standard deviation sigma, a float or (B,)."""
        levels = _levels(x, sigma)
        noisy = levels > 0
        if not noisy.any():
            return x
        out = x.clone()
        out[noisy] = super().forward(x[noisy].float(), levels[noisy].float()).to(x.dtype)
        return out


def _levels(x: Tensor, sigma: float | Tensor) -> Tensor:
    """One noise level for each image, (B,)."""
    levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1)
    if len(levels) not in (1, len(x)):
        raise ValueError(
            f"sigma: expected a number or one for each of {len(x)} images, got shape {tuple(levels.shape)}"
        )
    if not (levels >= 0).all() or not torch.isfinite(levels).all():
        raise ValueError(f"sigma: expected finite noise levels of at least 0, got {levels.tolist()}")
    return levels.expand(len(x))
