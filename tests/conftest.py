"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import denoisers
from pnp import demo

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images, which is not part of the package."""
    if not DATA.is_dir():
        pytest.skip("the folder of real images is not here")
    return DATA


@pytest.fixture(scope="session")
def medical():
    return denoisers.load("medical")


@pytest.fixture(scope="session")
def brain() -> torch.Tensor:
    """A real T1 slice (1, 1, 96, 80) in [0, 1]: the template at half its resolution."""
    image, _ = demo.brain()
    image = torch.nn.functional.avg_pool2d(image[:1, :, 20:212, 18:178], 2)
    return image / image.max()


@pytest.fixture(scope="session")
def kspace(brain) -> np.ndarray:
    """Fully sampled k-space (4, 96, 80) of the slice, four coils, smooth phase, a little noise."""
    import operators
    from operators.mri import to_complex

    phase = torch.linspace(-1, 1, 80)[None, :] + 0.5 * torch.linspace(-1, 1, 96)[:, None] ** 2
    image = torch.cat([brain * phase.cos(), brain * phase.sin()], 1)
    op = operators.MRI(torch.ones(96, 80), operators.coils.birdcage((96, 80), 4))
    y = op.A(image)
    y = y + 0.005 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return to_complex(y)[0].numpy()
