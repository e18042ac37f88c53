"""Plug-and-play reconstruction for medical imaging, chained into segmentation."""

from pnp import algorithms, io, joint
from pnp.sampling import Samples, sample
from pnp.solver import DivergenceError, Solution, solve

__all__ = ["DivergenceError", "Samples", "Solution", "algorithms", "io", "joint", "sample", "solve"]
