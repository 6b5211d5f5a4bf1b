"""Fingerprint of a dataset: the number of its images, digests of their names and labels, and counts by class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.data.datasets import ImageDataset
from fbnetv3.utils.text import first_few

_MAX_LISTED = 10


def image_names_digest(dataset: ImageDataset) -> str:
    """Return the SHA-256 of the images' folders and names in their order; see `fingerprint_of_names`."""
    return fingerprint_of_names(_image_names(dataset))["sha256"]


def data_fingerprint(dataset: ImageDataset) -> dict[str, Any]:
    """Return the number of "images" and the "sha256" of their names.

    If the dataset knows the classes of its images, also the SHA-256 of their "labels", whatever the order of the
    classes, and the number of images "by_class".
    """
    fingerprint = fingerprint_of_names(_image_names(dataset))
    if not hasattr(dataset, "targets") or not len(dataset):
        return fingerprint
    # A row of labels for each image
    order = np.argsort(dataset.classes, kind="stable")
    targets = np.asarray(dataset.targets).astype(np.int64)
    position = np.argsort(order)
    rows = position[targets] if targets.ndim == 1 else targets[:, order]
    counts = np.bincount(targets, minlength=len(order)) if targets.ndim == 1 else targets.sum(0)
    present = {name: int(counts[i]) for i, name in enumerate(dataset.classes) if counts[i]}
    digest = hashlib.sha256(
        "\n".join(sorted(dataset.classes)).encode() + np.ascontiguousarray(rows).tobytes()
    )
    return {**fingerprint, "labels": digest.hexdigest(), "by_class": present}


def describe_change(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Describe how a dataset differs from that of a saved fingerprint; "" if it is the same.

    Only what was saved is compared: older fingerprints have no labels.
    """
    if all(current.get(key) == value for key, value in saved.items()):
        return ""
    is_same_files = saved.get("sha256") == current["sha256"]
    difference = (
        "the same files with other labels" if is_same_files else f"{saved.get('images')} in the checkpoint"
    )
    before, now = saved.get("by_class", {}), current.get("by_class", {})
    changes = [
        f"{name} {before.get(name, 0)} -> {now.get(name, 0)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]
    return (
        f"{difference}; images by class: {first_few(changes, _MAX_LISTED)}"
        if before and changes
        else difference
    )


def fingerprint_of_names(names: Iterable[str]) -> dict[str, Any]:
    """Return the number of "images" and the "sha256" of their folders and names, so that a dataset may have moved.

    Hashing the contents would take too long.
    """
    digest = hashlib.sha256()
    count = 0
    for name in names:
        digest.update(_folder_and_name(name).encode() + b"\n")
        count += 1
    return {"images": count, "sha256": digest.hexdigest()}


def _folder_and_name(path: str) -> str:
    parts = path.rsplit("/", 2)[-2:]
    # pathlib takes five times as long, but knows everything that a path may be
    if os.sep != "/" or "" in parts or "." in parts:
        parts = list(Path(path).parts[-2:])
    return "/".join(parts)


def _image_names(dataset: ImageDataset) -> Iterator[str]:
    return (dataset.image_name(index) for index in range(len(dataset)))
