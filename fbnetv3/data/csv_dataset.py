"""Datasets in CSV files: one class per image, or several labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data.image_io import EncodedImage, read_encoded_image
from fbnetv3.errors import DataError, suggest

SEPARATOR = "|"


class CsvDataset:
    """The images of a CSV file with the columns `file` and `label` (one class) or `labels` (several or none).

    The path of a file is absolute or relative to the CSV file. Columns are separated by commas, semicolons or tabs,
    labels by "|"; an image may also have several rows.

    Args:
        file: the CSV file.
        classes: names of the classes; default: all labels in the file, sorted.

    Raises:
        DataError: the file is missing or not as described, or has a label that is not in `classes`.
    """

    def __init__(self, file: Path, classes: Sequence[str] | None = None) -> None:
        self.file = file
        rows, self.multi_label = _read_rows(file)
        self.paths = list(rows)
        self.classes = (
            sorted({label for labels in rows.values() for label in labels})
            if classes is None
            else list(classes)
        )
        if not self.classes:
            raise DataError(f"{file}: has no labels")
        # Class indices (images,), or 1 for each label that an image has, (images, classes)
        index = {name: i for i, name in enumerate(self.classes)}
        labels = np.zeros((len(rows), len(self.classes)), np.float32)
        for row, (path, names) in enumerate(rows.items()):
            for name in names:
                if name not in index:
                    problem = f"{file}: {path} has the label {name!r}, which no training image has"
                    raise DataError(f"{problem}: {suggest(name, self.classes)}")
                labels[row, index[name]] = 1
        self.targets = labels if self.multi_label else labels.argmax(1)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[EncodedImage, int | Tensor]:
        target = self.targets[index]
        image = read_encoded_image(self.image_name(index))
        return image, torch.from_numpy(target) if self.multi_label else int(target)

    def image_name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.file.parent / self.paths[index])


def _read_rows(file: Path) -> tuple[dict[str, list[str]], bool]:
    """Return the labels of each image, and whether an image may have several."""
    rows: dict[str, list[str]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            # Spreadsheets in some languages separate columns with semicolons
            header = stream.readline()
            separator = max(",;\t", key=header.count)
            stream.seek(0)
            reader = csv.DictReader(stream, delimiter=separator, skipinitialspace=True)
            reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
            column = next((name for name in ("label", "labels") if name in columns), None)
            if "file" not in columns or column is None:
                found_columns = ", ".join(columns)
                raise DataError(
                    f"{file}: needs the columns file and label (or labels) in its first line, not {found_columns!r}"
                )
            for row in reader:
                _add_row(rows, row, column, f"{file}:{reader.line_num}")
    except OSError:
        raise DataError(f"{file}: no such file; each split needs one") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: is not a CSV file in UTF-8 ({error})") from None
    if not rows:
        raise DataError(f"{file}: lists no images")
    return rows, column == "labels"


def _add_row(rows: dict[str, list[str]], row: dict[str, str], column: str, where: str) -> None:
    """Add a row of the file; `where` names it in errors."""
    path, text = (row["file"] or "").strip(), (row[column] or "").strip()
    if not path:
        raise DataError(f"{where}: names no file")
    path = os.path.normpath(path)  # ./a.png and a.png are the same image
    if column == "label":
        if not text or path in rows:
            problem = "has no label" if not text else "is listed twice"
            raise DataError(
                f"{where}: {path} {problem}; for several labels or none, name the column labels"
            )
        rows[path] = [text]
        return
    labels = (label.strip() for label in text.split(SEPARATOR))
    rows.setdefault(path, []).extend(label for label in labels if label)


def open_csv(folder: Path, names: Sequence[str]) -> CsvDataset:
    """Open the first `folder/NAME.csv` that exists. The classes are those of the training images if train.csv exists.

    Raises:
        DataError: there is no such file, it is not as described, or it has labels that no training image has.
    """
    files = [folder / f"{name}.csv" for name in names]
    file = next((file for file in files if file.exists()), files[0])
    train_file = folder / "train.csv"
    # To evaluate a network, its training images are not needed
    if file == train_file or (file.exists() and not train_file.exists()):
        return CsvDataset(file)
    train = CsvDataset(train_file)
    dataset = CsvDataset(file, train.classes)
    if dataset.multi_label != train.multi_label:
        raise DataError(f"{file}: must have the same columns as {train.file}")
    return dataset
