"""Annotations in Pascal VOC's format: one XML file per image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.detection.data.formats.annotation_source import (
    ANNOTATION_FORMATS,
    SPLIT_NAMES,
    AnnotationReader,
    AnnotationSource,
    LabelProblems,
    box_annotation,
    categories_of_names,
    read_lines,
    require_classes,
    round_pixels,
)
from fbnetv3.detection.data.formats.image_lookup import (
    ImageLookup,
    image_entry,
    name_in,
    read_image_sizes,
)
from fbnetv3.errors import DataError

_XML_FOLDER = "Annotations"
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "img")
_SETS = "ImageSets/Main"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class _Layout:
    """The files of a split."""

    root: Path  # folder that image names are relative to
    xml_files: list[Path]
    image_folders: list[Path]


@dataclass(frozen=True)
class _Object:
    """One object of an XML file, with its box in pixels."""

    name: str
    bbox: list[float]  # x, y, width, height
    difficult: bool


@dataclass(frozen=True)
class _XMLFile:
    """What an XML file says about its image."""

    name: str  # of the XML file, for messages
    image: str = ""  # "" if the file does not name it
    size: tuple[float, float] = (0, 0)  # width and height; 0 if the file does not state it
    objects: Sequence[_Object] = ()


class VOCReader(AnnotationReader):
    """Reads `Annotations/*.xml` with the images in `JPEGImages/`, or XML files next to their images.

    Corners are one-based and inclusive, as in Pascal VOC and detectron2: the box from 1 to 10 covers the first ten
    pixels. Splits are lists in `ImageSets/Main`, or folders. Objects marked `difficult` are ordinary ones.
    """

    title = "Pascal VOC XML"
    lists_classes = False

    def recognizes(self, path: Path) -> bool:
        """Return whether this is a folder with XML files of objects, or a list in `ImageSets`."""
        if path.is_file():
            return path.suffix.lower() == ".txt" and _find_root(path) is not None
        folders = [path, path / _XML_FOLDER, *_split_folders(path).values()]
        return any(_has_xml(folder) for folder in folders)

    def find_splits(self, path: Path) -> list[str]:
        """Return the splits that have a list in `ImageSets/Main`, or else a folder with XML files."""
        return list(_split_lists(path) or _split_folders(path)) if path.is_dir() else []

    def read(self, source: AnnotationSource, classes: Sequence[str] | None) -> RawAnnotations:
        """Read the XML files of a split."""
        layout = _find_layout(source)
        problems = LabelProblems()
        files = _read_xml_files(layout, problems)
        problems.raise_if_any(source.annotations)
        names = require_classes(_names(files), classes, source.annotations)

        # Images: the one with the name of the XML file, or the one that it names
        lookup = ImageLookup(layout.image_folders)
        paths = [
            lookup.find(path.stem, file.image)
            or layout.image_folders[0] / Path(file.image or f"{path.stem}.jpg").name
            for path, file in files.items()
        ]
        sizes = read_image_sizes(paths)
        ids = {name: number for number, name in enumerate(names, 1)}
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (path, size, file) in enumerate(zip(paths, sizes, files.values(), strict=True), 1):
            images.append(image_entry(number, name_in(layout.root, path), size))
            if size and all(file.size) and file.size != size:
                stated, actual = (f"{width:g} x {height:g}" for width, height in (file.size, size))
                problems.add(file.name, f"size {stated}, but the image is {actual}")
            for position, item in enumerate(file.objects, 1):
                annotation_id = f"{file.name}: object {position}"
                annotations.append(box_annotation(annotation_id, number, ids[item.name], item.bbox))
        problems.raise_if_any(source.annotations)
        difficult = sum(item.difficult for file in files.values() for item in file.objects)
        notes = (f"objects marked difficult, taken as ordinary ones: {difficult}",) if difficult else ()
        data = {"images": images, "annotations": annotations, "categories": categories_of_names(names)}
        return RawAnnotations(data, str(layout.root), str(source.annotations), notes)

    def categories(self, source: AnnotationSource) -> list[dict[str, Any]]:
        """Return the names that occur, sorted."""
        problems = LabelProblems()
        files = _read_xml_files(_find_layout(source), problems)
        problems.raise_if_any(source.annotations)
        return categories_of_names(require_classes(_names(files), None, source.annotations))


def _names(files: Mapping[Path, _XMLFile]) -> list[str]:
    return [item.name for file in files.values() for item in file.objects]


def _has_xml(folder: Path) -> bool:
    return folder.is_dir() and next(folder.glob("*.xml"), None) is not None


def _find_root(list_file: Path) -> Path | None:
    """Return the dataset's folder of a list in `ImageSets/Main`."""
    return next((folder for folder in list_file.parents[:4] if _has_xml(folder / _XML_FOLDER)), None)


