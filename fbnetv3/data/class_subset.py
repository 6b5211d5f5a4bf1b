"""Subsets of an image folder, drawn by a seed and listed in a file: the search's 200 classes of ImageNet (Sec. 4)."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from fbnetv3.data.image_io import is_image_file
from fbnetv3.errors import DataError
from fbnetv3.utils.checks import check_int
from fbnetv3.utils.files import write_json
from fbnetv3.utils.text import describe_error, first_few

SEARCH_CLASSES = 200
SEARCH_HELD_OUT = 10_000


@dataclass(frozen=True)
class ClassSubset:
    """A subset of the classes of an image folder, split into training and validation images."""

    root: Path
    """The image folder."""
    classes: tuple[str, ...]
    """Names of the class folders, sorted."""
    train: tuple[str, ...]
    """Paths of the training images relative to `root`, of the form CLASS/IMAGE."""
    val: tuple[str, ...]
    seed: int
    """The seed that the subset was drawn with."""


def draw_class_subset(
    root: str | os.PathLike,
    num_classes: int = SEARCH_CLASSES,
    num_val: int = SEARCH_HELD_OUT,
    seed: int = 0,
    max_train: int | None = None,
) -> ClassSubset:
    """Draw classes from a folder of training images and hold out some of their images for validation.

    The defaults are the paper's: 200 classes of ImageNet, with 10,000 of their images held out.

    Args:
        root: a folder with one subfolder per class, such as `imagenet/train`.
        num_classes: number of classes to draw.
        num_val: number of images to hold out, across all classes.
        seed: random seed.
        max_train: number of remaining images to draw for training; None for all.

    Raises:
        DataError: the folder is missing, or has too few classes or images.
    """
    check_int(num_classes, "number of classes", 1)
    check_int(num_val, "number of images to hold out", 1)
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if len(folders) < num_classes:
        raise DataError(f"{root}: has {len(folders)} class folders, fewer than {num_classes}")

    # Sort names, so that the result does not depend on the file system
    rng = random.Random(seed)
    classes = sorted(rng.sample(folders, num_classes))
    images = []
    for name in classes:
        files = filter(is_image_file, sorted(os.listdir(root / name)))
        images += [f"{name}/{file}" for file in files]
    if len(images) <= num_val:
        problem = f"the {num_classes} classes drawn have {len(images)} images, too few to hold {num_val} out"
        raise DataError(f"{root}: {problem}")

    # Hold out images across all classes, then subsample the rest
    val = set(rng.sample(images, num_val))
    train = [image for image in images if image not in val]
    if max_train is not None:
        if not 1 <= max_train <= len(train):
            problem = f"cannot draw {max_train} training images: {len(train)} are left"
            raise DataError(f"{root}: {problem}; lower --train or --held-out")
        train = sorted(rng.sample(train, max_train))

    # Each class needs a training image
    empty = sorted(set(classes) - {image.split("/")[0] for image in train})
    if empty:
        raise DataError(f"{root}: no training images are left in {first_few(empty)}: lower --held-out")
    return ClassSubset(root.resolve(), tuple(classes), tuple(train), tuple(sorted(val)), seed)


def save_class_subset(subset: ClassSubset, path: str | os.PathLike) -> None:
    """Write a subset to a JSON file.

    Raises:
        OutputError: it cannot be written.
    """
    content = {**asdict(subset), "root": str(subset.root)}
    write_json(Path(path), content, indent=0)


def load_class_subset(path: str | os.PathLike) -> ClassSubset:
    """Read a subset from a JSON file.

    Raises:
        DataError: the file is missing or is not a subset file.
    """
    try:
        return _parse(json.loads(Path(path).read_text()))
    except FileNotFoundError:
        raise DataError(f"{path}: no such subset file; draw one with tools/make_split.py") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as a subset file ({describe_error(error)})") from None


def _parse(data: dict) -> ClassSubset:
    subset = ClassSubset(
        root=Path(data["root"]),
        classes=tuple(map(str, data["classes"])),
        train=tuple(map(str, data["train"])),
        val=tuple(map(str, data["val"])),
        seed=int(data["seed"]),
    )
    if not subset.train or not subset.val:
        raise ValueError("no images")
    other_classes = {Path(image).parent.name for image in subset.train + subset.val} - set(subset.classes)
    if other_classes:
        raise ValueError(f"images of other classes: {first_few(sorted(other_classes))}")
    return subset
