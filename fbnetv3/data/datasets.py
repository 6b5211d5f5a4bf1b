"""Image classification datasets by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

from fbnetv3.data.classes.class_subset import ClassSubset, class_of_path, load_class_subset
from fbnetv3.data.csv_dataset import CsvDataset, open_csv
from fbnetv3.data.image_folders import scan_class_folders
from fbnetv3.data.image_io import EncodedImage, read_encoded_image
from fbnetv3.data.shards import ShardDataset, open_shards
from fbnetv3.errors import DataError, UsageError
from fbnetv3.registry import Registry
from fbnetv3.utils.files import expand_path

DATASETS = Registry("dataset")
"""Builders of datasets, called with the root (DATA.ROOT) and the split ("train" or "val"). They return an
`ImageDataset`."""

DIGITS_HELD_OUT = 0.2
_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "test")}
_reused: ContextVar[dict[tuple[str, str, str], ImageDataset] | None] = ContextVar("_reused", default=None)


class ImageDataset(Protocol):
    """The interface of a dataset: images, class indices and names.

    A method `order(generator)`, which draws the order of an epoch, is optional: shards have one that is faster to read.
    Class weights and balanced sampling also need an attribute `targets`, the class indices of all images. If images
    have several labels, an attribute `multi_label` is True, and the target of an image is a float tensor (classes,)
    with 1 for each of its labels. Images of other numbers of channels than Pillow's are `ArrayImage`s.
    """

    classes: list[str]  # names of the classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image | EncodedImage, int]: ...

    def image_name(self, index: int) -> str:
        """Return the name of an image for messages: its path, or the dataset's name and the index."""
        ...


def build_dataset(name: str, root: str, split: str) -> ImageDataset:
    """Build a registered dataset.

    Args:
        name: digits, cifar10, csv, imagefolder, imagelist, shards, or a name that a user has registered in `DATASETS`.
        root: folder or file of the dataset.
        split: "train" or "val".

    Raises:
        UsageError: `root` is not set, or there is no such split.
        UnknownNameError: no dataset of this name is registered.
        DataError: a folder or file is missing, empty or corrupt.
    """
    if split not in _SPLIT_FOLDERS:
        raise UsageError(f"unknown split '{split}': use train or val")
    datasets = _reused.get()
    if datasets is None:
        return DATASETS.get(name)(root, split)
    key = (name, root, split)
    if key not in datasets:
        datasets[key] = DATASETS.get(name)(root, split)
    return datasets[key]


@contextlib.contextmanager
def reuse_datasets(datasets: dict[tuple[str, str, str], ImageDataset]) -> Iterator[None]:
    """Keep the datasets that are built within the block in a dictionary, and return those that it already has.

    For several runs with the same images, whose names need to be read only once.
    """
    token = _reused.set(datasets)
    try:
        yield
    finally:
        _reused.reset(token)


@dataclass(eq=False)
class ArrayDataset:
    """Images in memory."""

    name: str
    images: np.ndarray  # uint8 (N, H, W) or (N, H, W, 3)
    targets: np.ndarray  # class indices (N,)
    classes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def image_name(self, index: int) -> str:
        """Return the dataset's name and the index."""
        return f"{self.name}[{index}]"


class FolderDataset:
    """A folder with one subfolder of images per class.

    Files that are no images are skipped, and their numbers logged in one line.

    Args:
        folder: folder that contains the class folders.
        allow_empty_classes: whether a class folder may be without images, as in validation.

    Raises:
        DataError: the folder does not exist, or has no class folder or no images.
    """

    def __init__(self, folder: Path, allow_empty_classes: bool = False) -> None:
        scan = scan_class_folders(folder)
        if not scan.classes:
            raise DataError(f"{folder}: no class folder in it; each class needs a folder with images")
        if not allow_empty_classes or not any(scan.images):
            scan.require_images(folder)
        self.classes = scan.classes
        self.samples = [
            (f"{folder}/{name}", index) for index, names in enumerate(scan.images) for name in names
        ]
        self.skipped = scan.skipped
        self.skipped.log(folder, len(self))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        path, target = self.samples[index]
        return read_encoded_image(path), target

    @property
    def targets(self) -> list[int]:
        """The class index of each image."""
        return [target for _, target in self.samples]

    def image_name(self, index: int) -> str:
        """Return the path of an image."""
        return self.samples[index][0]


