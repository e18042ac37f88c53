"""One call that reconstructs: the loop that all algorithms share, and what it returns."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from deepinv.physics import LinearPhysics
from deepinv.utils import TensorList
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from pnp import algorithms
from pnp.implicit import fixed_point
from pnp.problem import DivergenceError, Problem

# an iteration that moves the image by less than this share of the noise is the last one
NO_LONGER_PAYS = 1e-3


@dataclass(repr=False)
class Solution:
    """What :func:`solve` found.

    :param x: the image (B, C, H, W), in the units that A x = y asks for.
    :param noise: standard deviation of the noise in y that was told or estimated: a number, or a tensor broadcastable
        to y, for instance one estimate for each item of a batch, or a ``TensorList`` of stacked operators' levels.
    :param converged: whether the last iteration changed the image by less than the noise; True for algorithms without
        a denoiser, which end where their iterations do.
    :param iterations: iterations that were run.
    :param history: lists with an entry an iteration: ``residual`` (root mean square of A x - y in units of the noise,
        about 1 where the image explains the data), ``sigma`` and ``rho`` (denoiser level and data weight, in units of
        the image's range and the operator's norm), ``change`` (relative change of the image).
    :param calls: how often ``A``, ``A_adjoint``, their fused product ``A_adjoint_A`` and the ``denoiser`` were called.
    :param seconds: wall time of the whole call.
    :param split: seconds of it in the denoiser, in the data steps, and in setting up (norm, range, noise, start).
    :param algorithm: the algorithm with its settings: give it to :func:`solve` to run the same again.
    """

    x: Tensor
    noise: float | Tensor | TensorList
    converged: bool
    iterations: int
    history: dict[str, list[float]]
    calls: dict[str, int]
    seconds: float
    split: dict[str, float]
    algorithm: object = field(default=None)

    def __repr__(self) -> str:
        levels = self.noise.flatten() if isinstance(self.noise, TensorList) else torch.as_tensor(self.noise)
        noise = " to ".join(dict.fromkeys(f"{level:.3g}" for level in (levels.min().item(), levels.max().item())))
        state = "converged" if self.converged else "not converged"
        calls = ", ".join(f"{count} x {name}" for name, count in self.calls.items() if count)
        residual = self.history["residual"][-1] if self.history["residual"] else math.nan
        return (
            f"Solution(x {tuple(self.x.shape)} by {type(self.algorithm).__name__}: {state} after {self.iterations} "
            f"iterations, noise {noise}, residual {residual:.2f} x noise, {calls}, {self.seconds:.2f} s)"
        )

    def plot(self) -> Figure:
        """The first image of the batch (its magnitude), and how the iteration went."""
        image = self.x[0].detach().cpu()
        image = image.square().sum(0).sqrt() if len(image) == 2 else image[0]
        image = image[len(image) // 2] if image.ndim == 3 else image
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(image.numpy(), cmap="gray")
        left.axis("off")
        left.set_title(f"{type(self.algorithm).__name__}, {self.seconds:.1f} s")
        names = {"residual": "residual / noise", "sigma": "denoiser level / range", "change": "relative change"}
        for name, label in names.items():
            right.semilogy(range(1, self.iterations + 1), self.history[name], marker=".", label=label)
        right.axhline(1, color="gray", linewidth=0.8)
        right.set_xlabel("iteration")
        right.legend()
        return figure


@torch.inference_mode(False)  # some denoisers and algorithms are gradients
def solve(
    op: LinearPhysics,
    y: Tensor,
    denoiser: Callable | None,
    *,
    algorithm=None,
    noise: float | Tensor | None = None,
    iterations: int | None = None,
    start: Tensor | None = None,
    seed: int | None = None,
    callback: Callable[[int, Tensor], object] | None = None,
    progress: bool = False,
    on_divergence: str = "raise",
    gradients: str | None = None,
) -> Solution:
    """Reconstruct the image x from measurements y = A x + noise, with a denoiser as prior. Nothing is left to tune.

    :param op: the forward operator A, any ``deepinv.physics.LinearPhysics``.
    :param y: measurements of a batch of images.
    :param denoiser: the prior: ``denoiser(x, sigma)`` on images (B, C, H, W), sigma (B,) in the units of x. One for
        grey images is applied to real and imaginary part of complex ones, as a batch, and to volumes (B, C, D, H, W)
        slice by slice, along another axis in each iteration. Algorithms without a denoiser take None.
    :param algorithm: None for the recommended one, the name of one (``"drs"``, ``"hqs"``, ``"tv"``), or an instance
        with its own settings, for instance ``pnp.algorithms.HQS(weight=0.5)``.
    :param noise: standard deviation of the noise in y: a number, or a tensor broadcastable to y for noise of another
        strength in each measurement; of stacked operators, also a list with one for each. None for the operator's
        noise model (Gaussian, or ``operators.LowDose``); where it has none, it is estimated. Noise that coils have in
        common is whitened before, with ``operators.coils.whiten`` on k-space and maps; :func:`pnp.io.load` does it.
    :param iterations: number of iterations, default the algorithm's.
    :param start: image to start from, default the smoothest that fits the measurements.
    :param seed: seed of all that is random; the same seed gives the same image.
    :param callback: called after each iteration as ``callback(k, x)``; when what it returns is true the iteration
        stops.
    :param progress: show a progress bar.
    :param on_divergence: "raise" for an exception, "warn" for a warning and the image that fitted the data best.
    :param gradients: None for an image without gradients; "unrolled" for those through all iterations, with respect to
        y and the denoiser's parameters; "implicit" for those of the fixed point that the algorithm approaches at its
        last level, in constant memory. Scale, noise level and start count as given.
    :raises ValueError, TypeError: for input that is wrong or does not fit together; the message names the argument.
    :raises DivergenceError: when the iteration diverges.
    """
    if on_divergence not in ("raise", "warn"):
        raise ValueError(f'on_divergence: expected "raise" or "warn", got {on_divergence!r}')
    if gradients not in (None, "unrolled", "implicit"):
        raise ValueError(f'gradients: expected None, "unrolled" or "implicit", got {gradients!r}')
    began = time.perf_counter()
    algorithm = algorithms.find(algorithm, iterations)
    uses_denoiser = getattr(algorithm, "uses_denoiser", True)
    if denoiser is None and uses_denoiser:
        raise TypeError("denoiser: expected a callable denoiser(x, sigma), got None")
    if gradients is not None and not getattr(algorithm, "differentiable", True):
        raise ValueError(f"gradients: expected None with {type(algorithm).__name__}, whose steps are gradients")
    prior = denoiser if uses_denoiser else getattr(algorithm, "denoiser", None)
    with torch.set_grad_enabled(gradients is not None):
        problem = Problem(op, y, prior, noise, seed)
        state = (problem.first if start is None else _checked_start(start, problem),)
        schedule = list(algorithm.schedule(problem))
    split = {"setup": time.perf_counter() - began, "data": 0.0, "denoiser": 0.0}
    problem.seconds.update(data=0.0, denoiser=0.0)
    with torch.set_grad_enabled(gradients == "unrolled"):
        state, history, moved = iterate(problem, algorithm, schedule, state, callback, progress, on_divergence)
    if gradients == "implicit":
        problem.varying = False
        state = (_fixed_point(algorithm, problem, state, schedule[-1]),)
    return Solution(
        x=state[0] * problem.scale,
        noise=problem.measured_noise,
        converged=moved <= problem.noise.min().item() or not uses_denoiser,
        iterations=len(history["change"]),
        history=history,
        calls=problem.calls,
        seconds=time.perf_counter() - began,
        split=split | problem.seconds,
        algorithm=algorithm,
    )


def iterate(
    problem: Problem, algorithm, schedule: list, state: tuple, callback=None, progress=False, on_divergence="raise"
) -> tuple[tuple, dict[str, list[float]], float]:
    """The loop that all algorithms share: the last state, the history, and how far the image moved in the end."""
    history: dict[str, list[float]] = {"residual": [], "sigma": [], "rho": [], "change": []}
    least_noise = problem.noise.min().item()
    best = (problem.misfit(state[0].detach()).mean().item(), state[0])
    for k, parameters in enumerate(tqdm(schedule, disable=not progress)):
        before = state[0].detach()
        try:
            state = algorithm.step(problem, state, *parameters)
            x, lost = state[0].detach(), _lost(state[0], k)
        except DivergenceError as error:
            lost = f"diverged in iteration {k + 1}: {error}"
        if lost:
            if on_divergence == "raise":
                raise DivergenceError(lost, history)
            warnings.warn(f"{lost} The image that fitted the data best is returned.", stacklevel=3)
            return (best[1],), history, math.inf
        moved = (x - before).square().mean().sqrt().item()
        history["residual"].append(problem.misfit(x).mean().item())
        best = min(best, (history["residual"][-1], state[0]), key=lambda entry: entry[0])
        for name, value in zip(("sigma", "rho"), parameters):
            history[name].append(value.mean().item())
        if hasattr(algorithm, "objective"):
            history.setdefault("objective", []).append(algorithm.objective(problem, state).sum().item())
        history["change"].append(moved / max(x.square().mean().sqrt().item(), 1e-12))
        asked = None if callback is None else callback(k, x * problem.scale)
        if asked is not None and bool(asked):
            break
        if moved <= NO_LONGER_PAYS * least_noise:
            break
    return state, history, moved


def _fixed_point(algorithm, problem: Problem, state: tuple, parameters: tuple) -> Tensor:
    if len(state) > 1:
        raise ValueError(
            'gradients: "implicit" expects an algorithm that remembers the image alone, such as "hqs", "pgd" or "red", '
            f"got {type(algorithm).__name__}"
        )
    return fixed_point(lambda x: algorithm.step(problem, (x,), *parameters)[0], state[0])


def _checked_start(start: Tensor, problem: Problem) -> Tensor:
    start = torch.as_tensor(start)
    if start.shape != problem.first.shape or start.is_complex():
        kind = f"{tuple(start.shape)}{', complex' if start.is_complex() else ''}"
        raise ValueError(f"start: expected the image's shape {tuple(problem.first.shape)}, real, got {kind}")
    if not torch.isfinite(start).all():
        raise ValueError("start: expected finite values, got NaN or infinity")
    return start.to(problem.first) / problem.scale


def _lost(u: Tensor, k: int) -> str:
    """What is wrong where the iteration is lost: images are in units of their range, and far outside it, it is."""
    largest = u.abs().max().item()
    if largest <= 1e3:
        return ""
    found = "values that are not finite" if not torch.isfinite(u).all() else f"values of {largest:.0f} times the range"
    return (
        f"diverged in iteration {k + 1}: {found}. Is the operator's adjoint right (operators.check), and is the "
        "denoiser one for noise levels in units of the image?"
    )
