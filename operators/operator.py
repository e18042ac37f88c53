"""What all operators share: checked input, the input's precision and device, and composition that stays fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import numpy as np
import torch
from deepinv.physics import LinearPhysics, ZeroNoise
from deepinv.physics.forward import ComposedLinearPhysics, StackedLinearPhysics
from deepinv.utils import TensorList
from torch import Tensor


def _same(x):
    return x


NOISELESS = ZeroNoise(noise_model=_same)


class Operator(LinearPhysics):
    """A deepinv ``LinearPhysics`` that works in the precision and on the device of what it is given.

    A subclass has :attr:`image_shape`, :attr:`measurement_shape`, :attr:`items` where its parameters may differ from
    item to item, and a method ``_prepare(dtype, device)`` that makes the tables it computes with; they are made when
    they are first needed, and kept until a parameter changes, by whatever means.
    ``a * b``, ``2 * a`` and ``a.stack(b)`` compose operators, and keep their fast normal products.
    """

    image_shape: tuple[int, ...]
    items = 1

    def __init__(self, *arguments, noise_model=None, **settings):
        super().__init__(*arguments, **settings)
        self.forw = self.sensor_model = _same  # which can be pickled, as deepinv's cannot
        if noise_model is not None:
            self.noise_model = noise_model
        elif type(self.noise_model) is ZeroNoise:
            self.noise_model = NOISELESS
        if "device" in settings:
            self.to(settings["device"])

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        """Shape of the measurements of one image."""
        raise AttributeError(f"{type(self).__name__} does not know the shape of its measurements")

    def __mul__(self, other):
        return compose(other, self) if isinstance(other, LinearPhysics) else self.__rmul__(other)

    def __rmul__(self, factor):
        return Scaled(self, factor) if isinstance(factor, (int, float)) else NotImplemented

    def update_parameters(self, **kwargs) -> None:
        """Replace parameters, those that the subclass has taken out of ``kwargs``; the others are fixed.

        :raises ValueError: for a parameter that cannot be replaced.
        """
        fixed = [name for name, value in kwargs.items() if value is not None and hasattr(self, name)]
        if fixed:
            raise ValueError(f"{', '.join(fixed)}: cannot be replaced; make another {type(self).__name__}")
        super().update_parameters(**kwargs)
        self._follow()

    def stack(self, other):
        """Both operators' measurements of one image, as a ``TensorList``."""
        return stack(self, other)

    def noise(self, x: Tensor, **kwargs) -> Tensor:
        """Apply the noise model to what is measured."""
        return self.sampled(super().noise(x, **kwargs))

    def sampled(self, y: Tensor) -> Tensor:
        """Measurements with zeros where nothing is measured."""
        return y

    def _tables(self, like: Tensor) -> SimpleNamespace:
        self._follow()
        made = self.__dict__.setdefault("_made", {})
        key = like.dtype, like.device
        if key in made:
            return made[key]
        with torch.inference_mode(False):  # what is made there could not be differentiated through later
            tables = SimpleNamespace(**self._prepare(*key))
        if not any(parameter.requires_grad for parameter, _ in self._versions()):
            made[key] = tables  # what leads back to a parameter serves for one backward pass only
        return tables

    def _versions(self) -> list[tuple[Tensor, int]]:
        """The parameters, and how often each was changed in place."""
        own = [*self.buffers(recurse=False), *self.parameters(recurse=False)]
        return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in own]

    def _follow(self) -> None:
        """Notice parameters that were set as attributes, or changed in place."""
        before, now = self.__dict__.get("_kept"), self._versions()
        if before is None:  # a copy
            self.__dict__["_kept"] = now
        elif len(before) != len(now) or any(a is not b or v != w for (a, v), (b, w) in zip(before, now)):
            self._reload()

    def _forget(self) -> None:
        """Drop the tables, after a parameter has changed."""
        self.__dict__ |= {"_made": {}, "_kept": self._versions()}

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._reload()

    def _reload(self) -> None:
        """Check parameters that were loaded or set, and derive from them what depends on them."""
        self._forget()

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in ("_made", "_kept")}  # as before use

    def _apply(self, fn, recurse=True):
        """As in ``torch.nn.Module``, whose ``to(torch.float64)`` would make complex buffers real."""

        def kept_complex(tensor):
            return torch.view_as_complex(fn(torch.view_as_real(tensor))) if tensor.is_complex() else fn(tensor)

        super()._apply(kept_complex, recurse)
        self._forget()
        return self


