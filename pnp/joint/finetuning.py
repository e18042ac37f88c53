"""Reconstruction adapted to the segmentation that follows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import deepinv
import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from pnp import quality
from pnp.joint.evaluation import check_case, measure, noise_levels, noise_model
from pnp.solver import solve
from segmentation.library import standardise


def finetune(
    cases: Sequence[tuple[Tensor, Tensor]],
    operators: Mapping[str, object],
    denoiser: nn.Module,
    segmenter,
    *,
    weight: float = 0.5,
    algorithm="hqs",
    iterations: int = 6,
    steps: int = 200,
    learning_rate: float = 1e-4,
    train_segmenter: bool = False,
    noise: float | Mapping[str, float | None] | None = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> tuple[nn.Module, object]:
    """Train a denoiser inside its solver for what the segmentation makes of the reconstruction.

    The solver is unrolled; its iterations share the denoiser. The loss is ``(1 - weight)`` times the squared error of
    the image, relative to its error when the case first comes up, plus ``weight`` times Dice and cross-entropy of the
    segmentation (Adler et al., *Task adapted reconstruction for inverse problems*, 2018). Memory is that of a single
    denoiser call, since each is computed again for its gradients.

    :param cases: (image (1, C, H, W), labels (1, H, W)) pairs, or (measurements, labels, image) with a dictionary of
        measurements by the operator's name, as in :func:`pnp.joint.evaluate`.
    :param operators: operators by name; each step takes a random one.
    :param denoiser: a network; it stays as it is, a copy is trained.
    :param segmenter: a :class:`segmentation.Segmenter`; with ``train_segmenter``, a copy is trained along.
    :param weight: of the segmentation, from 0 to 1.
    :param algorithm: as in :func:`pnp.solve`, one that can be unrolled.
    :param iterations: of the algorithm.
    :param steps: optimiser steps.
    :param learning_rate: of Adam.
    :param noise: as in :func:`pnp.joint.evaluate`.
    :param seed: seed of cases, operators and noise.
    :return: the trained denoiser and segmenter.
    :raises ValueError: without cases, for a case without image, or a weight that is not between 0 and 1.
    :raises FloatingPointError: when the loss is no longer finite.
    """
    if not cases or not operators:
        raise ValueError("cases, operators: expected at least one of each, got none")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight: expected 0 to 1, got {weight}")
    levels = noise_levels(noise, operators)
    cases = [check_case(index, case, operators, len(segmenter.classes)) for index, case in enumerate(cases)]
    if missing := [index for index, (_, image, _) in enumerate(cases) if image is None]:
        raise ValueError(f"cases: expected an image in each case to learn from, got none in case {missing[0]}")
    trained, adapted = copy.deepcopy(denoiser).requires_grad_(), copy.deepcopy(segmenter)
    adapted.requires_grad_(train_segmenter)
    parameters = [p for part in (trained, adapted) for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    rng, names = np.random.default_rng(seed), list(operators)
    before: dict[tuple[int, str], float] = {}
    bar = tqdm(range(steps), "fine-tuning", disable=not progress)
    for step in bar:
        index, name = int(rng.integers(len(cases))), names[rng.integers(len(names))]
        (measured, image, labels), op = cases[index], operators[name]
        y = measure(op, image, levels[name], (seed, step)) if measured is None else measured[name]
        with noise_model(op, op.noise_model if levels[name] is None else deepinv.physics.ZeroNoise()):
            settings = {"algorithm": algorithm, "iterations": iterations, "gradients": "unrolled"}
            x = solve(op, y, _Recomputed(trained), **settings).x
        if not x.requires_grad:
            raise ValueError(f"algorithm: expected one that calls the denoiser, got {algorithm!r}")
        error = (quality.magnitude(x) - quality.magnitude(image)).square().mean()
        relative = error / before.setdefault((index, name), error.item())
        magnitude = quality.magnitude(x)[:, None]
        loss = (1 - weight) * relative + weight * criterion(adapted.network(standardise(magnitude)), labels[:, None])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"fine-tuning diverged at step {step}: the loss is {loss.item()}")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return trained.requires_grad_(False), adapted.requires_grad_(False)


class _Recomputed:
    """A denoiser that keeps its input only, and is computed again on the way back."""

    def __init__(self, denoiser: Callable):
        self.denoiser = denoiser

    def __call__(self, x: Tensor, sigma) -> Tensor:
        return checkpoint(self.denoiser, x, sigma, use_reentrant=False)
