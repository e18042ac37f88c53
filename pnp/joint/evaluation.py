"""Every case measured by every operator, reconstructed by every solver, segmented, and scored."""

from __future__ import annotations

import csv
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import cloudpickle
import deepinv
import numpy as np
import pandas
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor
from tqdm import tqdm

from denoisers.weights import replace
from pnp import quality
from pnp.joint.table import KEYS, Table
from pnp.solver import solve
from segmentation import metrics

ORACLE = "oracle"


def evaluate(
    cases: Sequence[tuple],
    operators: Mapping[str, LinearPhysics],
    solvers: Iterable[str] | Mapping[str, str | Callable | None],
    segmenter,
    *,
    denoiser: Callable | None = None,
    noise: float | Mapping[str, float | None] | None = 0.01,
    seed: int = 0,
    workers: int = 1,
    out: str | Path | None = None,
    spacing: float | tuple[float, float] = 1.0,
    progress: bool = False,
) -> Table:
    """Judge reconstruction and segmentation together: a row for each case, operator and solver.

    :param cases: (image (1, C, H, W), labels (1, H, W)) pairs. In place of an image that is to be measured, a case may
        have measurements, a dictionary of y by the operator's name; a third entry is then the reference image, without
        which there are no image scores.
    :param operators: operators by name, for instance of rising acceleration.
    :param solvers: names of :func:`pnp.solve`'s algorithms, ``"pnp"`` for the recommended one and ``"oracle"`` for the
        image itself; or a dictionary from names to those or to callables ``solver(op, y)`` that return an image or
        samples (n, 1, C, H, W), whose mean is scored.
    :param segmenter: has ``classes`` and ``predict(image)``, such as :func:`segmentation.load` returns.
    :param denoiser: denoiser of the named solvers, default ``denoisers.load("medical")``.
    :param noise: standard deviation of the Gaussian noise that is added to the measurements, in their units; None for
        the operator's own noise model; or a dictionary of those by the operator's name. Of Gaussian noise, the solvers
        are not told.
    :param seed: seed of the noise, which is the same for all solvers, and of the solvers.
    :param workers: number of processes, each on one thread.
    :param out: CSV file of the rows, added to as they come. Rows that it has already are not computed again.
    :param spacing: pixel size, for HD95 and surface Dice.
    :param progress: show a progress bar.
    :return: the table; its columns are ``case, operator, solver, psnr, ssim, nrmse`` (the last inside the body, all of
        the magnitude), ``dice, iou, hd95, surface_dice, volume_error`` (means over the classes but the background; of
        the volume error's size), the same for each class (``dice_<class>`` and so on), ``seconds``,
        ``denoiser_calls``, ``operator_calls``.
    :raises ValueError: without cases, operators or solvers, or for shapes that do not agree.
    """
    cases, solvers = list(cases), dict(solvers) if isinstance(solvers, Mapping) else {name: name for name in solvers}
    for name, value in (("cases", cases), ("operators", operators), ("solvers", solvers)):
        if not len(value):
            raise ValueError(f"{name}: expected at least one, got none")
    for index, case in enumerate(cases):
        _check_case(index, case, operators, len(segmenter.classes))
    levels = noise if isinstance(noise, Mapping) else dict.fromkeys(operators, noise)
    if missing := set(operators) - set(levels):
        raise ValueError(f"noise: expected one for each operator, none for {', '.join(sorted(missing))}")
    if wrong := [level for level in levels.values() if level is not None and not 0 <= level < float("inf")]:
        raise ValueError(f"noise: expected finite standard deviations of at least 0 or None, got {wrong[0]}")
    rows = _read(out)
    done = {tuple(str(row[key]) for key in KEYS) for row in rows}
    jobs = []
    for index, case in enumerate(cases):
        for number, name in enumerate(operators):
            missing = {s: solver for s, solver in solvers.items() if (str(index), name, s) not in done}
            if missing:
                settings = (denoiser, levels[name], (seed, index, number), spacing)
                jobs.append((index, case, name, operators[name], missing, segmenter, *settings))
    for found in tqdm(_run(jobs, workers), "measuring, solving, segmenting", len(jobs), disable=not progress):
        rows += found
        _write(out, rows)
    wanted = {(str(i), name, s) for i in range(len(cases)) for name in operators for s in solvers}
    frame = pandas.DataFrame([row for row in rows if tuple(str(row[key]) for key in KEYS) in wanted])
    order = {name: k for names in (operators, solvers) for k, name in enumerate(names)}
    frame = frame.sort_values(list(KEYS), key=lambda c: c.map(order) if c.name != "case" else c, kind="stable")
    return Table(frame.reset_index(drop=True))


