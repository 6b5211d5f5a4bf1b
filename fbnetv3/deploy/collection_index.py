"""The index of a folder with exports in several formats and precisions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fbnetv3.deploy.exported_folder import INDEX_FILE, as_file_error
from fbnetv3.deploy.formats.export_format import FLOAT32, FORMATS, PRECISIONS


@dataclass(frozen=True)
class Variant:
    """An export of the collection, or why it does not exist."""

    format: str
    precision: str
    problem: str = ""  # why it was not exported
    bytes: int = 0  # of the model
    difference: float | None = None  # see `largest_difference`
    before: float | None = None  # top-1 or AP of float32, in percent, if it was measured
    after: float | None = None  # top-1 or AP of this precision
    agreement: float | None = None  # of this precision with float32, in percent
    milliseconds: float | None = None  # per image, with as many threads as torch uses

    @property
    def folder(self) -> str:
        """Name of its folder in the collection."""
        return self.format if self.precision == FLOAT32 else f"{self.format}_{self.precision}"


def read_index(folder: Path) -> list[Variant]:
    """Read the index of a collection."""
    path = folder / INDEX_FILE
    with as_file_error(path):
        variants = [Variant(**fields) for fields in json.loads(path.read_text())["variants"]]
        for variant in variants:
            if variant.format not in FORMATS or variant.precision not in PRECISIONS:
                raise ValueError(f"unknown format {variant.format} in {variant.precision}")
    return variants
