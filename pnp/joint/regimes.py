"""What a segmenter is trained on: clean images, reconstructions, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from tqdm import tqdm

from pnp import quality
from pnp.joint.evaluation import default_denoiser, measure, noise_levels, reconstruct
from segmentation.data import Pair


def through(
    pairs: Sequence[Pair],
    operators: Mapping[str, object],
    solver: str | Callable = "pnp",
    *,
    share: float = 1.0,
    denoiser: Callable | None = None,
    noise: float | Mapping[str, float | None] | None = 0.01,
    seed: int = 0,
    device=None,
    progress: bool = False,
) -> list[Pair]:
    """Labelled images as a solver reconstructs them, to train a segmenter on with :func:`segmentation.train`.

    :param pairs: images (H, W) or (1, H, W) with labels (H, W).
    :param operators: operators by name; each image is measured by a random one.
    :param solver: as in :func:`pnp.joint.evaluate`, but for the oracle.
    :param share: of the images that are reconstructed, at random; the others stay clean: 1 to train on reconstructions,
        0.5 on both alike.
    :param denoiser: denoiser of the named solvers, default ``denoisers.load("medical")``.
    :param noise: as in :func:`pnp.joint.evaluate`.
    :param seed: seed of the choices and of the noise.
    :param device: where operators and denoiser are, default the CPU.
    :return: as many pairs, in the same order; of complex reconstructions, their magnitudes.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    levels = noise_levels(noise, operators)
    if denoiser is None and not callable(solver):
        denoiser = default_denoiser().to(device or "cpu")
    rng, names, found = np.random.default_rng(seed), list(operators), []
    for index, (image, labels) in enumerate(tqdm(pairs, "reconstructing", disable=not progress)):
        name, clean = names[rng.integers(len(names))], rng.random() >= share
        if clean:
            found.append((image, labels))
            continue
        op = operators[name]
        x = torch.from_numpy(np.ascontiguousarray(image, np.float32)).view(1, 1, *image.shape[-2:]).to(device or "cpu")
        if (getattr(op, "img_size", None) or (1,))[0] == 2:
            x = torch.cat([x, torch.zeros_like(x)], 1)
        y = measure(op, x, levels[name], (seed, index))
        x, _ = reconstruct(solver, op, y, denoiser, seed, told=levels[name] is None)
        found.append((quality.magnitude(x)[0].view(image.shape).cpu().numpy(), labels))
    return found