def _check_case(index: int, case: tuple, operators: Mapping, classes: int) -> None:
    image, labels, *rest = case
    if isinstance(image, Mapping):
        if missing := set(operators) - set(image):
            raise ValueError(f"cases: case {index} has no measurements for {', '.join(sorted(missing))}")
        image = rest[0] if rest else None
    if image is not None and (image.ndim != 4 or len(image) != 1 or image.shape[1] > 2):
        raise ValueError(f"cases: expected an image (1, 1 or 2, H, W), got {tuple(image.shape)} in case {index}")
    if labels.ndim != 3 or (image is not None and labels.shape != (1, *image.shape[-2:])):
        raise ValueError(
            f"cases: expected labels (1, H, W) of the image's size, got {tuple(labels.shape)} in case {index}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        found = f"{labels.min()} to {labels.max()} in case {index}"
        raise ValueError(f"cases: expected labels from 0 to {classes - 1}, the segmenter's classes, got {found}")


def _run(jobs: list[tuple], workers: int):
    if workers <= 1:
        yield from (_job(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(_unpacked, cloudpickle.dumps(job)) for job in jobs]):
            yield future.result()


def _unpacked(job: bytes) -> list[dict]:
    return _job(*cloudpickle.loads(job))


def _job(index, case, name, op, solvers, segmenter, denoiser, noise, seeds, spacing) -> list[dict]:
    """The rows of one case and operator."""
    image, labels, *rest = case
    if isinstance(image, Mapping):
        y, image = image[name], rest[0] if rest else None
    else:
        y = measure(op, image, noise, seeds)
    rows = []
    for solver_name, solver in solvers.items():
        began, calls = time.perf_counter(), {}
        if solver == ORACLE:
            x = image
            if x is None:
                raise ValueError(f"solvers: the oracle needs an image, case {index} has measurements only")
        else:
            x, calls = reconstruct(solver, op, y, denoiser, seeds[0])
        seconds = time.perf_counter() - began
        row = {"case": index, "operator": name, "solver": solver_name} | scores(x, image, labels, segmenter, spacing)
        operator_calls = sum(count for key, count in calls.items() if key != "denoiser")
        row |= {"seconds": seconds, "denoiser_calls": calls.get("denoiser", 0), "operator_calls": operator_calls}
        rows.append(row)
    return rows


def reconstruct(solver: str | Callable | None, op, y, denoiser, seed: int) -> tuple[Tensor, dict[str, int]]:
    """The image, or the mean of the samples, that a named solver or a callable finds, and its calls."""
    if callable(solver):
        x, calls = solver(op, y), {}
    else:
        if denoiser is None:
            import denoisers

            denoiser = denoisers.load("medical")
        solution = solve(op, y, denoiser, algorithm=None if solver == "pnp" else solver, seed=seed)
        x, calls = solution.x, solution.calls
    x = getattr(x, "x", x)
    return x.mean(0) if x.ndim == 5 else x, calls


@torch.no_grad()
def measure(op: LinearPhysics, image: Tensor, noise: float | None, seed: int | Sequence[int]) -> Tensor:
    """Measurements of an image with Gaussian noise, or with the operator's own noise model for ``noise=None``."""
    device = image.device
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if noise is None:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(number)
            return op(image)
    own = op.noise_model
    try:
        op.set_noise_model(deepinv.physics.GaussianNoise(noise, rng=torch.Generator(device).manual_seed(number)))
        return op(image)
    finally:
        op.set_noise_model(own)


def scores(x: Tensor, image: Tensor | None, labels: Tensor, segmenter, spacing=1.0) -> dict[str, float]:
    """Image and segmentation scores of one reconstruction (1, C, H, W), see :func:`evaluate`."""
    row = dict.fromkeys(("psnr", "ssim", "nrmse"), float("nan"))
    if image is not None:
        size = quality.magnitude(image)
        body = size > 0.05 * size.amax()
        row = {
            "psnr": quality.psnr(x, image).item(),
            "ssim": quality.ssim(x, image).item(),
            "nrmse": quality.nrmse(x, image, body).item(),
        }
    classes, found, labels = segmenter.classes, segmenter.predict(x).cpu(), labels.cpu().long()
    count = len(classes)
    by_class = {
        "dice": metrics.dice(found, labels, count)[0],
        "iou": metrics.iou(found, labels, count)[0],
        "hd95": metrics.hd95(found, labels, count, spacing)[0],
        "surface_dice": metrics.surface_dice(found, labels, count, spacing=spacing)[0],
        "volume_error": metrics.volume_error(found, labels, count)[0],
    }
    row |= {
        name: (value.abs() if name == "volume_error" else value).nanmean().item() for name, value in by_class.items()
    }
    for name, values in by_class.items():
        row |= {f"{name}_{label}": value for label, value in zip(classes[1:], values.tolist())}
    return row


def _read(out: str | Path | None) -> list[dict]:
    if out is None or not Path(out).exists():
        return []
    return pandas.read_csv(out, dtype={"operator": str, "solver": str}).to_dict("records")


def _write(out: str | Path | None, rows: list[dict]) -> None:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        replace(out, pandas.DataFrame(rows).to_csv(index=False, quoting=csv.QUOTE_MINIMAL).encode())
