"""Non-uniform Fourier transforms of images, by FINUFFT (Barnett, Magland, af Klinteberg, SIAM J Sci Comput 2019)."""

from __future__ import annotations

import importlib.util
from functools import partial

import finufft
import torch
from torch import Tensor

from operators.operator import linear

PLANS = 16  # that are kept; the oldest makes room


class NUFFT:
    r"""The map of images to their spectrum at given points, :math:`y_m = \sum_n x_n e^{-i k_m \cdot (n - c)}`.

    The pixel at n // 2 along each axis is the origin. Forward and adjoint transform are exact adjoints of each other,
    and differentiable. Plans (sorted points, FFT plans) are made once for each number of images, precision and device,
    and kept. On a GPU they are cuFINUFFT's where that is installed; else the transforms run on the CPU.

    :param points: (M, d) in radians per pixel, one column for each axis of the image; 2 pi periodic.
    :param shape: the image's d axes, d = 2 or 3.
    :param eps: relative error of the transforms; in single precision never below 1e-6.
    """

    def __init__(self, points: Tensor, shape: tuple[int, ...], eps: float = 1e-5):
        if not 0 < eps < 1:
            raise ValueError(f"eps: expected a relative error between 0 and 1, got {eps}")
        self.points = points.detach().to("cpu", torch.float64, copy=True)
        self.shape, self.eps = tuple(shape), eps
        self._plans = {}

    def forward(self, images: Tensor) -> Tensor:
        """Complex images (..., *shape) to (..., M)."""
        return linear(images, partial(self._execute, kind=2), partial(self._execute, kind=1))

    def adjoint(self, samples: Tensor) -> Tensor:
        """Complex samples (..., M) to (..., *shape)."""
        return linear(samples, partial(self._execute, kind=1), partial(self._execute, kind=2))

    def _execute(self, values: Tensor, kind: int) -> Tensor:
        """Type 2 (images to samples) or type 1 (its adjoint)."""
        inside = len(self.shape) if kind == 2 else 1
        batch, inner = values.shape[: values.ndim - inside], values.shape[values.ndim - inside :]
        outer = (len(self.points),) if kind == 2 else self.shape
        items = values.reshape(-1, *inner).contiguous()
        if not len(items):
            return values.new_zeros(*batch, *outer)
        items = items if len(items) > 1 else items[0]
        gpu = values.is_cuda and importlib.util.find_spec("cufinufft") is not None
        plan = self._plan(kind, batch.numel(), values.dtype, values.device if gpu else torch.device("cpu"))
        out = plan.execute(items) if gpu else torch.from_numpy(plan.execute(items.cpu().numpy())).to(values.device)
        return out.reshape(*batch, *outer)

    def _plan(self, kind: int, count: int, dtype: torch.dtype, device: torch.device):
        key = kind, count, dtype, device, torch.get_num_threads()
        if key not in self._plans:
            single = dtype == torch.complex64
            options = {"eps": max(self.eps, 1e-6) if single else self.eps, "isign": -1 if kind == 2 else 1}
            points = self.points.to(device, torch.float32 if single else torch.float64)
            axes = [axis.contiguous() for axis in points.T]
            if device.type == "cuda":
                import cufinufft

                stream = torch.cuda.current_stream(device).cuda_stream
                options |= {"gpu_device_id": device.index or 0, "gpu_stream": stream}
                library = cufinufft
            else:
                axes = [axis.numpy() for axis in axes]
                options["nthreads"] = torch.get_num_threads()
                library = finufft
            plan = library.Plan(kind, self.shape, count, dtype="complex64" if single else "complex128", **options)
            plan.setpts(*axes)
            if len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        return self._plans[key]

    def __deepcopy__(self, memo):
        return NUFFT(self.points, self.shape, self.eps)

    def __reduce__(self):
        return NUFFT, (self.points, self.shape, self.eps)
