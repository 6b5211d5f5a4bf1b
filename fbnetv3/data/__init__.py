"""Datasets, transforms and loaders."""

from fbnetv3.data.datasets import DATASETS, build_dataset
from fbnetv3.data.image_io import DamagedImageError, EncodedImage
from fbnetv3.data.loader import Batch, DamageCounter, build_loader
from fbnetv3.data.transforms import Preprocessing, train_pixels, train_transform

__all__ = [
    "DATASETS",
    "Batch",
    "DamageCounter",
    "DamagedImageError",
    "EncodedImage",
    "Preprocessing",
    "build_dataset",
    "build_loader",
    "train_pixels",
    "train_transform",
]
