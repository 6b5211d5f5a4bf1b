"""Annotations in a CSV file with one row per box."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.detection.data.formats.annotation_source import (
    ANNOTATION_FORMATS,
    AnnotationSource,
    LabelProblems,
    box_annotation,
    categories_of_names,
    require_classes,
    round_pixels,
)
from fbnetv3.detection.data.formats.csv_columns import BoxColumns, find_box_columns
from fbnetv3.detection.data.formats.file_reader import FileReader
from fbnetv3.detection.data.formats.image_lookup import (
    ImageLookup,
    image_entry,
    name_in,
    read_image_sizes,
)
from fbnetv3.errors import DataError
from fbnetv3.utils.text import one_line

_SEPARATORS = ",;\t"
_Row = tuple[int, str, "list[float] | None", str]  # line, image, box, class


class CSVReader(FileReader):
    """Reads a file with a row per box: an image, four coordinates and a class; other columns are ignored.

    The header names the columns: `image,x0,y0,x1,y1,class`, `filename,...,xmin,ymin,xmax,ymax`, `x1,y1,x2,y2`,
    `x,y,w,h` and so on; a file without a header has `path,x1,y1,x2,y2,class`. Images are relative to the image folder.
    Rows without a box name empty images. A file whose coordinates are all in [0, 1] has fractions of the image.
    """

    title = "CSV"
    lists_classes = False
    suffixes = (".csv", ".tsv")
    split_patterns = ("{}.csv", "{}/_annotations.csv")

    def is_content_known(self, file: Path) -> bool:
        """Return whether the header names the columns of boxes."""
        try:
            with file.open(encoding="utf-8-sig", newline="") as f:
                first_row = next(csv.reader(f, delimiter=_separator(file)), [])
        except (OSError, UnicodeDecodeError, csv.Error):
            return False
        return find_box_columns(first_row) is not None

    def find_single_files(self, folder: Path) -> list[Path]:
        """Return the only CSV file of a folder."""
        files = sorted(folder.glob("*.csv"))
        return files if len(files) == 1 else []

    def read(self, source: AnnotationSource, classes: Sequence[str] | None) -> RawAnnotations:
        """Read a file and the sizes of its images."""
        file = self.find_file(source)
        rows = _read_rows(file)
        names = require_classes([name for _, _, box, name in rows if box], classes, file)
        folders = (
            [source.images] if source.images else [file.parent, file.parent / "images", file.parent.parent]
        )
        root = next((folder for folder in folders if folder.is_dir()), folders[0])
        lookup = ImageLookup(folders[:2])
        paths = {
            image: lookup.find(image) or root / image for image in dict.fromkeys(row[1] for row in rows)
        }
        sizes = dict(zip(paths, read_image_sizes(list(paths.values())), strict=True))
        numbers = {image: number for number, image in enumerate(paths, 1)}
        ids = {name: number for number, name in enumerate(names, 1)}
        are_fractions = _are_fractions([box for _, _, box, _ in rows if box])
        annotations: list[dict[str, Any]] = []
        for line, image, box, name in rows:
            size = sizes[image]
            if box is None or size is None:
                continue
            width, height = size if are_fractions else (1, 1)
            scaled = [
                round_pixels(value * scale)
                for value, scale in zip(box, (width, height, width, height), strict=True)
            ]
            annotations.append(box_annotation(f"{file.name}:{line}", numbers[image], ids[name], scaled))
        images = [
            image_entry(numbers[image], name_in(root, path), sizes[image]) for image, path in paths.items()
        ]
        data = {"images": images, "annotations": annotations, "categories": categories_of_names(names)}
        notes = ("coordinates are all in [0, 1], taken as fractions of the image",) if are_fractions else ()
        return RawAnnotations(data, str(root), str(file), notes)

    def categories(self, source: AnnotationSource) -> list[dict[str, Any]]:
        """Return the names that occur, sorted."""
        file = self.find_file(source)
        names = [name for _, _, box, name in _read_rows(file) if box]
        return categories_of_names(require_classes(names, None, file))


def _separator(file: Path) -> str:
    """Return the separator that the first line has most often."""
    with file.open(encoding="utf-8-sig") as f:
        line = f.readline()
    return max(_SEPARATORS, key=line.count)


def _read_rows(file: Path) -> list[_Row]:
    """Return line number, image, box and class of each row."""
    problems = LabelProblems()
    rows: list[_Row] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as f:
            # Strict: otherwise a quotation mark without a second one would hide the rest of the file
            reader = csv.reader(f, delimiter=_separator(file), strict=True)
            first_row = next(reader, [])
            columns = _require_columns(first_row, file)
            if not columns.has_header:
                _add_row(rows, columns, first_row, reader.line_num, file, problems)
            for row in reader:
                if any(cell.strip() for cell in row):
                    _add_row(rows, columns, row, reader.line_num, file, problems)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as CSV ({error})") from None
    problems.raise_if_any(file)
    if not rows:
        raise DataError(f"{file}: has no rows")
    return rows


def _require_columns(first_row: Sequence[str], file: Path) -> BoxColumns:
    columns = find_box_columns(first_row)
    if columns is None:
        header = one_line(",".join(first_row), 200) or "(empty)"
        raise DataError(
            f"{file}: the header {header} names no columns for image and box: use image,x0,y0,x1,y1,class"
        )
    return columns


def _add_row(
    rows: list[_Row],
    columns: BoxColumns,
    row: Sequence[str],
    line: int,
    file: Path,
    problems: LabelProblems,
) -> None:
    try:
        rows.append((line, *columns.parse(row)))
    except ValueError as error:
        problems.add(f"{file.name}:{line}", str(error))


def _are_fractions(boxes: Sequence[Sequence[float]]) -> bool:
    """Return whether no box is larger than a pixel."""
    return bool(boxes) and all(max(box) <= 1 for box in boxes)


ANNOTATION_FORMATS.register(CSVReader(), name="csv")