class ListDataset:
    """The training or validation images of a `ClassSubset`."""

    def __init__(self, subset: ClassSubset, split: str) -> None:
        self.root = subset.root
        self.paths = subset.train if split == "train" else subset.val
        self.classes = list(subset.classes)
        class_index = {name: index for index, name in enumerate(self.classes)}
        self.targets = [class_index[class_of_path(path)] for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        return read_encoded_image(self.image_name(index)), self.targets[index]

    def image_name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.root / self.paths[index])


def _expand_root(root: str, kind: str) -> Path:
    if not root:
        raise UsageError(f"DATA.ROOT is not set: set it to the {kind}")
    path = expand_path(root)
    if kind.startswith("folder") and path.is_file():
        raise DataError(f"{root}: is a file, but DATA.ROOT must be the {kind}; unpack archives first")
    return path


@DATASETS.register(name="imagefolder")
def open_imagefolder(root: str, split: str, allow_empty_classes: bool = False) -> FolderDataset:
    """Open images in ImageNet's layout: `root/train/CLASS/*` and `root/val/CLASS/*` (or `test`).

    A class folder may be empty in validation, and with `allow_empty_classes` also in training.
    """
    parent = _expand_root(root, "folder that contains train/ and val/")
    folders = [parent / name for name in _SPLIT_FOLDERS[split]]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise DataError(
            f"{folders[0]}: no such folder; DATA.ROOT must be the folder that contains train/ and val/ "
            "(tools/make_split.py holds out images of a folder of classes)"
        )
    return FolderDataset(folder, allow_empty_classes or split != "train")


@DATASETS.register(name="imagelist")
def open_imagelist(root: str, split: str) -> ListDataset:
    """Open the images listed in a subset file, which `root` names; see `fbnetv3.data.classes.class_subset`."""
    subset = load_class_subset(_expand_root(root, "subset file"))
    if not subset.root.is_dir():
        raise DataError(
            f"{root}: lists images in {subset.root}, which does not exist: draw the subset again with "
            "tools/make_split.py"
        )
    return ListDataset(subset, split)


@DATASETS.register(name="csv")
def open_csv_folder(root: str, split: str) -> CsvDataset:
    """Open `root/train.csv` or `root/val.csv` (or `test.csv`); see `fbnetv3.data.csv_dataset`."""
    return open_csv(_expand_root(root, "folder that contains train.csv and val.csv"), _SPLIT_FOLDERS[split])


@DATASETS.register(name="shards")
def open_shard_folder(root: str, split: str) -> ShardDataset:
    """Open tar files in webdataset's layout; see `fbnetv3.data.shards`."""
    return open_shards(_expand_root(root, "folder that contains the shards"), _SPLIT_FOLDERS[split])


@DATASETS.register(name="cifar10")
def open_cifar10(root: str, split: str) -> ImageDataset:
    """Open CIFAR-10: torchvision's files in `root/cifar-10-batches-py`, or images in `root/train` and `root/test`."""
    folder = _expand_root(root, f"folder that contains {CIFAR10.base_folder}") / CIFAR10.base_folder
    if not folder.is_dir():
        return open_imagefolder(root, split)
    try:
        data = CIFAR10(folder.parent, train=split == "train")
    except RuntimeError:
        raise DataError(
            f"{folder}: is incomplete or corrupt; unpack the archive of CIFAR-10 again"
        ) from None
    return ArrayDataset(f"cifar10/{split}", data.data, np.asarray(data.targets), data.classes)


@DATASETS.register(name="digits")
def load_digits(root: str, split: str) -> ArrayDataset:
    """Load scikit-learn's 1,797 handwritten digits, 8 x 8 gray; a fifth of each class is held out."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    data = datasets.load_digits()
    # Scale gray levels from [0, 16] to [0, 255]
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    train_indices, val_indices = train_test_split(
        np.arange(len(images)), test_size=DIGITS_HELD_OUT, random_state=0, stratify=data.target
    )
    indices = train_indices if split == "train" else val_indices
    class_names = [str(digit) for digit in range(10)]
    return ArrayDataset(f"digits/{split}", images[indices], data.target[indices], class_names)
