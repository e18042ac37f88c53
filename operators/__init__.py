"""Forward operators of medical imaging, each a ``deepinv.physics.LinearPhysics``."""

from operators import coils, masks, trajectories
from operators.check import Report, check
from operators.ct import ParallelBeamCT
from operators.mri import MRI
from operators.noncartesian import NonCartesianMRI

__all__ = ["MRI", "NonCartesianMRI", "ParallelBeamCT", "Report", "check", "coils", "masks", "trajectories"]
