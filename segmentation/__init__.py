"""Segmentation networks, their training, and trained weights."""

from segmentation import evaluation, explain, metrics
from segmentation.export import to_onnx
from segmentation.implicit_ukan import ImplicitUKAN2
from segmentation.library import Segmenter, available, load, save
from segmentation.training import train
from segmentation.transunet import TransUNet
from segmentation.ukan import UKAN
from segmentation.unet import UNet

__all__ = [
    "UKAN",
    "ImplicitUKAN2",
    "Segmenter",
    "TransUNet",
    "UNet",
    "available",
    "evaluation",
    "explain",
    "load",
    "metrics",
    "save",
    "to_onnx",
    "train",
]
