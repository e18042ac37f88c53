"""Non-uniform Fourier transforms of images, by FINUFFT (Barnett, Magland, af Klinteberg, SIAM J Sci Comput 2019)."""

from __future__ import annotations

import finufft
import numpy as np
import torch
from torch import Tensor


class NUFFT:
    r"""The map of images to their spectrum at given points, :math:`y_m = \sum_n x_n e^{-i k_m \cdot (n - c)}`.

    The pixel at (H // 2, W // 2) is the origin. Forward and adjoint transform are exact adjoints of each other, and
    differentiable. Plans (sorted points, FFT plans) are made once for each number of images and kept.

    :param points: (M, 2) in radians per pixel, along H and along W; 2 pi periodic.
    :param shape: (H, W).
    :param eps: relative error of the transforms.
    """

    def __init__(self, points: Tensor, shape: tuple[int, int], eps: float = 1e-5):
        self.points = np.ascontiguousarray(points.detach().cpu().numpy(), np.float64)
        self.shape, self.eps = tuple(shape), eps
        self._plans = {}

    def forward(self, images: Tensor) -> Tensor:
        """Complex images (..., H, W) to (..., M)."""
        return _Transform.apply(images, self, 2)

    def adjoint(self, samples: Tensor) -> Tensor:
        """Complex samples (..., M) to (..., H, W)."""
        return _Transform.apply(samples, self, 1)

    def execute(self, values: Tensor, kind: int) -> Tensor:
        """Type 2 (images to samples) or type 1 (its adjoint), without derivatives."""
        inside = 2 if kind == 2 else 1
        batch = values.shape[: values.ndim - inside]
        array = np.ascontiguousarray(values.detach().cpu().numpy()).reshape(-1, *values.shape[values.ndim - inside :])
        plan = self._plan(kind, len(array), array.dtype)
        out = plan.execute(array if len(array) > 1 else array[0])
        ending = (len(self.points),) if kind == 2 else self.shape
        return torch.from_numpy(out.reshape(*batch, *ending)).to(values.device)

    def _plan(self, kind: int, count: int, dtype) -> finufft.Plan:
        key = kind, count, np.dtype(dtype), torch.get_num_threads()
        if key not in self._plans:
            # the smallest of FINUFFT's kernels that reaches eps; in single precision it cannot do better than 1e-6
            eps = max(self.eps, 1e-6) if dtype == np.complex64 else self.eps
            options = {"eps": eps, "isign": -1 if kind == 2 else 1, "dtype": dtype, "nthreads": key[-1]}
            plan = finufft.Plan(kind, self.shape, n_trans=count, **options)
            real = np.float32 if dtype == np.complex64 else np.float64
            plan.setpts(*(np.ascontiguousarray(axis, real) for axis in self.points.T))
            self._plans[key] = plan
        return self._plans[key]

    def __deepcopy__(self, memo):
        return NUFFT(torch.from_numpy(self.points), self.shape, self.eps)

    def __reduce__(self):
        return NUFFT, (torch.from_numpy(self.points), self.shape, self.eps)


class _Transform(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, nufft, kind):
        ctx.nufft, ctx.kind = nufft, kind
        return nufft.execute(values, kind)

    @staticmethod
    def backward(ctx, slope):
        # through the transform itself, so that second derivatives exist, too
        return _Transform.apply(slope, ctx.nufft, 3 - ctx.kind), None, None
