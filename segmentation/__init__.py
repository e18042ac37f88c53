"""Segmentation networks, their training, and trained weights."""

from segmentation.library import Segmenter, available, load, save
from segmentation.training import train
from segmentation.unet import UNet

__all__ = ["Segmenter", "UNet", "available", "load", "save", "train"]
