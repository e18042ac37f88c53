"""Denoisers to use as priors: trained networks in the box, their training, and adapters to any image."""

from denoisers.adapt import adapt
from denoisers.continuous import ContinuousUNet
from denoisers.convergent import Equivariant, GradientStep, Stochastic, lipschitz
from denoisers.library import available, load, save
from denoisers.noise import estimate_noise
from denoisers.sampling import sample
from denoisers.training import train
from denoisers.unet import ResidualUNet

__all__ = [
    "ContinuousUNet",
    "Equivariant",
    "GradientStep",
    "ResidualUNet",
    "Stochastic",
    "adapt",
    "available",
    "estimate_noise",
    "lipschitz",
    "load",
    "sample",
    "save",
    "train",
]
