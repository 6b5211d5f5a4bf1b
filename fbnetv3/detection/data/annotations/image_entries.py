"""Clean the images of an annotation file: their sizes, and whether their files exist and can be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from PIL import Image

from fbnetv3.data.image_rendering import exif_orientation, oriented_size
from fbnetv3.detection.data.annotations.annotation_problems import AnnotationProblems
from fbnetv3.utils.checks import is_int
from fbnetv3.utils.text import evenly_spaced, one_line

_MAX_SIDE = 100_000  # pixels


def clean_images(
    entries: Iterable[Mapping[str, Any]], root: str, filled: Counter[str], problems: AnnotationProblems
) -> list[dict[str, Any]]:
    """Return the images with ids from 1 and with their sizes; missing ones are read from the image files.

    `filled` counts what is filled in. The size of an image that is at fault is 0.
    """
    images = []
    for number, entry in enumerate(entries, 1):
        name = entry["file_name"]
        if "\\" in name and not os.path.exists(os.path.join(root, name)):
            name = name.replace("\\", "/")  # written on Windows
            filled["backslash"] += 1
        size = [_as_size(entry.get(key)) for key in ("width", "height")]
        if None in size:
            problems.add("no_size", name)
        elif 0 in size:
            size = list(_read_size(root, name, problems) or (0, 0))
            filled["size"] += 1
        images.append({"id": number, "file_name": name, "width": size[0] or 0, "height": size[1] or 0})
    return images


def _as_size(value: Any) -> int | None:
    """Return a width or height; 0 if it is missing, None if it is not a positive integer."""
    if value is None:
        return 0
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if is_int(value, 0, _MAX_SIDE) else None


def _read_size(root: str, name: str, problems: AnnotationProblems) -> tuple[int, int] | None:
    """Return the width and height of an image file as a viewer shows it; None if it is at fault."""
    path = os.path.join(root, name)
    try:
        with Image.open(path) as file:
            return oriented_size(file)
    except FileNotFoundError:
        if os.path.isdir(root or os.curdir):
            problems.add("missing", path)
        else:
            problems.add_message(_no_folder(root))
    except Exception as error:  # Pillow's decoders raise almost anything on corrupt bytes
        problems.add("corrupt", f"{name} ({one_line(error, 80)})")
    return None


def check_image_files(
    images: list[dict[str, Any]], root: str, max_opened: int | None, problems: AnnotationProblems
) -> int:
    """Find missing and corrupt images and wrong sizes. Return the number of images opened."""
    if not os.path.isdir(root or os.curdir):  # "" for complete paths
        problems.add_message(_no_folder(root))
        return 0
    # One system call per folder is much faster than one per image
    list_folder = cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else set())
    existing = []
    for image in images:
        if not image["width"]:  # reported already
            continue
        folder, name = os.path.split(os.path.join(root, image["file_name"]))
        if name in list_folder(folder):
            existing.append(image)
        else:
            problems.add("missing", os.path.join(folder, name))

    opened = evenly_spaced(existing, len(existing) if max_opened is None else max_opened)
    for image in opened:
        name = image["file_name"]
        try:
            with Image.open(os.path.join(root, name)) as file:
                size = oriented_size(file)
                note = " (rotated by its EXIF orientation)" if exif_orientation(file) >= 5 else ""
        except Exception as error:
            problems.add("corrupt", f"{name} ({one_line(error, 80)})")
            continue
        stated_size = image["width"], image["height"]
        if size != stated_size:
            shown, stated = (f"{width} x {height}" for width, height in (size, stated_size))
            problems.add("wrong_size", f"{name} is {shown}{note}, not {stated}")
    return len(opened)


def _no_folder(root: str) -> str:
    return f"no image folder {root}: name the folder that each file_name is relative to"
