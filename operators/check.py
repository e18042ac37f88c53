"""Whether an operator is what it says: linear, with an exact adjoint, and safe in batches, types and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList


@dataclass
class Report:
    """What :func:`check` measured; every error is relative, and about 1e-7 is what single precision allows.

    :param adjointness: largest \\|<A x, y> - <x, A'y>\\| / (\\|A x\\| \\|y\\|) over random pairs.
    :param linearity: error of A(2x - 3z) against 2 A x - 3 A z.
    :param normal: error of ``A_adjoint_A`` against ``A_adjoint(A(x))``.
    :param batch: error of a batch against its items one by one.
    :param gradient: error of automatic differentiation through A and its adjoint against A'v and A v.
    :param dtype: whether measurements and images have the precision of what they were made of.
    :param finite: whether no value was NaN or infinite.
    :param norm: the operator's largest singular value, by the power method.
    """

    adjointness: float
    linearity: float
    normal: float
    batch: float
    gradient: float
    dtype: bool
    finite: bool
    norm: float

    def passed(self, tolerance: float = 1e-4) -> bool:
        """Whether all errors are below ``tolerance``."""
        errors = (self.adjointness, self.linearity, self.normal, self.batch, self.gradient)
        return self.dtype and self.finite and all(error <= tolerance for error in errors)


@torch.enable_grad()
def check(
    op: LinearPhysics,
    shape: tuple[int, ...],
    *,
    pairs: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device="cpu",
) -> Report:
    """Try an operator on random images.

    :param op: the operator.
    :param shape: shape of an image, (C, H, W), or of a volume, (C, D, H, W), of which a batch of two is tried; or that
        of a batch.
    :param pairs: random pairs for the adjointness.
    :param seed: seed of the random images.
    :param dtype: precision of the images.
    :param device: device of the operator.
    :raises TypeError: for another kind of operator.
    """
    if not isinstance(op, LinearPhysics):
        raise TypeError(f"op: expected a deepinv LinearPhysics, got {type(op).__name__}")
    image_shape = getattr(op, "image_shape", None) or op.img_size or shape[-3:]
    shape = tuple(shape) if len(shape) > len(image_shape) else (2, *shape)
    rng = torch.Generator(device).manual_seed(seed)

    def random(like=None):
        if isinstance(like, TensorList):
            return TensorList([random(part) for part in like])
        return torch.randn(shape if like is None else like.shape, generator=rng, device=device, dtype=dtype)

    adjointness = 0.0
    for _ in range(pairs):
        x = random()
        measured = op.A(x)
        y = random(measured)
        gap = _inner(measured, y) - _inner(x, op.A_adjoint(y))
        adjointness = max(adjointness, abs(gap) / max(_norm(measured) * _norm(y), 1e-30))
    z = random()
    linearity = _error(op.A(2 * x - 3 * z), 2 * measured - 3 * op.A(z))
    normal = _error(op.A_adjoint_A(x), op.A_adjoint(measured))
    batch = max(
        _error(items[k : k + 1], alone[k : k + 1] if len(alone) == len(x) else alone)  # measured with each parameter
        for k in range(len(x))
        for items, alone in zip(_parts(measured), _parts(op.A(x[k : k + 1])))
    )

    image, data = x.clone().requires_grad_(), y if isinstance(y, TensorList) else y.clone().requires_grad_()
    gradient = _error(_slope(_inner_tensor(op.A(image), y), image), op.A_adjoint(y))
    if not isinstance(data, TensorList):
        gradient = max(gradient, _error(_slope(_inner_tensor(op.A_adjoint(data), z), data), op.A(z)))

    back = op.A_adjoint(y)
    parts = [back, *_parts(measured)]
    v = back
    for _ in range(30):
        v = op.A_adjoint_A(v / max(_norm(v), 1e-30))
    return Report(
        adjointness,
        linearity,
        normal,
        batch,
        gradient,
        dtype=all(part.dtype == dtype for part in parts),
        finite=all(bool(torch.isfinite(part).all()) for part in parts),
        norm=_norm(v) ** 0.5,
    )


def _parts(a) -> list:
    return list(a) if isinstance(a, TensorList) else [a]


def _slope(value, x):
    return torch.autograd.grad(value, x)[0] if value.requires_grad else torch.zeros_like(x)


def _inner_tensor(a, b):
    return sum((p * q).sum() for p, q in zip(_parts(a), _parts(b)))


def _inner(a, b) -> float:
    return sum((p.double() * q.double()).sum().item() for p, q in zip(_parts(a), _parts(b)))


def _norm(a) -> float:
    return _inner(a, a) ** 0.5


def _error(a, b) -> float:
    return _norm(a - b) / max(_norm(b), 1e-30)
