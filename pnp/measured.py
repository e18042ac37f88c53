"""An operator with its measurements: checked, whitened, and every call counted."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import deepinv
import torch
from deepinv.physics import LinearPhysics
from deepinv.physics.forward import ComposedLinearPhysics, StackedLinearPhysics
from deepinv.utils import TensorList
from torch import Tensor

from operators.operator import Operator, Scaled
from pnp.data_step import dot


class Measured:
    """A linear operator A and measurements y = A x + n.

    Noise of another strength in each measurement is whitened: A and y are divided by ``sigma``.

    :param op: deepinv ``LinearPhysics``.
    :param y: measurements: a tensor, or a ``TensorList`` of stacked operators.
    :param sigma: standard deviations, broadcastable to y, or None for noise of the same strength in all of an item.
    :raises TypeError: for another kind of measurements.
    :raises ValueError: for measurements of another shape than the operator's, with NaN or infinity, or all 0, and
        for an operator whose adjoint is not one.
    """

    def __init__(self, op: LinearPhysics, y, sigma: Tensor | TensorList | None = None):
        _check(y)
        self.op, self.weight, self.given = op, None if sigma is None else each_part(torch.reciprocal, sigma), y
        self.y = y if sigma is None else y * self.weight
        self.calls = {"A": 0, "A_adjoint": 0, "A_adjoint_A": 0}
        self.adjoint_y = self._first_adjoint()
        if not torch.isfinite(self.adjoint_y).all():
            raise ValueError("op: its adjoint of y holds NaN or infinity")
        with torch.no_grad():
            self._check_adjoint()
        self.y = self._where_sampled(self.y)

    def _first_adjoint(self) -> Tensor:
        try:
            return self.adjoint(self.y)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(part.shape)) for part in parts(self.y))
            raise ValueError(f"y: expected the operator's measurements, got {shapes}: {error}") from error

    @property
    def energy(self) -> Tensor:
        """|y|^2 of each item of the batch, (B, 1, ...) like an image."""
        return self._squared(self.y)

    @property
    def count(self) -> Tensor:
        """Number of measurements of each item, (B, 1, ...); those that are 0, like unsampled k-space, do not count."""
        return self._each(sum((part != 0).flatten(1).sum(1) for part in parts(self.y))).clamp_min(1)

    @property
    def mean_weight(self) -> Tensor:
        """Mean squared weight of each item's measurements, (B, 1, ...): 1 where nothing is whitened."""
        if self.weight is None:
            return torch.ones_like(self.energy)
        ones = each_part(torch.ones_like, self.y)
        return self._squared(ones * self.weight) / self._squared(ones)

    def misfit(self, x: Tensor) -> Tensor:
        """|A x - y|^2 of each item, (B, 1, ...)."""
        return self._squared(self.forward(x) - self.y)

    def forward(self, x: Tensor):
        self.calls["A"] += 1
        y = self.op.A(x)
        return y if self.weight is None else y * self.weight

    def adjoint(self, y) -> Tensor:
        self.calls["A_adjoint"] += 1
        return self.op.A_adjoint(y if self.weight is None else y * self.weight)

    def adjoint_noise(self, generator: torch.Generator) -> Tensor:
        """A'n of white noise n with standard deviation 1."""

        def white(part: Tensor) -> Tensor:
            return torch.randn(part.shape, generator=generator, device=part.device, dtype=part.dtype)

        return self.adjoint(each_part(white, self.y))

    def normal(self, x: Tensor) -> Tensor:
        """A'A x, by the operators' own products where nothing in them is whitened."""
        self.calls["A_adjoint_A"] += 1
        if self.weight is None:
            return self.op.A_adjoint_A(x)
        if isinstance(self.op, StackedLinearPhysics) and all(weight.numel() == 1 for weight in self.weight):
            return sum(w**2 * part.A_adjoint_A(x) for w, part in zip(self.weight, self.op.physics_list))
        return self.op.A_adjoint(self.op.A(x) * self.weight * self.weight)

    def repeated(self, count: int) -> Measured:
        """The same measurements ``count`` times, as a batch; of a single item."""
        many = copy.copy(self)
        many.y = each_part(lambda part: part.repeat_interleave(count, 0), self.y)
        many.adjoint_y = self.adjoint_y.repeat_interleave(count, 0)
        return many

    def _check_adjoint(self, tolerance: float = 0.03) -> None:
        """Raise where A, its adjoint and its normal product do not agree on a random image."""
        b = self.adjoint_y
        v = torch.randn(b.shape, generator=torch.Generator(b.device).manual_seed(0), device=b.device, dtype=b.dtype)
        seen = self.forward(v)
        if isinstance(seen, Tensor) and seen.shape != self.y.shape:
            raise ValueError(f"y: expected the operator's measurements {tuple(seen.shape)}, got {tuple(self.y.shape)}")
        inner, energy = (sum((p * q).sum() for p, q in zip(parts(seen), parts(other))) for other in (self.y, seen))
        # b off by a share e makes the first differ by about e |b|, the norm of which must not underflow in small units
        largest = b.abs().max()
        if not (inner - (b * v).sum()).abs() <= tolerance * (b / largest.clamp_min(1e-37)).norm() * largest:
            raise ValueError("op: its A_adjoint is not the adjoint of its A (see operators.check)")
        if not (energy - (v * self.normal(v)).sum()).abs() <= tolerance * energy:
            raise ValueError("op: its A_adjoint_A is not the product of its A_adjoint and A (see operators.check)")

    def _where_sampled(self, y):
        """y with zeros where the operator's mask has some, which its adjoint does not see but the misfit would."""
        kept = _sampled(self.op, y)
        if any(not torch.equal(*pair) for pair in zip(parts(kept), parts(y))):
            warnings.warn("y: holds values where op's mask is 0, which are left out", stacklevel=5)
        return kept

    def _squared(self, y) -> Tensor:
        return self._each(sum(dot(part, part).flatten() for part in parts(y)))

    def _each(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.adjoint_y.ndim - 1))


def innermost(op: LinearPhysics) -> LinearPhysics:
    """The operator that measures, whatever stands before it."""
    while isinstance(op, (Scaled, ComposedLinearPhysics)):
        op = op.op if isinstance(op, Scaled) else op.physics_list[-1]
    return op


def _sampled(op: LinearPhysics, y):
    op = innermost(op)
    if isinstance(op, StackedLinearPhysics):
        return TensorList([_sampled(part, values) for part, values in zip(op.physics_list, y)])
    if isinstance(op, Operator):
        return op.sampled(y)
    if isinstance(op, (deepinv.physics.MRI, deepinv.physics.Inpainting)):
        return y * (op.mask != 0)
    return y * (op.mask[:, :, None] != 0) if isinstance(op, deepinv.physics.MultiCoilMRI) else y


def parts(y: Tensor | TensorList) -> list[Tensor]:
    """The measurements of each of the stacked operators, or of the only one."""
    return list(y) if isinstance(y, TensorList) else [y]


def each_part(function: Callable[[Tensor], Tensor], y: Tensor | TensorList) -> Tensor | TensorList:
    """A function of tensors on measurements, of stacked operators on each one's."""
    return TensorList([function(part) for part in y]) if isinstance(y, TensorList) else function(y)


def _check(y) -> None:
    for part in parts(y):
        if not isinstance(part, Tensor) or part.is_complex() or not part.is_floating_point():
            found = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(f"y: expected a real floating-point tensor, got {found}")
        if not torch.isfinite(part).all():
            raise ValueError("y: expected finite values, got NaN or infinity")
    if not any(part.any() for part in parts(y)):
        raise ValueError("y: expected measurements, got only zeros")
