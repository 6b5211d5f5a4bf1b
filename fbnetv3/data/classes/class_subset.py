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
    num_classes: int | None = SEARCH_CLASSES,
    num_val: int | float = SEARCH_NUM_VAL,
    seed: int = 0,
    max_train: int | None = None,
) -> ClassSubset:
    """Draw classes from a folder of training images and hold out some of their images for validation.

    The defaults are the paper's: 200 classes of ImageNet, with 10,000 of their images held out.

    Args:
        root: folder with one subfolder per class, such as `imagenet/train`.
        num_classes: number of classes to draw; None for all.
        num_val: number of images to hold out, across all classes; or a fraction below 1, such as 0.2, of each class (at
            least one image of a class, but not its last).
        seed: seed of the draw.
        max_train: number of remaining images to draw for training; None for all.

    Raises:
        DataError: the folder does not exist, has too few classes or images, or a class without images was drawn.
    """
    root = expand_path(root)
    skipped = SkippedFiles()
    folders = list_class_folders(root, skipped)
    if num_classes is None:
        num_classes = len(folders)
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
    # Hold out images of each class or across all, then subsample the rest
    groups = scan.images if num_val < 1 else [images]
    numbers = [_num_held_out(len(group), num_val) for group in groups]
    num_train = max_train or 1
    if len(images) < sum(numbers) + num_train:
        raise DataError(
            f"{root}: the classes drawn have only {len(images)} images, too few to hold out {sum(numbers)} and train "
            f"on {num_train}; lower these numbers"
        )
    val = {
        image for group, number in zip(groups, numbers, strict=True) for image in rng.sample(group, number)
    }
    train = [image for image in images if image not in val]
    if max_train is not None:
        train = sorted(rng.sample(train, max_train))
    # Each class needs a training image
    empty = sorted(set(classes) - set(map(class_of_path, train)))
    if empty:
        raise DataError(f"{root}: no training images are left in {first_few(empty)}; hold out fewer images")
    return ClassSubset(root.resolve(), tuple(classes), tuple(train), tuple(sorted(val)), seed)


def _num_held_out(num_images: int, num_val: int | float) -> int:
    """Return how many images of a group to hold out: `num_val`, or this fraction of them, but not the last one."""
    if num_val < 1:
        return min(max(1, round(num_val * num_images)), num_images - 1)
    return int(num_val)


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
