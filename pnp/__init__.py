"""Plug-and-play reconstruction for medical imaging, chained into segmentation."""

from pnp import algorithms, io
from pnp.solver import DivergenceError, Solution, solve

__all__ = ["DivergenceError", "Solution", "algorithms", "io", "solve"]