def _split_lists(root: Path) -> dict[str, Path]:
    """Return the lists in `ImageSets` by split."""
    lists = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [root / folder / f"{name}.txt" for folder in (_SETS, "ImageSets") for name in names]
        if files := [file for file in candidates if file.is_file()]:
            lists[split] = files[0]
    return lists if (root / _XML_FOLDER).is_dir() else {}


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the folders with XML files by split."""
    folders = {}
    for split, names in SPLIT_NAMES.items():
        candidates = [
            parent
            for name in names
            for parent in (root / name, root / _XML_FOLDER / name)
            if _has_xml(parent) or _has_xml(parent / _XML_FOLDER)
        ]
        if candidates:
            folders[split] = candidates[0]
    return folders


def _find_layout(source: AnnotationSource) -> _Layout:
    """Return the files of a split, of all annotations, or of a list."""
    path = source.annotations
    if source.split:
        path = (_split_lists(path) or _split_folders(path))[source.split]
    if path.is_file():
        root = _find_root(path)
        if root is None:
            raise DataError(f"{path}: there is no folder {_XML_FOLDER} with XML files near this list")
        # A line may have more columns, such as whether the image has a class
        xml_files = [root / _XML_FOLDER / f"{line.split()[0]}.xml" for line in read_lines(path)]
    else:
        folder = path / _XML_FOLDER if _has_xml(path / _XML_FOLDER) else path
        root = path.parent if path.name == _XML_FOLDER else path
        xml_files = sorted(folder.glob("*.xml"))
    if not xml_files:
        raise DataError(f"{path}: has no XML files")
    folders = (
        [source.images]
        if source.images
        else [*(root / name for name in _IMAGE_FOLDERS), xml_files[0].parent]
    )
    existing = [folder for folder in folders if folder.is_dir()]
    if not existing:
        raise DataError(f"{folders[0]}: no such folder")
    return _Layout(root, xml_files, existing)


def _read_xml_files(layout: _Layout, problems: LabelProblems) -> dict[Path, _XMLFile]:
    return {path: _read_xml(path, name_in(layout.root, path), problems) for path in layout.xml_files}


def _read_xml(path: Path, name: str, problems: LabelProblems) -> _XMLFile:
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        problems.add(f"{name}:{error.position[0]}", f"is not XML ({error})")
        return _XMLFile(name)
    except (OSError, ValueError) as error:  # ValueError: the list has a name that no file can have
        problems.add(name, f"cannot be read ({getattr(error, 'strerror', None) or error})")
        return _XMLFile(name)
    objects = []
    for position, element in enumerate(tree.iter("object"), 1):
        try:
            objects.append(_read_object(element))
        except ValueError as error:
            problems.add(f"{name}: object {position}", str(error))
    try:
        size = float(tree.findtext("size/width") or 0), float(tree.findtext("size/height") or 0)
    except ValueError:
        problems.add(name, "has a size that is not a number")
        size = (0, 0)
    return _XMLFile(name, (tree.findtext("filename") or "").strip(), size, objects)


def _read_object(element: ElementTree.Element) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    if element.find("robndbox") is not None:
        raise ValueError("is a rotated box (robndbox), which detectors here do not support")
    box = element.find("bndbox")
    if box is None:
        raise ValueError("has no bndbox")
    corners = []
    for corner in _CORNERS:
        text = (box.findtext(corner) or "").strip()
        try:
            corners.append(float(text))
        except ValueError:
            raise ValueError(f"{corner} {text!r} must be a number") from None
    if not all(map(math.isfinite, corners)):
        raise ValueError("has a NaN or infinite corner")
    x0, y0, x1, y1 = corners
    # The first pixel is 1, and the last one belongs to the box
    bbox = [round_pixels(value) for value in (x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1)]
    return _Object(name, bbox, (element.findtext("difficult") or "0").strip() == "1")


ANNOTATION_FORMATS.register(VOCReader(), name="voc")
