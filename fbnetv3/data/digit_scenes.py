"""Scenes of handwritten digits with boxes in COCO's format: a detection dataset that needs no download."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image

from fbnetv3.data.datasets import ArrayDataset, build_dataset
from fbnetv3.utils.downloads import cache_dir
from fbnetv3.utils.files import PARTIAL_PREFIX, as_output_error

logger = logging.getLogger(__name__)

SCENES = {"num_train": 1500, "num_test": 300}
_SPLIT_SEEDS = {"train": 1, "test": 2}
_FOLDER = "digit_scenes_1"  # change the number when the drawing changes

# Sizes are in pixels, gray levels in [0, 255]
_SHORT_SIDE = 160
_MAX_LONG_SIDE = 224
_LANDSCAPE_PROBABILITY = 0.7
_MAX_DIGITS = 7
_MIN_DIGIT_HEIGHT = 18
_MAX_DIGIT_HEIGHT = 64
_MIN_DIGIT_WIDTH = 8
_DIGIT_ASPECT_RATIOS = (0.85, 1.15)
_MAX_ROTATION = 12  # degrees
_INK_THRESHOLD = 0.25  # fraction of the darkest ink from which a pixel belongs to the digit's box
_MAX_OVERLAP = 0.05  # of two boxes, as a fraction of the smaller one
_PLACEMENT_ATTEMPTS = 30
_CONTRAST = (70, 150)  # between ink and background
_MAX_LINES = 4
_LINE_HALF_WIDTH = 1.2
_NOISE = (2, 14)  # standard deviation


class Box(NamedTuple):
    """A box in pixels."""

    x: int
    y: int
    width: int
    height: int


def ensure_digit_scenes() -> Path:
    """Return the folder of the dataset in the cache, after drawing it in a few seconds on first use.

    It contains `train.json` and `test.json` in COCO's format, with the categories 1 ("0") to 10 ("9"), and PNG files in
    `train/` and `test/`. If two processes ask for it, one draws it and the other waits.
    """
    folder = digit_scenes_folder()
    if not folder.is_dir():
        with as_output_error(folder, "set FBNETV3_CACHE to a writable folder"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with file_lock(str(folder)):
                if not folder.is_dir():
                    _draw_into_cache(folder)
    return folder


def digit_scenes_folder() -> Path:
    """Return the folder that `ensure_digit_scenes` fills, whether or not it exists yet."""
    return cache_dir() / _FOLDER


def _draw_into_cache(folder: Path) -> None:
    """Draw the dataset into a temporary folder, and rename it when it is complete."""
    for leftover in folder.parent.glob(f"{PARTIAL_PREFIX}{_FOLDER}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    logger.info("drawing scenes of handwritten digits into %s", folder)
    temporary = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{_FOLDER}_", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        write_digit_scenes(temporary, **SCENES)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_digit_scenes(folder: Path, num_train: int, num_test: int) -> None:
    """Draw the scenes of both splits into a folder; the result is always the same.

    A scene has up to seven of scikit-learn's digits, 18 to 64 pixels high, in ink that is lighter or darker than a
    noisy background of 160 x 160 to 160 x 224 pixels crossed by thin lines. The splits draw from different images of
    digits: those that the classifier trains and validates on.
    """
    _write_split(folder, "train", build_dataset("digits", "", "train"), num_train)
    _write_split(folder, "test", build_dataset("digits", "", "val"), num_test)


def _write_split(folder: Path, split: str, digits: Any, count: int) -> None:
    image_folder = folder / split
    image_folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, count + 1):
        rng = np.random.default_rng((_SPLIT_SEEDS[split], image_id))
        scene, labeled_boxes = draw_scene(digits, rng)
        file_name = f"{image_id:06d}.png"
        Image.fromarray(scene).save(image_folder / file_name, compress_level=1)
        height, width = scene.shape[:2]
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        for digit, box in labeled_boxes:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": digit + 1,
                "iscrowd": 0,
            }
            annotations.append({**annotation, "bbox": list(box), "area": box.width * box.height})
    content = {
        "info": {"description": "scenes of digits"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": digit + 1, "name": name} for digit, name in enumerate(digits.classes)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content))


def draw_scene(digits: ArrayDataset, rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    """Draw one scene: the image, uint8 (H, W, 3), and the class index and box of each digit in it."""
    long_side = int(rng.integers(_SHORT_SIDE, _MAX_LONG_SIDE + 1))
    is_landscape = rng.random() < _LANDSCAPE_PROBABILITY
    height, width = (_SHORT_SIDE, long_side) if is_landscape else (long_side, _SHORT_SIDE)
    scene, brightness = _draw_background(rng, height, width)
    labeled_boxes: list[tuple[int, Box]] = []
    for _ in range(int(rng.integers(1, _MAX_DIGITS + 1))):
        index = int(rng.integers(len(digits)))
        ink = _draw_digit(digits.images[index], rng)
        box = _place_box(rng, ink.shape, (height, width), [box for _, box in labeled_boxes])
        if box is None:
            continue
        # Blend the ink's color over the background
        color = _draw_ink_color(rng, brightness)
        area = scene[box.y : box.y + box.height, box.x : box.x + box.width]
        area += ink[..., None] * (color - area)
        labeled_boxes.append((int(digits.targets[index]), box))
    noise = rng.normal(0, rng.uniform(*_NOISE), scene.shape)
    return np.clip(scene + noise, 0, 255).round().astype(np.uint8), labeled_boxes


def _draw_background(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, float]:
    """Draw a slanted, tinted gradient with a few thin lines, float64 (H, W, 3); return its mean brightness as well."""
    # Gradient between two brightnesses, in a random direction
    start = rng.uniform(20, 235)
    end = np.clip(start + rng.uniform(-50, 50), 10, 245)
    tint = rng.uniform(-15, 15, 3)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    position = (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5)) * 0.7 + 0.5
    scene = (start + position * (end - start))[..., None] + tint
    # Thin lines, given by an angle and a distance from the center
    for _ in range(int(rng.integers(0, _MAX_LINES + 1))):
        slope = rng.uniform(0, np.pi)
        offset = rng.uniform(-0.4, 0.4) * width
        projection = np.cos(slope) * (x - width / 2) + np.sin(slope) * (y - height / 2)
        distance = np.abs(projection - offset)
        opacity = np.clip(_LINE_HALF_WIDTH - distance, 0, 1)
        scene += opacity[..., None] * rng.uniform(-60, 60)
    return scene, float((start + end) / 2)


def _draw_ink_color(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """Draw a color that is lighter or darker than the background by `_CONTRAST`, as far as [0, 255] allows."""
    contrast = rng.uniform(*_CONTRAST)
    can_be_lighter = brightness + contrast <= 255
    can_be_darker = brightness - contrast >= 0
    is_lighter = can_be_lighter and (not can_be_darker or rng.random() < 0.5)
    gray = brightness + (contrast if is_lighter else -contrast)
    tint = rng.uniform(-20, 20, 3)
    return np.clip(gray + tint, 0, 255)


def _draw_digit(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Resize and rotate a digit at random and crop it to its visible ink; return the ink, (H, W) in [0, 1]."""
    height = int(rng.integers(_MIN_DIGIT_HEIGHT, _MAX_DIGIT_HEIGHT + 1))
    width = max(_MIN_DIGIT_WIDTH, round(height * rng.uniform(*_DIGIT_ASPECT_RATIOS)))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    rotated = resized.rotate(rng.uniform(-_MAX_ROTATION, _MAX_ROTATION), Image.Resampling.BILINEAR)
    # Normalize the ink and crop to what is visible
    ink = np.asarray(rotated, dtype=np.float64) / 255
    ink /= max(ink.max(), 1e-6)
    visible = ink >= _INK_THRESHOLD
    rows = np.flatnonzero(visible.any(axis=1))
    columns = np.flatnonzero(visible.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place_box(
    rng: np.random.Generator, size: tuple[int, ...], scene_size: tuple[int, int], placed: list[Box]
) -> Box | None:
    """Draw a position at which a box of this size hardly overlaps any other; None if no attempt finds one."""
    height, width = size
    for _ in range(_PLACEMENT_ATTEMPTS):
        y = int(rng.integers(0, scene_size[0] - height + 1))
        x = int(rng.integers(0, scene_size[1] - width + 1))
        box = Box(x, y, width, height)
        if all(_overlap(box, other) <= _MAX_OVERLAP for other in placed):
            return box
    return None


def _overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes as a fraction of the smaller one's area."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return max(0, width) * max(0, height) / min(a.width * a.height, b.width * b.height)
