"""Reconstruction and segmentation judged together."""

from pnp.joint import tasks
from pnp.joint.evaluation import evaluate
from pnp.joint.finetuning import finetune
from pnp.joint.regimes import through
from pnp.joint.table import Table
from pnp.joint.uncertainty import SegmentedSamples, segment_samples

__all__ = ["SegmentedSamples", "Table", "evaluate", "finetune", "segment_samples", "tasks", "through"]
