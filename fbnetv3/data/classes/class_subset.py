"""Subsets of an image folder, drawn at random and listed in a file: the search's 200 classes of ImageNet (Sec. 4)."""

from __future__ import annotations

import itertools
import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from fbnetv3.data.classes.class_names import repeated_names
from fbnetv3.data.image_folders import SkippedFiles, list_class_folders, scan_class_folders
from fbnetv3.errors import DataError
from fbnetv3.utils.files import expand_path, write_json
from fbnetv3.utils.text import describe_error, first_few

SEARCH_CLASSES = 200
SEARCH_NUM_VAL = 10_000


@dataclass(frozen=True)
class ClassSubset:
    """A subset of the classes of an image folder, split into training and validation images."""

    root: Path
    classes: tuple[str, ...]  # names of the class folders, sorted
    train: tuple[str, ...]  # paths relative to root, of the form CLASS/.../IMAGE
    val: tuple[str, ...]
    seed: int


def draw_class_subset(
    root: str | os.PathLike,
    num_classes: int = SEARCH_CLASSES,
    num_val: int = SEARCH_NUM_VAL,
    seed: int = 0,
    max_train: int | None = None,
) -> ClassSubset:
    """Draw classes from a folder of training images and hold out some of their images for validation.

    The defaults are the paper's: 200 classes of ImageNet, with 10,000 of their images held out.

    Args:
        root: folder with one subfolder per class, such as `imagenet/train`.
        num_classes: number of classes to draw.
        num_val: number of images to hold out, across all classes.
        seed: seed of the draw.
        max_train: number of remaining images to draw for training; None for all.

    Raises:
        DataError: the folder does not exist, has too few classes or images, or a class without images was drawn.
    """
    root = expand_path(root)
    skipped = SkippedFiles()
    folders = list_class_folders(root, skipped)
    if len(folders) < num_classes:
        raise DataError(
            f"{root}: has {len(folders)} class folders, fewer than the {num_classes} requested; lower --classes"
        )
    rng = random.Random(seed)
    classes = sorted(rng.sample(folders, num_classes))
    scan = scan_class_folders(root, classes, skipped)
    scan.require_images(root)
    images = list(itertools.chain(*scan.images))
    skipped.log(root, len(images))
    num_train = max_train or 1
    if len(images) < num_val + num_train:
        raise DataError(
            f"{root}: the classes drawn have only {len(images)} images, too few to hold out {num_val} and train on "
            f"{num_train}; lower these numbers"
        )
    # Hold out images across all classes, then subsample the rest
    val = set(rng.sample(images, num_val))
    train = [image for image in images if image not in val]
    if max_train is not None:
        train = sorted(rng.sample(train, max_train))
    # Each class needs a training image
    empty = sorted(set(classes) - set(map(class_of_path, train)))
    if empty:
        raise DataError(f"{root}: no training images are left in {first_few(empty)}; hold out fewer images")
    return ClassSubset(root.resolve(), tuple(classes), tuple(train), tuple(sorted(val)), seed)


def class_of_path(image: str) -> str:
    """Return the class of an image of a subset: the first folder of its path."""
    return image.split("/", 1)[0]


def save_class_subset(subset: ClassSubset, path: str | os.PathLike) -> None:
    """Write a subset to a JSON file."""
    write_json(Path(path), {**asdict(subset), "root": str(subset.root)}, indent=0)


def load_class_subset(path: str | os.PathLike) -> ClassSubset:
    """Read a subset from a JSON file."""
    try:
        data = json.loads(Path(path).read_text())
        names = {key: tuple(map(str, data[key])) for key in ("classes", "train", "val")}
        subset = ClassSubset(root=Path(data["root"]), **names, seed=int(data["seed"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        advice = "draw one with tools/make_split.py"
        raise DataError(
            f"{path}: cannot be read as a subset file ({describe_error(error)}); {advice}"
        ) from None
    if repeated := repeated_names(subset.classes):
        raise DataError(f"{path}: lists the class {repeated[0]} more than once: remove the repetition")
    image_classes = set(map(class_of_path, subset.train + subset.val))
    if not subset.train or not subset.val or not image_classes <= set(subset.classes):
        raise DataError(f"{path}: cannot be read as a subset file (no images, or images of other classes)")
    return subset
