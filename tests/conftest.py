"""Fixtures shared by the tests."""

from __future__ import annotations

from pathlib import Path

import deepinv
import numpy as np
import pytest
import torch

import denoisers
import operators
from operators import coils, masks
from operators.mri import to_complex
from pnp import demo
from segmentation import Segmenter

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
def reference() -> Path:
    """The folder of published networks' outputs, which is not part of the package."""
    folder = DATA.with_name("reference")
    if not folder.is_dir():
        pytest.skip("the folder of published networks' outputs is not here")
    return folder


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
    phase = torch.linspace(-1, 1, 80)[None, :] + 0.5 * torch.linspace(-1, 1, 96)[:, None] ** 2
    image = torch.cat([brain * phase.cos(), brain * phase.sin()], 1)
    op = operators.MRI(torch.ones(96, 80), coils.birdcage((96, 80), 4))
    y = op.A(image)
    y = y + 0.005 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return to_complex(y)[0].numpy()


# between equal operators' outputs: Fourier transforms round as the place of arrays in memory has it
LAST_DIGITS = 1e-5


def relative(a, b) -> float:
    """Error of a against b."""
    return ((a - b).norm() / b.norm()).item()


class LocalWiener(deepinv.models.Denoiser):
    """A denoiser of any number of channels, homogeneous in x and sigma."""

    def forward(self, x, sigma, **kwargs):
        mean = torch.nn.functional.avg_pool2d(x, 5, 1, 2, count_include_pad=False)
        variance = torch.nn.functional.avg_pool2d((x - mean) ** 2, 5, 1, 2, count_include_pad=False)
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return mean + (x - mean) * (variance / (variance + sigma**2).clamp_min(1e-20))


@pytest.fixture
def multicoil(brain):
    """Operator, measurements and complex truth: four coils, 2.5 times undersampled, 1 % noise."""
    phase = 0.8 * torch.linspace(-1, 1, 80)[None, :] + 0.6 * torch.linspace(-1, 1, 96)[:, None]
    truth = torch.cat([brain * phase.cos(), brain * phase.sin()], 1)
    op = operators.MRI(masks.cartesian((96, 80), 2.5, 12, seed=0), coils.birdcage((96, 80), 4))
    op.set_noise_model(deepinv.physics.GaussianNoise(0.01, rng=torch.Generator().manual_seed(0)))
    return op, op(truth), truth


SIZE = (48, 40)  # of the labelled phantoms


class Threshold(torch.nn.Module):
    """Brightness in three classes."""

    in_channels = 1

    def forward(self, x):
        return 10 * torch.cat([0 * x, x - 1.1, 2 * x - 4.1], 1)


@pytest.fixture(scope="session")
def segmenter():
    """Of labelled phantoms; has nothing to learn."""
    return Segmenter(Threshold(), ("background", "grey", "bright"))


def phantom(seed):
    """Complex image (1, 2, H, W) and labels (1, H, W) of a bright block in a grey one, somewhere."""
    rng = np.random.default_rng(seed)
    image, labels = torch.zeros(1, 1, *SIZE), torch.zeros(1, *SIZE, dtype=torch.long)
    row, column = rng.integers(8, 16, 2)
    image[..., row : row + 20, column : column + 16] = 0.6
    labels[:, row : row + 20, column : column + 16] = 1
    image[..., row + 6 : row + 13, column + 5 : column + 11] = 1.0
    labels[:, row + 6 : row + 13, column + 5 : column + 11] = 2
    return torch.cat([image, torch.zeros_like(image)], 1), labels


def scanner(acceleration):
    return operators.MRI(masks.cartesian(SIZE, acceleration, calibration=8, seed=0))
