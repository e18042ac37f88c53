"""Every case measured by every operator, reconstructed by every solver, segmented, and scored."""

from __future__ import annotations

import csv
import hashlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import cloudpickle
import deepinv
import numpy as np
import pandas
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor, nn
from tqdm import tqdm

from denoisers.weights import replace
from pnp import algorithms, quality
from pnp.joint.table import KEYS, Table
from pnp.solver import solve
from segmentation import metrics

ORACLE = "oracle"
MARK = "fingerprint"  # of what a row was computed from
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)
MODULE_PARTS = ("_parameters", "_buffers", "_modules")  # of torch.nn; other private attributes are caches


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
        the operator's own noise model; or a dictionary of those by the operator's name. Of Gaussian noise that is
        added here, the solvers are not told.
    :param seed: seed of the noise, which is the same for all solvers, and of the solvers.
    :param workers: number of processes, each on one thread.
    :param out: CSV file of the rows, added to as they come. Rows that it has already are not computed again, unless
        the case, the operator, solver, segmenter, denoiser, noise, seed or pixel size has changed. (Of functions, only
        the solver's name counts.)
    :param spacing: pixel size, for HD95 and surface Dice.
    :param progress: show a progress bar.
    :return: the table; its columns are ``case, operator, solver, psnr, ssim, nrmse`` (the last inside the body, all of
        the magnitude), ``dice, iou, hd95, surface_dice, volume_error`` (means over the classes but the background; of
        the volume error's size), the same for each class (``dice_<class>`` and so on), ``seconds``,
        ``denoiser_calls``, ``operator_calls``, ``fingerprint``. HD95 of a class that only one of two masks has is the
        image's diagonal; scores of a class that is in neither are NaN, and left out of means.
    :raises TypeError: for operators or solvers without names, or names that are no strings.
    :raises ValueError: without cases, operators or solvers, or for shapes that do not agree.
    :raises RuntimeError: naming case, operator and solver, where one fails or returns NaN.
    """
    solvers = (solvers,) if isinstance(solvers, str) else solvers
    cases, solvers = list(cases), dict(solvers) if isinstance(solvers, Mapping) else {name: name for name in solvers}
    if not isinstance(operators, Mapping):
        raise TypeError(f"operators: expected a dictionary from names to operators, got {type(operators).__name__}")
    for name, value in (("cases", cases), ("operators", operators), ("solvers", solvers)):
        if not len(value):
            raise ValueError(f"{name}: expected at least one, got none")
    for name, value in (("operators", operators), ("solvers", solvers)):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{name}: expected names, got {wrong[0]!r}")
    spacing = tuple(float(s) for s in np.broadcast_to(spacing, 2))
    if not all(0 < s < float("inf") for s in spacing):
        raise ValueError(f"spacing: expected positive sizes of a pixel, got {spacing}")
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if any(solver == ORACLE and name != ORACLE for name, solver in solvers.items() if isinstance(solver, str)):
        raise ValueError(f'solvers: expected the oracle under the name "{ORACLE}"')
    known = ("pnp", ORACLE, *algorithms.ALGORITHMS)
    if wrong := [solver for solver in solvers.values() if isinstance(solver, str) and solver not in known]:
        raise ValueError(f"solvers: expected some of {', '.join(known)}, got {wrong[0]!r}")
    if not hasattr(segmenter, "predict") or not hasattr(segmenter, "classes"):
        raise TypeError(f"segmenter: expected one such as segmentation.load() returns, got {type(segmenter).__name__}")
    cases = [check_case(index, case, operators, len(segmenter.classes)) for index, case in enumerate(cases)]
    if ORACLE in solvers and any(image is None for _, image, _ in cases):
        raise ValueError("solvers: the oracle needs an image, a case has measurements only")
    levels = noise_levels(noise, operators)
    if denoiser is None and any(not callable(solver) and solver != ORACLE for solver in solvers.values()):
        denoiser = default_denoiser()
    rows = _read(out)
    done = {tuple(str(row.get(key)) for key in (*KEYS, MARK)) for row in rows}
    shared, wanted, jobs = _mark(segmenter, denoiser, seed, spacing), set(), []
    of_operators = {name: _mark(op, levels[name]) for name, op in operators.items()}
    of_solvers = {name: _mark(solver) for name, solver in solvers.items()}
    for index, case in enumerate(cases):
        of_case = _mark(*case)
        for number, name in enumerate(operators):
            marks = {s: _mark(shared, of_case, of_operators[name], number, of_solvers[s]) for s in solvers}
            keys = {s: (str(index), name, s, mark) for s, mark in marks.items()}
            wanted.update(keys.values())
            missing = {s: solver for s, solver in solvers.items() if keys[s] not in done}
            if missing:
                settings = (denoiser, levels[name], (seed, index, number), spacing, marks)
                jobs.append((index, case, name, operators[name], missing, segmenter, *settings))
    for found in tqdm(_run(jobs, workers), "measuring, solving, segmenting", len(jobs), disable=not progress):
        fresh = {tuple(str(row[key]) for key in KEYS) for row in found}
        rows = [row for row in rows if tuple(str(row[key]) for key in KEYS) not in fresh] + found
        _write(out, rows)
    frame = pandas.DataFrame([row for row in rows if tuple(str(row[key]) for key in (*KEYS, MARK)) in wanted])
    order = {name: k for names in (operators, solvers) for k, name in enumerate(names)}
    frame = frame.sort_values(list(KEYS), key=lambda c: c.map(order) if c.name != "case" else c, kind="stable")
    return Table(frame.reset_index(drop=True))


def check_case(index: int, case: tuple, operators: Mapping, classes: int) -> tuple:
    """Measurements by the operator's name or None, image or None, and labels, all as tensors."""
    if len(case) not in (2, 3):
        raise ValueError(f"cases: expected (image, labels) or (measurements, labels[, image]), got {len(case)} entries")
    image, labels, *rest = case
    y, labels = None, torch.as_tensor(labels)
    if isinstance(image, Mapping):
        y, image = image, rest[0] if rest else None
        if missing := set(operators) - set(y):
            raise ValueError(f"cases: case {index} has no measurements for {', '.join(sorted(missing))}")
    image = None if image is None else torch.as_tensor(image)
    if image is not None and (image.ndim != 4 or len(image) != 1 or image.shape[1] > 2):
        raise ValueError(f"cases: expected an image (1, 1 or 2, H, W), got {tuple(image.shape)} in case {index}")
    if labels.ndim != 3 or (image is not None and labels.shape != (1, *image.shape[-2:])):
        wanted = "(1, H, W)" if image is None else (1, *image.shape[-2:])
        raise ValueError(f"cases: expected labels {wanted} like the image, got {tuple(labels.shape)} in case {index}")
    if labels.min() < 0 or labels.max() >= classes or (labels != labels.long()).any():
        found = f"{labels.min()} to {labels.max()} in case {index}"
        raise ValueError(f"cases: expected whole labels from 0 to {classes - 1}, the segmenter's classes, got {found}")
    return y, image, labels.long()


def noise_levels(noise: float | Mapping[str, float | None] | None, operators: Mapping) -> dict[str, float | None]:
    """The standard deviation for each operator, None for its own noise model."""
    levels = noise if isinstance(noise, Mapping) else dict.fromkeys(operators, noise)
    if missing := set(operators) - set(levels):
        raise ValueError(f"noise: expected one for each operator, none for {', '.join(sorted(missing))}")
    if wrong := [level for level in levels.values() if level is not None and not 0 <= level < float("inf")]:
        raise ValueError(f"noise: expected finite standard deviations of at least 0 or None, got {wrong[0]}")
    return dict(levels)


def default_denoiser() -> nn.Module:
    """The one that named solvers get where none is given."""
    import denoisers

    return denoisers.load("medical")


def _mark(*parts) -> str:
    """What a row was computed from, by value; of functions, the kind only."""
    digest = hashlib.sha256()
    for part in _contents(parts, set()):
        digest.update(part)
    return digest.hexdigest()[:12]


def _contents(value, seen: set[int]) -> Iterator[bytes]:
    """All that a value consists of: numbers, tensors, and objects by their public attributes and plain private ones."""
    yield type(value).__name__.encode()
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().contiguous().numpy() if isinstance(value, Tensor) else np.ascontiguousarray(value)
        yield f"{array.dtype} {array.shape}".encode() + array.tobytes()
    elif isinstance(value, PLAIN):
        yield repr(value).encode()
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _contents(part, seen)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield repr(name).encode()
            yield from _contents(part, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and id(value) not in seen:
        seen.add(id(value))
        for name, part in sorted(vars(value).items()):
            if name in MODULE_PARTS or not name.startswith("_") or isinstance(part, PLAIN):
                yield name.encode()
                yield from _contents(part, seen)


def _run(jobs: list[tuple], workers: int) -> Iterator[list[dict]]:
    """The rows of each job; where one fails, those that are under way are still given before the error is raised."""
    if workers == 1:
        yield from (_job(*job) for job in jobs)
        return
    context, failed = multiprocessing.get_context("spawn"), None
    left, waiting = iter(jobs), set()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        while True:
            for job in islice(left, 2 * workers - len(waiting)):  # a few at a time: each carries networks and operator
                waiting.add(pool.submit(_unpacked, cloudpickle.dumps(job)))
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                if error := future.exception():
                    failed, left = failed or error, iter(())
                else:
                    yield future.result()
    if failed:
        raise failed


def _unpacked(job: bytes) -> list[dict]:
    return _job(*cloudpickle.loads(job))


def _job(index, case, name, op, solvers, segmenter, denoiser, noise, seeds, spacing, marks) -> list[dict]:
    """The rows of one case and operator."""
    measurements, image, labels = case
    with _named(f"case {index}, operator {name}"):
        y = measure(op, image, noise, seeds) if measurements is None else measurements[name]
    rows = []
    for solver_name, solver in solvers.items():
        began, calls, x = time.perf_counter(), {}, image
        with _named(f"case {index}, operator {name}, solver {solver_name}"):
            if solver != ORACLE:
                x, calls = reconstruct(solver, op, y, denoiser, seeds[0], told=noise is None)
            seconds = time.perf_counter() - began
            found = scores(x, image, labels, segmenter, spacing)
        row = {"case": index, "operator": name, "solver": solver_name} | found
        operator_calls = sum(count for key, count in calls.items() if key != "denoiser")
        row |= {"seconds": seconds, "denoiser_calls": calls.get("denoiser", 0), "operator_calls": operator_calls}
        rows.append(row | {MARK: marks[solver_name]})
    return rows


@contextmanager
def _named(what: str):
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{what}: {error}") from error


def reconstruct(
    solver: str | Callable | None, op, y, denoiser: Callable | None, seed: int, told: bool = True
) -> tuple[Tensor, dict[str, int]]:
    """The image, or the mean of the samples, that a named solver or a callable finds, and its calls.

    :param told: whether the solver may know the operator's noise model.
    :raises ValueError: where the image has NaN or infinity.
    """
    with noise_model(op, op.noise_model if told else deepinv.physics.ZeroNoise()):
        if callable(solver):
            found = solver(op, y)
        else:
            found = solve(op, y, denoiser, algorithm=None if solver == "pnp" else solver, seed=seed)
    x = torch.as_tensor(getattr(found, "x", found))
    if not torch.isfinite(x).all():
        raise ValueError("solver: expected a finite image, got NaN or infinity")
    return x.mean(0) if x.ndim == 5 else x, getattr(found, "calls", {})


@contextmanager
def noise_model(op: LinearPhysics, model) -> Iterator[None]:
    """An operator with another noise model for a while."""
    own = op.noise_model
    op.set_noise_model(model)
    try:
        yield
    finally:
        op.set_noise_model(own)


@torch.no_grad()
def measure(op: LinearPhysics, image: Tensor, noise: float | None, seed: int | Sequence[int]) -> Tensor:
    """Measurements of an image with Gaussian noise, or with the operator's own noise model for ``noise=None``."""
    device = image.device
    number = int(np.random.SeedSequence(seed).generate_state(1)[0])
    if noise is not None:
        generator = torch.Generator(device).manual_seed(number)
        with noise_model(op, deepinv.physics.GaussianNoise(noise, rng=generator)):
            return op(image)
    generator = getattr(op.noise_model, "rng", None)
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(number)
        if generator is None:
            return op(image)
        try:
            generator.manual_seed(number)
            return op(image)
        finally:
            generator.set_state(state)


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
    lost = by_class["hd95"].isnan() & (by_class["dice"] == 0)  # a class that is in one of the two only
    by_class["hd95"][lost] = math.hypot(*(np.array(labels.shape[-2:]) * spacing))
    row |= {
        name: (value.abs() if name == "volume_error" else value).nanmean().item() for name, value in by_class.items()
    }
    for name, values in by_class.items():
        row |= {f"{name}_{label}": value for label, value in zip(classes[1:], values.tolist())}
    return row


def _read(out: str | Path | None) -> list[dict]:
    if out is None or not Path(out).exists():
        return []
    try:
        text = dict.fromkeys(("operator", "solver", MARK), str)
        # an empty field is what a missing value is written as; "None" may be a name
        rows = pandas.read_csv(out, dtype=text, keep_default_na=False, na_values=[""]).to_dict("records")
    except pandas.errors.EmptyDataError:
        rows = [{}]
    if rows and (missing := set(KEYS) - set(rows[0])):
        raise ValueError(f"out: expected a file of joint scores, {out} has no columns {', '.join(sorted(missing))}")
    return rows


def _write(out: str | Path | None, rows: list[dict]) -> None:
    if out is not None:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        replace(out, pandas.DataFrame(rows).to_csv(index=False, quoting=csv.QUOTE_MINIMAL).encode())
