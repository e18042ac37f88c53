"""Operators on a GPU give what they give on the CPU."""

from __future__ import annotations

import math

import pytest
import torch

import operators
from operators import coils, masks, trajectories

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

ELEMENTS = torch.stack([torch.linspace(-2e-3, 2e-3, 7), torch.zeros(7)], -1)
MAKE = {
    "cartesian": lambda: operators.MRI(masks.cartesian((40, 32), 2, 8, 0), coils.birdcage((40, 32), 4)),
    "radial": lambda: operators.NonCartesianMRI(trajectories.radial(9, 40), (40, 32), coils.birdcage((40, 32), 4)),
    "parallel": lambda: operators.ParallelBeamCT((40, 32), torch.arange(9) * math.pi / 9),
    "fan": lambda: operators.FanBeamCT((40, 32), torch.arange(9) * math.pi / 4.5, 100, 50),
    "plane waves": lambda: operators.PlaneWaveUltrasound((40, 32), [-0.1, 0.1], ELEMENTS, 200, 20e6),
    "psf": lambda: operators.PSFUltrasound(torch.rand(3, 5), (40, 32)),
}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("moved", [False, True])
def test_agrees_with_the_cpu(name, moved):
    op = MAKE[name]()
    x = torch.randn(2, *op.image_shape)
    y = op.A(x)
    back = op.A_adjoint_A(x)
    op = op.to("cuda") if moved else op
    assert torch.allclose(op.A(x.cuda()).cpu(), y, atol=1e-4 * y.abs().max().item())
    assert torch.allclose(op.A_adjoint_A(x.cuda()).cpu(), back, atol=1e-4 * back.abs().max().item())
    assert operators.check(op, op.image_shape, device="cuda").passed(1e-4)
