"""Second-order neural differential equations, x'' = f(x, x', t): their solvers and the block that networks use.

Norcliffe et al., *On second order behaviour in augmented neural ODEs* (NeurIPS 2020); with convolutions as in Cheng et
al., *Implicit U-KAN 2.0* (MICCAI 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmentation.unet import Pointwise

State = tuple[Tensor, Tensor]  # position and velocity


def integrate(
    force: Callable[[Tensor, Tensor, float], Tensor],
    x: Tensor,
    v: Tensor,
    steps: int = 2,
    solver: str = "verlet",
    tolerance: float = 1e-3,
    adjoint: bool = False,
) -> list[State]:
    """Solve x' = v, v' = force(x, v, t) from t = 0 to 1.

    :param force: the acceleration.
    :param x: position at t = 0.
    :param v: velocity at t = 0.
    :param steps: number of steps, or for ``"dopri5"`` of times that are returned.
    :param solver: ``"euler"`` (semi-implicit, order 1) or ``"verlet"`` (order 2), with one evaluation of the force a
        step; ``"rk4"`` (order 4, four evaluations) or ``"dopri5"`` (adaptive) of torchdiffeq.
    :param tolerance: relative and absolute tolerance of ``"dopri5"``.
    :param adjoint: for torchdiffeq's solvers: get gradients by solving the adjoint equation backwards, in memory that
        does not grow with the number of steps (Chen et al., *Neural ordinary differential equations*, NeurIPS 2018);
        ``force`` must be a module.
    :return: position and velocity at the ``steps + 1`` times from 0 to 1.
    :raises ValueError: for an unknown solver or less than one step.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if solver in STEPPERS:
        return STEPPERS[solver](force, x, v, steps)
    if solver not in ("rk4", "dopri5"):
        raise ValueError(f"solver: expected {', '.join(STEPPERS)}, rk4 or dopri5, got {solver!r}")
    import torchdiffeq

    times = torch.linspace(0, 1, steps + 1, device=x.device)
    options = {"rtol": tolerance, "atol": tolerance, "method": solver}
    if adjoint:
        path = torchdiffeq.odeint_adjoint(_Derivative(force), (x, v), times, **options)
    else:
        path = torchdiffeq.odeint(_Derivative(force), (x, v), times, **options)
    return list(zip(*path))


class _Derivative(nn.Module):
    """Of the state (x, v) by time."""

    def __init__(self, force):
        super().__init__()
        self.force = force

    def forward(self, time: Tensor, state: State) -> State:
        x, v = state
        return v, self.force(x, v, time)


def euler(force: Callable, x: Tensor, v: Tensor, steps: int) -> list[State]:
    """Semi-implicit Euler: the new velocity moves the position."""
    h, path = 1 / steps, [(x, v)]
    for k in range(steps):
        v = torch.add(v, force(x, v, k * h), alpha=h)
        x = torch.add(x, v, alpha=h)
        path.append((x, v))
    return path


def verlet(force: Callable, x: Tensor, v: Tensor, steps: int) -> list[State]:
    """Position Verlet: half a step with the old velocity, half a step with the new one.

    The force is evaluated in the middle, at a velocity that the last acceleration extrapolates, which keeps the order
    2 for forces that depend on it.
    """
    h, path, acceleration = 1 / steps, [(x, v)], None
    for k in range(steps):
        middle = v if acceleration is None else torch.add(v, acceleration, alpha=h / 2)
        x = torch.add(x, v, alpha=h / 2)
        acceleration = force(x, middle, (k + 0.5) * h)
        v = torch.add(v, acceleration, alpha=h)
        x = torch.add(x, v, alpha=h / 2)
        path.append((x, v))
    return path


STEPPERS = {"euler": euler, "verlet": verlet}


class SecondOrderBlock(nn.Module):
    r"""Features that move for one unit of time by :math:`x'' = f(x, x', t)`, from a velocity that depends on them.

    :math:`f = W_2\,\mathrm{relu}(g(t)\,\mathrm{norm}(W_1 [x, x']) + b(t))`, with convolutions W and smooth functions
    of time g and b for each channel. All steps share these weights.

    :param width: channels.
    :param steps: steps of the solver; may be changed at any time, as ``solver`` may.
    :param solver: see :func:`integrate`.
    :param mixed: let W_1 see all channels of the velocity, not only each channel's own, which is faster.
    :param separable: W_1 is a depthwise 3 x 3 convolution and a matrix, W_2 a matrix; otherwise both are full 3 x 3
        convolutions.
    """

    FREQUENCIES = 3

    def __init__(self, width: int, steps: int = 2, solver: str = "verlet", mixed: bool = True, separable: bool = False):
        super().__init__()
        self.steps, self.solver, self.adjoint = steps, solver, False
        inputs = 2 * width if mixed else width
        self.velocity = Pointwise(width, width)
        if separable:
            depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
            self.inner, self.outer = nn.Sequential(depthwise, Pointwise(inputs, width)), Pointwise(width, width)
        else:
            self.inner = nn.Conv2d(inputs, width, 3, padding=1, bias=False)
            self.outer = nn.Conv2d(width, width, 3, padding=1)
        self.groups = math.gcd(width, 4)  # of the norm
        self.coupling = None if mixed else nn.Parameter(torch.zeros(width, 1, 1))
        self.gain = nn.Parameter(torch.eye(1, self.FREQUENCIES).repeat(width, 1))
        self.shift = nn.Parameter(torch.zeros(width, self.FREQUENCIES))
        with torch.no_grad():  # starts slow, so that the flow is near the identity
            self.velocity.weight.mul_(0.3)
            self.outer.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, width, H, W) at t = 1."""
        return self.path(x)[-1][0]

    def path(self, x: Tensor) -> list[State]:
        """Position and velocity at the solver's times."""
        force = _Force(self) if self.adjoint else self.force
        return integrate(force, x, self.velocity(x), self.steps, self.solver, adjoint=self.adjoint)

    def force(self, x: Tensor, v: Tensor, time: float | Tensor) -> Tensor:
        """The acceleration at a time between 0 and 1."""
        waves = torch.cos(math.pi * time * torch.arange(self.FREQUENCIES, dtype=self.gain.dtype, device=x.device))
        inner = self.inner(torch.cat([x, v], 1) if self.coupling is None else torch.addcmul(x, self.coupling, v))
        normed = F.group_norm(inner, self.groups, self.gain @ waves, self.shift @ waves)
        return self.outer(F.relu(normed, inplace=True))


class _Force(nn.Module):
    """The force of a block as a module, which the adjoint method finds its parameters by."""

    def __init__(self, block: SecondOrderBlock):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, v: Tensor, time: Tensor) -> Tensor:
        return self.block.force(x, v, time)
