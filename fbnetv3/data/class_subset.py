"""Subsets of an image folder, drawn by a seed and listed in a file: the search's 200 classes of ImageNet (Sec. 4)."""

from __future__ import annotations

import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from torchvision.datasets.folder import is_image_file

from fbnetv3.errors import DataError, UsageError

SEARCH_CLASSES = 200
SEARCH_HELD_OUT = 10_000


@dataclass(frozen=True)
class ClassSubset:
    """Which images train and which validate.

    Attributes:
        root: the folder below which they lie.
        classes: names of the class folders, sorted.
        train, val: paths below `root`, `CLASS/IMAGE`.
        seed: what they were drawn with.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[str, ...]
    val: tuple[str, ...]
    seed: int


def draw_class_subset(
    root: str | os.PathLike,
    classes: int = SEARCH_CLASSES,
    held_out: int = SEARCH_HELD_OUT,
    seed: int = 0,
    most: int | None = None,
) -> ClassSubset:
    """Draw classes from a folder of training images, and hold images of theirs out for validation.

    The defaults are the paper's: 200 classes of ImageNet, 10,000 of their images held out.

    Args:
        root: the folder with a folder a class, such as `imagenet/train`.
        classes: how many classes to draw.
        held_out: how many of their images to hold out, over all classes.
        seed: of all draws.
        most: how many of the other images to train on, drawn at random; None for all.

    Raises:
        DataError: the folder is missing, or has too few classes or images.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    if classes < 1 or held_out < 1:
        raise UsageError(f"{classes} classes with {held_out} images held out: both must be at least 1")
    known = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if len(known) < classes:
        raise DataError(f"{root}: has {len(known)} class folders, not {classes}")
    chance = random.Random(seed)
    drawn = sorted(chance.sample(known, classes))
    images = [f"{name}/{file}" for name in drawn for file in sorted(os.listdir(root / name)) if is_image_file(file)]
    if len(images) <= held_out:
        raise DataError(f"{root}: those {classes} classes have {len(images)} images, too few to hold {held_out} out")
    val = set(chance.sample(images, held_out))
    train = tuple(image for image in images if image not in val)
    if most is not None:
        if not 1 <= most <= len(train):
            raise DataError(f"{root}: {len(train)} images are left to train on, not {most}")
        train = tuple(sorted(chance.sample(train, most)))
    empty = sorted(set(drawn) - {image.split("/")[0] for image in train})
    if empty:
        raise DataError(f"{root}: no training image is left in {', '.join(empty[:5])}: hold fewer out")
    return ClassSubset(root.resolve(), tuple(drawn), train, tuple(sorted(val)), seed)


def save_class_subset(split: ClassSubset, path: str | os.PathLike) -> None:
    """Write a split to a JSON file."""
    Path(path).write_text(json.dumps({**asdict(split), "root": str(split.root)}, indent=0))


def load_class_subset(path: str | os.PathLike) -> ClassSubset:
    """Read a split file.

    Raises:
        DataError: the file is missing, or is not a split file.
    """
    try:
        data = json.loads(Path(path).read_text())
        lists = {key: tuple(map(str, data[key])) for key in ("classes", "train", "val")}
        split = ClassSubset(Path(data["root"]), **lists, seed=int(data["seed"]))
        if not (split.train and split.val) or {Path(p).parent.name for p in split.train + split.val} - {*split.classes}:
            raise ValueError("no images, or images of other classes")
        return split
    except FileNotFoundError:
        raise DataError(f"{path}: no such split file; tools/make_split.py makes one") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is not a split file ({type(error).__name__}: {error})") from None
