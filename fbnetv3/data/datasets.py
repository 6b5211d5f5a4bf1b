"""Datasets by name. Each gives images and class indices, and says what an image is called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder

from fbnetv3.data.class_subset import load_class_subset
from fbnetv3.data.image_io import EncodedImage, read_encoded_image
from fbnetv3.data.shards import ShardDataset, open_shards
from fbnetv3.errors import DataError, UsageError
from fbnetv3.registry import Registry

DATASETS = Registry("dataset")

DIGITS_HELD_OUT = 0.2
_SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "test")}


class ImageDataset(Protocol):
    """What a registered dataset's builder returns."""

    classes: list[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image | EncodedImage, int]: ...

    def image_name(self, index: int) -> str:
        """What to call the image in a message: its path, or the dataset's name and the index."""
        ...


def build_dataset(name: str, root: str, split: str) -> ImageDataset:
    """A registered dataset.

    Args:
        name: its name: digits, cifar10, imagefolder, imagelist, shards, or what a user has registered in `DATASETS`.
        root: its folder.
        split: "train" or "val".

    Raises:
        UnknownNameError: no dataset of that name.
        DataError: a folder is missing or empty; the text names it.
    """
    if split not in _SPLIT_FOLDERS:
        raise UsageError(f"split '{split}' is neither train nor val")
    return DATASETS.get(name)(root, split)


class ArrayDataset:
    """Images that lie in memory, (N, H, W) or (N, H, W, 3), uint8."""

    def __init__(self, name: str, images: np.ndarray, targets: np.ndarray, classes: list[str]) -> None:
        self.name, self.images, self.targets, self.classes = name, images, targets, classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def image_name(self, index: int) -> str:
        return f"{self.name}[{index}]"


class FolderDataset(ImageFolder):
    """One folder a class, its images below it."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; set DATA.ROOT to the folder that holds it")
        try:
            super().__init__(str(folder), loader=read_encoded_image)
        except FileNotFoundError as error:
            empty = [d.name for d in sorted(folder.iterdir()) if d.is_dir() and not self._has_image(d)]
            what = f"no image in the class folder {', '.join(empty[:5])}" if empty else "no class folder in it"
            raise DataError(f"{folder}: {what}; each class needs a folder with images") from error

    @staticmethod
    def _has_image(folder: Path) -> bool:
        from torchvision.datasets.folder import is_image_file

        return any(is_image_file(f.name) for f in folder.rglob("*"))

    def image_name(self, index: int) -> str:
        return self.samples[index][0]


class ListDataset:
    """Images by path; the folder that an image lies in is its class."""

    def __init__(self, root: Path, paths: Sequence[str], classes: Sequence[str]) -> None:
        self.root, self.paths, self.classes = root, list(paths), list(classes)
        self._index = {name: index for index, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int]:
        return read_encoded_image(self.image_name(index)), self._index[Path(self.paths[index]).parent.name]

    def image_name(self, index: int) -> str:
        return str(self.root / self.paths[index])


@DATASETS.register(name="imagefolder")
def imagefolder(root: str, split: str) -> FolderDataset:
    """ImageNet's layout: `root/train/CLASS/*` and `root/val/CLASS/*` (or `test`)."""
    if not root:
        raise UsageError("DATA.ROOT is not set: give the folder that holds train/ and val/")
    folders = [Path(root).expanduser() / name for name in _SPLIT_FOLDERS[split]]
    return FolderDataset(next((folder for folder in folders if folder.is_dir()), folders[0]))


@DATASETS.register(name="imagelist")
def imagelist(root: str, split: str) -> ListDataset:
    """The images that a split file lists (`root` is the file; see `fbnetv3.data.class_subset`)."""
    if not root:
        raise UsageError("DATA.ROOT is not set: give the split file")
    listed = load_class_subset(Path(root).expanduser())
    if not listed.root.is_dir():
        raise DataError(f"{root}: lists images of {listed.root}, which is not there: draw the split again")
    return ListDataset(listed.root, getattr(listed, split), listed.classes)


@DATASETS.register(name="shards")
def shards(root: str, split: str) -> ShardDataset:
    """Tar files in webdataset's layout, see `fbnetv3.data.shards`."""
    return open_shards(root, split)


@DATASETS.register(name="cifar10")
def cifar10(root: str, split: str) -> ImageDataset:
    """CIFAR-10: torchvision's files (`root/cifar-10-batches-py`), or `root/train` and `root/test` with images."""
    folder = Path(root).expanduser() / CIFAR10.base_folder
    if folder.is_dir():
        try:
            data = CIFAR10(folder.parent, train=split == "train")
        except RuntimeError:
            raise DataError(f"{folder}: incomplete or damaged: unpack CIFAR-10's archive again") from None
        return ArrayDataset(f"cifar10/{split}", data.data, np.asarray(data.targets), data.classes)
    return imagefolder(root, split)


@DATASETS.register(name="digits")
def digits(root: str, split: str) -> ArrayDataset:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey; a fifth of every class is held out. Needs no files."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    indices = train_test_split(np.arange(len(images)), test_size=DIGITS_HELD_OUT, random_state=0, stratify=data.target)[
        split == "val"
    ]
    return ArrayDataset(f"digits/{split}", images[indices], data.target[indices], [str(d) for d in range(10)])
