"""Forward operators of medical imaging, each a ``deepinv.physics.LinearPhysics``."""

from operators import coils, masks
from operators.check import Report, check
from operators.mri import MRI

__all__ = ["MRI", "Report", "check", "coils", "masks"]