class Scaled(Operator):
    """``factor * op``; the noise stays what it was."""

    def __init__(self, op: Operator, factor: float):
        super().__init__(img_size=op.img_size, noise_model=op.noise_model, solver=op.solver)
        self.op, self.factor = op, float(factor)

    def A(self, x: Tensor, **kwargs):
        return self.factor * self.op.A(x, **kwargs)

    def A_adjoint(self, y, **kwargs) -> Tensor:
        return self.factor * self.op.A_adjoint(y, **kwargs)

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        return self.factor**2 * self.op.A_adjoint_A(x, **kwargs)

    def noise(self, x, **kwargs):
        return self.op.noise(x, **kwargs) if isinstance(x, TensorList) else super().noise(x, **kwargs)

    def update_parameters(self, **kwargs) -> None:
        self.op.update_parameters(**kwargs)

    def sampled(self, y: Tensor) -> Tensor:
        return self.op.sampled(y)

    @property
    def image_shape(self) -> tuple[int, ...]:
        return getattr(self.op, "image_shape", self.op.img_size)

    @property
    def measurement_shape(self) -> tuple[int, ...]:
        return self.op.measurement_shape


class Stacked(Operator, StackedLinearPhysics):
    """Several operators of one image; the normal product is the sum of theirs."""

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        return sum(part.A_adjoint_A(x, **kwargs) for part in self.physics_list)


class Composed(Operator, ComposedLinearPhysics):
    """One operator after the other; the last one's fast normal product sits between the others and their adjoints."""

    def A_adjoint_A(self, x: Tensor, **kwargs) -> Tensor:
        *first, last = self.physics_list
        for part in first:
            x = part.A(x, **kwargs)
        x = last.A_adjoint_A(x, **kwargs)
        for part in reversed(first):
            x = part.A_adjoint(x, **kwargs)
        return x

    def noise(self, x, **kwargs):
        return self.physics_list[-1].noise(x, **kwargs) if isinstance(x, TensorList) else super().noise(x, **kwargs)

    def sampled(self, y: Tensor) -> Tensor:
        last = self.physics_list[-1]
        return last.sampled(y) if isinstance(last, Operator) else y


def stack(*operators: LinearPhysics) -> Stacked:
    """One operator whose measurements are a ``TensorList`` of all operators' measurements."""
    _check_linear(operators)
    return Stacked(operators)


def compose(*operators: LinearPhysics) -> Composed:
    """One operator that applies the given ones in order, the first one to the image."""
    _check_linear(operators)
    return Composed(*operators)


def linear(x: Tensor, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]) -> Tensor:
    """``forward(x)`` of a linear map, differentiated any number of times by means of its adjoint."""
    return _Linear.apply(x, forward, adjoint)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x, forward, adjoint):
        return forward(x.detach())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.maps = inputs[1:]

    @staticmethod
    def backward(ctx, slope):
        forward, adjoint = ctx.maps
        return _Linear.apply(slope, adjoint, forward), None, None


def own(buffer: Tensor | None) -> Tensor | None:
    """A copy, which no change of the caller's tensor reaches; itself where gradients are to reach it."""
    return buffer if buffer is None or buffer.requires_grad else buffer.clone()


def check_real(x: Tensor, name: str, shape: tuple[int, ...], items: int = 1) -> None:
    """Raise a ValueError unless ``x`` is a real, finite batch of items of the shape, a TypeError unless a tensor.

    :param items: for how many items the operator has parameters; 1 where they are the same for all.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(x).__name__}")
    if x.is_complex() or not x.is_floating_point():
        raise ValueError(
            f"{name}: expected a real tensor (of complex ones, real and imaginary part as two channels), got {x.dtype}"
        )
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: expected float32 or float64, got {x.dtype}")
    if tuple(x.shape[1:]) != tuple(shape):
        wanted = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"{name}: expected shape ({wanted}), got {tuple(x.shape)}")
    if not len(x) or (items > 1 and len(x) not in (1, items)):
        wanted = "at least one item" if items == 1 else f"1 or {items} items, for which there are parameters"
        raise ValueError(f"{name}: expected {wanted}, got {len(x)}")
    # one sum is many times cheaper than a test of each value, which decides where the sum overflows, too
    if not torch.isfinite(x.detach().sum()) and not torch.isfinite(x.detach()).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def whole(name: str, value, least: int = 1) -> int:
    """A whole number of at least ``least``, or a ValueError."""
    if not isinstance(value, (int, float, np.number)) or value % 1 != 0 or value < least:  # NaN and infinity, too
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)


def sizes(name: str, shape, axes: str = "HW") -> tuple[int, ...]:
    """An image's shape as whole numbers, one for each of the axes, or a ValueError."""
    if not isinstance(shape, Iterable) or len(shape := tuple(shape)) != len(axes):
        raise ValueError(f"{name}: expected ({', '.join(axes)}), got {shape!r}")
    return tuple(whole(f"{name}: {axis}", n) for axis, n in zip(axes, shape))


def _check_linear(operators) -> None:
    if not operators:
        raise ValueError("operators: expected at least one, got none")
    for op in operators:
        if not isinstance(op, LinearPhysics):
            raise TypeError(f"operators: expected deepinv LinearPhysics, got {type(op).__name__}")
