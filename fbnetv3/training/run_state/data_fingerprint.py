"""Fingerprint of a dataset: the number of its images, and a digest of their names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fbnetv3.data.datasets import ImageDataset


def image_names_digest(dataset: ImageDataset) -> str:
    """Return the SHA-256 of the images' folders and names in their order, so that a dataset may have moved.

    Hashing the contents would take too long.
    """
    names = hashlib.sha256()
    for index in range(len(dataset)):
        names.update("/".join(Path(dataset.image_name(index)).parts[-2:]).encode() + b"\n")
    return names.hexdigest()


def data_fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """Return the number of "images" and the "sha256" of their names."""
    return {"images": len(dataset), "sha256": image_names_digest(dataset)}
