"""Datasets, transforms and loaders."""

from fbnetv3.data.batches.batch import Batch
from fbnetv3.data.corrupt_images import CorruptImageCounter, CorruptImageError
from fbnetv3.data.datasets import DATASETS, build_dataset
from fbnetv3.data.image_io import ArrayImage, EncodedImage
from fbnetv3.data.loader import build_loader
from fbnetv3.data.transforms import AUGMENTATIONS, CROPS, Preprocessing, train_transform

__all__ = [
    "AUGMENTATIONS",
    "CROPS",
    "DATASETS",
    "ArrayImage",
    "Batch",
    "CorruptImageCounter",
    "CorruptImageError",
    "EncodedImage",
    "Preprocessing",
    "build_dataset",
    "build_loader",
    "train_transform",
]
