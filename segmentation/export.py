"""Networks for other programs."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from denoisers import weights as files
from segmentation.library import Segmenter, standardise
from segmentation.ode import STEPPERS, SecondOrderBlock


class _Probabilities(torch.nn.Module):
    def __init__(self, segmenter: Segmenter):
        super().__init__()
        self.network, self.temperature = segmenter.network, segmenter.temperature

    def forward(self, images):
        return (self.network(standardise(images)) / self.temperature).softmax(1)


def to_onnx(segmenter: Segmenter, path: str | Path, size: tuple[int, int] = (256, 256)) -> Path:
    """Write a segmenter as an ONNX model from ``images`` (B, C, H, W), of any units, to ``probabilities`` (B, K, H, W).

    Needs ``pip install '.[export]'``.

    :param segmenter: the segmenter.
    :param path: file to write.
    :param size: height and width, which the model is for; the number of images is free.
    :raises ValueError: for equations that torchdiffeq solves, whose steps cannot be written down.
    """
    solvers = {block.solver for block in segmenter.modules() if isinstance(block, SecondOrderBlock)}
    if others := solvers - set(STEPPERS):
        found = ", ".join(sorted(others))
        raise ValueError(
            f"segmenter: expected equations solved by {' or '.join(STEPPERS)}, see solve_with, got {found}"
        )
    channels = getattr(segmenter.network, "in_channels", 1)
    example = torch.rand(2, channels, *size)
    model = _Probabilities(copy.deepcopy(segmenter)).eval().to("cpu", memory_format=torch.contiguous_format)
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1, max=4096)}},
        dynamo=True,
        verbose=False,
    )
    return files.replace(path, program.model_proto.SerializeToString())
