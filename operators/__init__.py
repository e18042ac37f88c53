"""Forward operators of medical imaging, each a ``deepinv.physics.LinearPhysics``."""

from operators import bmode, coils, masks, phantoms, trajectories
from operators.check import Report, check
from operators.ct import ParallelBeamCT
from operators.fan import FanBeamCT
from operators.lowdose import LowDose
from operators.mri import MRI
from operators.noncartesian import NonCartesianMRI
from operators.operator import compose, stack
from operators.ultrasound import PlaneWaveUltrasound, PSFUltrasound

__all__ = [
    "MRI",
    "FanBeamCT",
    "LowDose",
    "NonCartesianMRI",
    "PSFUltrasound",
    "ParallelBeamCT",
    "PlaneWaveUltrasound",
    "Report",
    "bmode",
    "check",
    "coils",
    "compose",
    "masks",
    "phantoms",
    "stack",
    "trajectories",
]
