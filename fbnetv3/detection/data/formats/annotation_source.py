"""Where annotations come from, and the registry of the formats that they are read from."""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.errors import DataError
from fbnetv3.registry import Registry
from fbnetv3.utils.text import first_few, one_line

ANNOTATION_FORMATS = Registry("annotation format")
"""Readers by name, as in `DATASETS.CUSTOM.FORMAT`."""
AUTO = "auto"
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of splits, and the names of files and folders that hold them."""
_MAX_PROBLEMS = 4


@dataclass(frozen=True)
class AnnotationSource:
    """The place and format of one split's annotations, which are read on demand."""

    annotations: Path  # a file or a folder
    images: Path | None = None  # folder of the images; None lets the reader look for them
    format: str = AUTO  # an entry of `ANNOTATION_FORMATS`
    split: str = ""  # "train", "val" or "test", if the annotations hold several splits
    class_source: AnnotationSource | None = None  # names the classes of formats that do not list them

    def resolve(self) -> AnnotationSource:
        """Return the source with the format that its files have instead of "auto", and a split that they have.

        Raises:
            DataError: there is no such file or folder, or its format or split is not clear.
        """
        path = self.annotations
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        source = replace(self, format=find_format(path)) if self.format == AUTO else self
        splits = source.reader.find_splits(path)
        if not splits:  # all of it is one split
            return replace(source, split="")
        if self.split not in splits:
            problem = f"has no split {self.split!r}" if self.split else "has several splits"
            raise DataError(f"{path}: {problem}: name one of {', '.join(splits)}")
        return source

    @property
    def reader(self) -> AnnotationReader:
        """The reader of the format, which must not be "auto"."""
        return ANNOTATION_FORMATS.get(self.format)

    def read(self) -> RawAnnotations:
        """Read the annotations.

        Raises:
            DataError: the annotations are missing or not as the format requires; the message names file and line.
        """
        source = self.resolve()
        return source.reader.read(source, source._shared_classes())

    def categories(self) -> list[dict[str, Any]]:
        """Return the classes in order, each with "id" and "name", without reading images."""
        source = self.resolve()
        shared = source._shared_classes()
        return categories_of_names(shared) if shared else source.reader.categories(source)

    def class_names(self) -> list[str]:
        """Return the names of the classes in order, without reading images."""
        return [category["name"] for category in self.categories()]

    def _shared_classes(self) -> list[str] | None:
        """Return the classes of `class_source`, if the format does not list its own.

        None if its files are gone, as where a trained detector is evaluated: its classes are matched by name.
        """
        if self.reader.lists_classes or self.class_source is None:
            return None
        if not self.class_source.annotations.exists():
            return None
        return self.class_source.class_names()


def split_sources(
    path: Path, images: Path | None = None, format: str = AUTO
) -> dict[str, AnnotationSource]:
    """Return the annotations of each split of a file or folder; those of "all" if it is not divided.

    Formats that do not list their classes have those of the first split in all of them.

    Raises:
        DataError: there is no such file or folder, or its format is not clear.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    format = find_format(path) if format == AUTO else format
    splits = ANNOTATION_FORMATS.get(format).find_splits(path)
    if not splits:
        return {"all": AnnotationSource(path, images, format)}
    first = AnnotationSource(path, images, format, splits[0])
    others = {split: replace(first, split=split, class_source=first) for split in splits[1:]}
    return {splits[0]: first, **others}


class AnnotationReader(ABC):
    """Reads one format. Subclasses are registered in `ANNOTATION_FORMATS`, as instances."""

    title: str
    """Name of the format for messages."""
    lists_classes = True
    """Whether the annotations list their classes in order; otherwise these are the names that occur, sorted."""

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Return whether an existing file or folder looks like this format."""

    def find_splits(self, path: Path) -> list[str]:
        """Return which of "train", "val" and "test" a file or folder holds; none if it is not divided."""
        return []

    @abstractmethod
    def read(self, source: AnnotationSource, classes: Sequence[str] | None) -> RawAnnotations:
        """Read the annotations of a resolved source; see `AnnotationSource.read`.

        `classes` are the names of the classes in order, for formats that do not list them; default: all that occur.
        """

    def categories(self, source: AnnotationSource) -> list[dict[str, Any]]:
        """Return the classes of a resolved source in order, each with "id" and "name"."""
        return self.read(source, None).data["categories"]


def matching_formats(path: Path) -> list[str]:
    """Return the names of the formats that an existing file or folder looks like."""
    return [name for name in ANNOTATION_FORMATS.names() if ANNOTATION_FORMATS.get(name).recognizes(path)]


def find_format(path: Path) -> str:
    """Return the name of the format that a file or folder has.

    Raises:
        DataError: it does not exist, or looks like none or several of the formats.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    names = matching_formats(path)
    if len(names) == 1:
        return names[0]
    problem = f"may be {' or '.join(names)}" if names else "has no annotations in a known format"
    raise DataError(
        f"{path}: {problem}: set DATASETS.CUSTOM.FORMAT to one of {', '.join(ANNOTATION_FORMATS.names())}"
    )


class LabelProblems:
    """Collects problems by file and line, so that all are reported at once."""

    def __init__(self) -> None:
        self._problems: list[str] = []

    def add(self, where: str, problem: str) -> None:
        """Add a problem; `where` is "file:line" or another place."""
        self._problems.append(f"{where}: {problem}")

    def raise_if_any(self, source: object) -> None:
        """Raise a DataError with the number of problems and the first few of them."""
        if self._problems:
            count = len(self._problems)
            lines = first_few(self._problems, _MAX_PROBLEMS, "; ")
            raise DataError(f"{source}: {count} problem{'' if count == 1 else 's'}: {lines}")


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file, without spaces around them and without empty lines.

    Raises:
        DataError: the file cannot be read, or is not text.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({one_line(error)})") from None
    return [line.strip() for line in lines if line.strip()]


def find_in_file(file: Path, text: bytes) -> bool:
    """Return whether a file contains a text; False if it cannot be read."""
    try:
        with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0
    except (OSError, ValueError):  # an empty file cannot be mapped
        return False


def box_annotation(
    annotation_id: str, image_id: int, category_id: int, bbox: list[float], **more: Any
) -> dict[str, Any]:
    """Return an entry of COCO's "annotations"; the area of one with a mask is left to be computed."""
    area = {} if "segmentation" in more else {"area": bbox[2] * bbox[3]}
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        **area,
        "iscrowd": 0,
        **more,
    }


def categories_of_names(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return COCO's "categories" for class names, with ids from 1."""
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


def require_classes(names: Sequence[str], classes: Sequence[str] | None, source: object) -> list[str]:
    """Return the classes of annotations that do not list them: `classes`, or the names that occur, sorted.

    Raises:
        DataError: a name that occurs is not in `classes`, or none occurs.
    """
    unique = sorted(set(names))
    if classes is None:
        if not unique:
            raise DataError(f"{source}: has no boxes")
        return unique
    if unknown := sorted(set(unique) - set(classes)):
        raise DataError(
            f"{source}: has classes that the training annotations lack: {first_few(unknown, 5)}; the training "
            f"annotations have {first_few(classes, 5)}"
        )
    return list(classes)


def round_pixels(value: float) -> float:
    """Round a coordinate to a millionth of a pixel: fractions of full precision give back the pixels they came from."""
    return round(value, 6)
