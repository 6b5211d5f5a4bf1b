"""Annotations in YOLO's format: one text file of boxes or polygons per image, and `data.yaml`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.detection.data.formats.annotation_source import (
    ANNOTATION_FORMATS,
    AnnotationReader,
    AnnotationSource,
    LabelProblems,
    box_annotation,
)
from fbnetv3.detection.data.formats.image_lookup import image_entry, name_in, read_image_sizes
from fbnetv3.detection.data.formats.yolo_dataset import (
    YOLODataset,
    description_in,
    find_yolo_description,
    label_file,
    list_yolo_images,
    read_yolo_dataset,
)
from fbnetv3.detection.data.formats.yolo_labels import LabelLineError, parse_label_line
from fbnetv3.errors import DataError, FieldError
from fbnetv3.utils.text import first_few


class YOLOReader(AnnotationReader):
    """Reads label files as Ultralytics does: `images/a.jpg` has `labels/a.txt`, or `a.txt` next to it.

    The annotations are `data.yaml`, a folder that has it, or a folder or list of images below it. Images
    without a label file, or with an empty one, have no objects. Lines of three points or more are polygons, and
    so are rotated boxes.
    """

    title = "YOLO text files"

    def recognizes(self, path: Path) -> bool:
        """Return whether this is a description, a folder with one, or a split's folder or list with label files."""
        description = find_yolo_description(path)
        if description is None:
            return False
        if path == description or description_in(path):
            return True
        if path.is_file() and path.suffix.lower() != ".txt":
            return False
        first_image = next(list_yolo_images([path], [description.parent]), None)
        return first_image is not None and label_file(first_image).is_file()

    def find_splits(self, path: Path) -> list[str]:
        """Return the splits that the description names; none for a split's own folder or list."""
        description = path if path.is_file() else description_in(path)
        if description is None or description != find_yolo_description(path):
            return []
        return list(read_yolo_dataset(description).splits)

    def read(self, source: AnnotationSource, classes: Sequence[str] | None) -> RawAnnotations:
        """Read the labels of a split."""
        dataset = self._dataset(source)
        paths = _image_paths(source, dataset)
        images = sorted(dict.fromkeys(list_yolo_images(paths, (dataset.root, dataset.file.parent))))
        if not images:
            raise DataError(f"{first_few(paths)}: has no images")
        labels = [label_file(image) for image in images]
        is_labeled = [label.is_file() for label in labels]
        if not any(is_labeled):
            raise DataError(
                f"{dataset.file}: none of {len(images)} images has a label file, such as {labels[0]}"
            )

        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        problems = LabelProblems()
        sizes = read_image_sizes(images)
        for number, (image, label, size) in enumerate(zip(images, labels, sizes, strict=True), 1):
            entries.append(image_entry(number, name_in(dataset.root, image), size))
            if size is not None and label.is_file():
                annotations += _read_labels(label, number, size, dataset, problems)
        problems.raise_if_any(dataset.file)
        notes = (*([dataset.note] if dataset.note else []), *_notes(images, labels, is_labeled))
        data = {"images": entries, "annotations": annotations, "categories": _categories(dataset)}
        return RawAnnotations(data, str(dataset.root), str(source.annotations), notes)

    def categories(self, source: AnnotationSource) -> list[dict[str, Any]]:
        """Return the classes in the order of their ids."""
        return _categories(self._dataset(source))

    def _dataset(self, source: AnnotationSource) -> YOLODataset:
        description = find_yolo_description(source.annotations)
        if description is None:
            raise DataError(
                f"{source.annotations}: has no data.yaml or classes.txt with the names of the classes"
            )
        return read_yolo_dataset(description)


def _image_paths(source: AnnotationSource, dataset: YOLODataset) -> list[Path]:
    """Return the folders and lists of the images of a split, or of all of an undivided dataset."""
    if source.images:
        return [source.images]
    if source.split:
        return dataset.splits[source.split]
    if source.annotations != dataset.file:
        return [source.annotations]
    if dataset.file.suffix.lower() in (".yaml", ".yml"):
        raise FieldError("must name the images", "train", str(dataset.file))
    return [dataset.file.parent]


def _read_labels(
    file: Path, image_id: int, size: tuple[int, int], dataset: YOLODataset, problems: LabelProblems
) -> list[dict[str, Any]]:
    """Return the annotations of one image; their ids are "file:line"."""
    annotations = []
    name = name_in(dataset.root, file)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.add(name, f"cannot be read ({error})")
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            annotation = parse_label_line(line, size, dataset.names, dataset.keypoints)
        except LabelLineError as error:
            problems.add(f"{name}:{number}", str(error))
            continue
        annotations.append(box_annotation(f"{name}:{number}", image_id, **annotation))
    return annotations


def _categories(dataset: YOLODataset) -> list[dict[str, Any]]:
    """Return the categories, whose ids are YOLO's."""
    keypoints: dict[str, Any] = {}
    if dataset.keypoint_names:
        keypoints = {"keypoints": list(dataset.keypoint_names), "skeleton": []}
    if dataset.flip_pairs is not None:
        keypoints["flip_pairs"] = [list(pair) for pair in dataset.flip_pairs]
    return [{"id": class_id, "name": name, **keypoints} for class_id, name in dataset.names.items()]


def _notes(images: Sequence[Path], labels: Sequence[Path], is_labeled: Sequence[bool]) -> tuple[str, ...]:
    """Describe images without a label file, which count as empty, and label files without an image."""
    notes = []
    if missing := [image.name for image, labeled in zip(images, is_labeled, strict=True) if not labeled]:
        notes.append(
            f"images without a label file, taken to be empty ({len(missing)}): {first_few(missing)}"
        )
    # Folders of labels only: next to images, text files may be anything
    folders = Counter(
        label.parent for label, image in zip(labels, images, strict=True) if label.parent != image.parent
    )
    used = set(labels)
    unused = [
        file.name
        for folder in folders
        if folder.is_dir()
        for file in sorted(folder.glob("*.txt"))
        if file not in used and file.name != "classes.txt"
    ]
    if unused:
        notes.append(f"label files without an image in this split ({len(unused)}): {first_few(unused)}")
    return tuple(notes)


ANNOTATION_FORMATS.register(YOLOReader(), name="yolo")
