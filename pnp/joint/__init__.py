"""Reconstruction and segmentation judged together."""

from pnp.joint import tasks
from pnp.joint.evaluation import evaluate
from pnp.joint.finetuning import finetune
from pnp.joint.regimes import through
from pnp.joint.table import Table
from pnp.joint.uncertainty import SegmentedSamples, segment_samples
from pnp.report import error_propagation

__all__ = [
    "SegmentedSamples",
    "Table",
    "error_propagation",
    "evaluate",
    "finetune",
    "segment_samples",
    "tasks",
    "through",
]
