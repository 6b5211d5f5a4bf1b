"""Scenes of handwritten digits with their boxes, in COCO's format: a data set for detectors that needs no download."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image

from fbnetv3.data.datasets import ArrayDataset, build_dataset
from fbnetv3.errors import OutputError
from fbnetv3.utils.downloads import cache_dir
from fbnetv3.utils.files import PARTIAL_PREFIX

logger = logging.getLogger(__name__)

# Scenes of each split of the data set that is made on first use.
SCENES = {"train": 1500, "test": 300}
_SEEDS = {"train": 1, "test": 2}
_SHORT = 160  # pixels of a scene's shorter side
_LONGEST = 224
_HEIGHTS = (18, 64)  # pixels of a digit's height
_MOST = 7  # digits of a scene
_INK = 0.25  # of a digit's darkest, from which on a pixel belongs to it
_OVERLAP = 0.05  # of the smaller of two boxes
_TRIES = 30
# A change of what is drawn makes another folder.
_FOLDER = "digit_scenes_1"


def digit_scenes() -> Path:
    """The folder of the data set, in the cache; it is made on first use, in a few seconds.

    It holds `train.json` and `test.json` in COCO's format, with the categories 1 ("0") to 10 ("9"), and the pictures,
    PNG files, in `train/` and `test/`. Of two processes one makes it and the other waits.

    Raises:
        OutputError: the cache cannot be written.
    """
    folder = digit_scenes_folder()
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not folder.is_dir():
                for left in folder.parent.glob(f"{PARTIAL_PREFIX}{_FOLDER}*"):  # of a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                logger.info("drawing scenes of handwritten digits into %s", folder)
                made = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{_FOLDER}_", dir=folder.parent))
                try:
                    made.chmod(0o755)
                    write_digit_scenes(made, **SCENES)
                    made.rename(folder)
                finally:
                    shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{folder}: cannot be written ({reason}): set FBNETV3_CACHE to a folder of yours") from None
    return folder


def digit_scenes_folder() -> Path:
    """Where `digit_scenes` makes its folder, whether it is there yet or not."""
    return cache_dir() / _FOLDER


def write_digit_scenes(folder: Path, train: int, test: int) -> None:
    """Draw scenes of both splits into a folder: the same ones each time.

    Each has up to seven digits of scikit-learn's, 18 to 64 pixels high, in ink that is lighter or darker than a noisy
    background of 160 x 160 to 160 x 224 pixels with lines across. The two splits take their digits from different
    images: those of the classifier's training and validation.

    Args:
        folder: gets train.json, test.json, train/ and test/.
        train, test: numbers of scenes.

    Raises:
        OSError: the folder cannot be written.
    """
    for split, count in (("train", train), ("test", test)):
        digits = build_dataset("digits", "", "train" if split == "train" else "val")
        assert isinstance(digits, ArrayDataset)
        pictures = folder / split
        pictures.mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            scene, drawn = draw_scene(digits, np.random.default_rng((_SEEDS[split], number)))
            name = f"{number:06d}.png"
            Image.fromarray(scene).save(pictures / name, compress_level=1)
            height, width = scene.shape[:2]
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for digit, (x, y, w, h) in drawn:
                about = {"image_id": number, "category_id": digit + 1, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, **about, "bbox": [x, y, w, h], "area": w * h})
        categories = [{"id": digit + 1, "name": name} for digit, name in enumerate(digits.classes)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps({"info": {"description": "scenes of digits"}, **content}))


def draw_scene(
    digits: ArrayDataset, random: np.random.Generator
) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """A scene and what is on it.

    Args:
        digits: images (8, 8) with their classes.
        random: decides on everything.

    Returns:
        The picture, (H, W, 3) uint8, and for each digit its class and its box (x, y, width, height) in pixels.
    """
    sides = [_SHORT, int(random.integers(_SHORT, _LONGEST + 1))]
    height, width = sides if random.random() < 0.7 else sides[::-1]
    scene, brightness = _background(random, height, width)
    drawn: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(random.integers(1, _MOST + 1))):
        index = int(random.integers(len(digits)))
        ink, box = _digit(digits.images[index], random)
        place = _free_place(random, box, (height, width), [taken for _, taken in drawn])
        if place is None:
            continue
        x, y = place
        colour = _ink_colour(random, brightness)
        part = scene[y : y + ink.shape[0], x : x + ink.shape[1]]
        part += ink[..., None] * (colour - part)
        drawn.append((int(digits.targets[index]), (x, y, ink.shape[1], ink.shape[0])))
    noise = random.normal(0, random.uniform(2, 14), scene.shape)
    return np.clip(scene + noise, 0, 255).round().astype(np.uint8), drawn


def _background(random: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, float]:
    """A slanted gradient between two colours, with thin lines across, and its mean brightness."""
    first = random.uniform(20, 235)
    second = np.clip(first + random.uniform(-50, 50), 10, 245)
    tint = random.uniform(-15, 15, 3)
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    share = (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)) * 0.7 + 0.5
    scene = (first + share * (second - first))[..., None] + tint
    for _ in range(int(random.integers(0, 5))):
        slope, offset = random.uniform(0, np.pi), random.uniform(-0.4, 0.4) * width
        away = np.abs(np.cos(slope) * (x - width / 2) + np.sin(slope) * (y - height / 2) - offset)
        scene += np.clip(1.2 - away, 0, 1)[..., None] * random.uniform(-60, 60)
    return scene, float((first + second) / 2)


def _ink_colour(random: np.random.Generator, brightness: float) -> np.ndarray:
    """A colour that stands out from a brightness by at least 70 of 255."""
    away = random.uniform(70, 150)
    lighter = brightness + away <= 255 and (brightness - away < 0 or random.random() < 0.5)
    return np.clip(brightness + (away if lighter else -away) + random.uniform(-20, 20, 3), 0, 255)


def _digit(image: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """The ink of a digit in [0, 1], (H, W), drawn at a size of its own and cut to what can be seen; and (H, W)."""
    height = int(random.integers(_HEIGHTS[0], _HEIGHTS[1] + 1))
    width = max(8, round(height * random.uniform(0.85, 1.15)))
    large = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    large = large.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR)
    ink = np.asarray(large, dtype=np.float64) / 255
    ink /= max(ink.max(), 1e-6)
    seen = ink >= _INK
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return ink, ink.shape


def _free_place(
    random: np.random.Generator,
    box: tuple[int, int],
    scene: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> tuple[int, int] | None:
    """Where a box of a height and width hardly touches others: its x and y; None where it is not found soon."""
    for _ in range(_TRIES):
        y, x = (int(random.integers(0, whole - part + 1)) for whole, part in zip(scene, box, strict=True))
        if all(_shared((x, y, box[1], box[0]), other) <= _OVERLAP for other in taken):
            return x, y
    return None


def _shared(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """The area that two boxes share, as a part of the smaller one."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0, width) * max(0, height) / min(a[2] * a[3], b[2] * b[3])
