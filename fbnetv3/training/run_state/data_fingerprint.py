"""Fingerprint of a dataset: the number of its images, and a digest of their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fbnetv3.data.datasets import ImageDataset


def image_names_digest(dataset: ImageDataset) -> str:
    """Return the SHA-256 of the images' folders and names in their order; see `fingerprint_of_names`."""
    return fingerprint_of_names(_image_names(dataset))["sha256"]


def data_fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """Return the number of "images" and the "sha256" of their names."""
    return fingerprint_of_names(_image_names(dataset))


def fingerprint_of_names(names: Iterable[str]) -> dict[str, Any]:
    """Return the number of "images" and the "sha256" of their folders and names, so that a dataset may have moved.

    Hashing the contents would take too long.
    """
    digest = hashlib.sha256()
    count = 0
    for name in names:
        digest.update("/".join(Path(name).parts[-2:]).encode() + b"\n")
        count += 1
    return {"images": count, "sha256": digest.hexdigest()}


def _image_names(dataset: ImageDataset) -> Iterator[str]:
    return (dataset.image_name(index) for index in range(len(dataset)))
