"""The algorithms. Each is its parameters, a schedule, and a step that reads like its paper's.

To add one, write a dataclass with ``iterations``, ``schedule(problem)``, which gives the pairs (sigma, rho) of denoiser
level and data weight, and ``step(problem, state, sigma, rho)``, which returns the next state. States are tuples: the
image comes first, and the start is the image alone. An ``objective(problem, state)``, where there is one, goes into the
history; ``uses_denoiser = False`` tells that it takes none, ``differentiable = False`` forbids gradients through the
steps. Put its name into :data:`ALGORITHMS`.

The data term is f(x) = |A x - y|^2 / 2 throughout, and D is the denoiser. ``rho`` is the inverse of what many papers
call the step size.
"""

from __future__ import annotations

from dataclasses import is_dataclass, replace

from operators.operator import whole
from pnp.baselines import ConjugateGradients, Direct, TotalVariation, Wavelets
from pnp.descent import GradientStep
from pnp.diffusion import DAPS, DDNM, DDRM, DDS, DPS, FIRE, DiffPIR, PiGDM, REDDiff
from pnp.splitting import ADMM, FISTA, HQS, PGD, RED, DouglasRachford, PrimalDual

__all__ = [
    "ADMM",
    "ALGORITHMS",
    "DAPS",
    "DDNM",
    "DDRM",
    "DDS",
    "DPS",
    "FIRE",
    "FISTA",
    "HQS",
    "PGD",
    "RECOMMENDED",
    "RED",
    "ConjugateGradients",
    "DiffPIR",
    "Direct",
    "DouglasRachford",
    "GradientStep",
    "PiGDM",
    "PrimalDual",
    "REDDiff",
    "TotalVariation",
    "Wavelets",
    "find",
]

ALGORITHMS = {
    "hqs": HQS(),
    "admm": ADMM(),
    "pgd": PGD(),
    "fista": FISTA(),
    "drs": DouglasRachford(),
    "primal-dual": PrimalDual(),
    "red": RED(),
    "red-gradient": RED(iterations=100, fixed_point=False),
    "gradient-step": GradientStep(),
    "diffpir": DiffPIR(),
    "dds": DDS(),
    "ddnm": DDNM(),
    "ddrm": DDRM(),
    "daps": DAPS(),
    "fire": FIRE(),
    "pigdm": PiGDM(),
    "dps": DPS(),
    "red-diff": REDDiff(),
    "direct": Direct(),
    "cg": ConjugateGradients(),
    "tv": TotalVariation(),
    "wavelet": Wavelets(),
}
RECOMMENDED = "drs"


def find(algorithm, iterations: int | None):
    """The algorithm of a name (None: the recommended one), or the given one, with ``iterations`` if they are given."""
    name = RECOMMENDED if algorithm is None else algorithm
    if isinstance(name, str):
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm: expected one of {', '.join(ALGORITHMS)} or an algorithm, got {name!r}")
        algorithm = ALGORITHMS[name]
    elif not hasattr(algorithm, "step") or not hasattr(algorithm, "schedule") or isinstance(algorithm, type):
        kind = f"the class {algorithm.__name__}" if isinstance(algorithm, type) else type(algorithm).__name__
        raise TypeError(f"algorithm: expected a name or an algorithm, got {kind}")
    if iterations is not None:
        iterations = whole("iterations", iterations)
        if not is_dataclass(algorithm):
            raise TypeError(f"iterations: expected an algorithm that is a dataclass, got {type(algorithm).__name__}")
        algorithm = replace(algorithm, iterations=iterations)
        if algorithm.iterations != iterations:
            raise ValueError(f"iterations: expected {algorithm.iterations}, as many as sigma and rho, got {iterations}")
    if getattr(algorithm, "iterations", 1) < 1:
        raise ValueError(f"iterations: expected a whole number of at least 1, got {algorithm.iterations}")
    return algorithm
