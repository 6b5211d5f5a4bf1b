"""An exported folder: the model's file, how images become its input, its classes, and a manifest with checksums."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fbnetv3
from fbnetv3.data import Preprocessing
from fbnetv3.deploy.formats import FORMATS, INPUT, OUTPUT
from fbnetv3.errors import ExportError
from fbnetv3.file_io import atomic_write, file_sha256

MANIFEST, PREPROCESSING, CLASSES = "manifest.json", "preprocessing.json", "classes.json"
LAYOUT = 1
"""Of the folder; grows when an older `load` could no longer read it."""
_AGAIN = "export it again"


@dataclass(frozen=True)
class Manifest:
    """What lies in an exported folder.

    Attributes:
        network: name of the architecture.
        format: a key of `FORMATS`.
        input: name, type and shape of the input; None in the shape for a size that is open.
        output: name, type and shape of the logits.
        files: for each other file its "sha256" and its size in "bytes".
        versions: of Python and of what exported it.
        command: what exported it.
        verification: how it was compared with the network: "images", "largest_relative_difference", "tolerance",
            "runtime".
        layout: of the folder.
    """

    network: str
    format: str
    input: dict[str, Any]
    output: dict[str, Any]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    command: str
    verification: dict[str, Any]
    layout: int = LAYOUT


def tensors(format: str, preprocessing: Preprocessing, num_classes: int, any_size: bool) -> dict[str, dict[str, Any]]:
    """The manifest's "input" and "output"."""
    batch = None if FORMATS[format].any_batch else 1
    side = None if any_size else preprocessing.resolution
    shape = [batch, preprocessing.channels, side, side]
    return {
        "input": {"name": INPUT, "type": "float32", "shape": shape},
        "output": {"name": OUTPUT, "type": "float32", "shape": [batch, num_classes]},
    }


def versions(format: str) -> dict[str, str]:
    """Of Python, of us and of what writes and runs a format."""
    found = {"python": platform.python_version(), "fbnetv3": fbnetv3.__version__, "torch": torch.__version__}
    for name in FORMATS[format].packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # as where onnxruntime comes as onnxruntime-gpu
            continue
    return found


def write_description(folder: Path, preprocessing: Preprocessing, classes: list[str]) -> None:
    """Write what belongs to a model besides its file."""
    fields = {
        **asdict(preprocessing),
        "channels": {1: "grey", 3: "RGB"}[preprocessing.channels],
        "steps": [
            f"resize the short side to {preprocessing.resize} pixels ({preprocessing.interpolation}, antialiased)",
            f"crop the centre, {preprocessing.resolution} x {preprocessing.resolution}",
            "divide by 255, subtract mean, divide by std, for each channel",
            "order: image, channel, row, column",
        ],
    }
    _write_json(folder / PREPROCESSING, fields)
    _write_json(folder / CLASSES, list(classes))


def checksums(folder: Path, format: str) -> dict[str, dict[str, Any]]:
    """The manifest's "files"."""
    paths = [folder / name for name in (FORMATS[format].file, PREPROCESSING, CLASSES)]
    return {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, the last of a folder's files."""
    _write_json(folder / MANIFEST, asdict(manifest))


def _write_json(path: Path, value: object) -> None:
    with atomic_write(path) as f:
        f.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def is_bundle(path: Path) -> bool:
    """Whether a path is an exported folder."""
    return (path / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an exported folder.

    Raises:
        ExportError: there is none, it is damaged, or newer than this version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = "has no manifest.json: it is not an exported folder" if folder.is_dir() else "no such folder"
        raise ExportError(f"{folder}: {what}; tools/export_net.py makes one")
    fields = _read_json(path)
    if isinstance(fields, dict) and isinstance(fields.get("layout"), int) and fields["layout"] > LAYOUT:
        raise ExportError(f"{folder}: exported by a newer fbnetv3: update this one, or {_AGAIN} with this one")
    try:
        manifest = Manifest(**fields)
        listed = {name: (file["sha256"], file["bytes"]) for name, file in manifest.files.items()}
        wanted = {FORMATS[manifest.format].file, PREPROCESSING, CLASSES}
    except (TypeError, KeyError, AttributeError):
        raise ExportError(f"{path}: damaged, or not a manifest of an exported network: {_AGAIN}") from None
    if set(listed) != wanted:
        raise ExportError(f"{path}: damaged: lists {', '.join(sorted(listed))}: {_AGAIN}")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest.

    Raises:
        ExportError: a file is missing, or is not the one that was exported; the text names it.
    """
    for name, about in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            same = size == about["bytes"] and file_sha256(path) == about["sha256"]
        except OSError as error:
            raise ExportError(
                f"{path}: cannot be read ({error.strerror}): copy the whole folder, or {_AGAIN}"
            ) from None
        if not same:
            raise ExportError(
                f"{path}: damaged ({size} bytes; size or SHA-256 differ from {MANIFEST}): copy it or {_AGAIN}"
            )


def read_description(folder: Path) -> tuple[Preprocessing, list[str]]:
    """How images become the input, and the names of the classes.

    Raises:
        ExportError: a file makes no sense.
    """
    fields, classes = _read_json(folder / PREPROCESSING), _read_json(folder / CLASSES)
    try:
        preprocessing = Preprocessing(
            int(fields["resolution"]),
            int(fields["resize"]),
            tuple(map(float, fields["mean"])),
            tuple(map(float, fields["std"])),
            str(fields["interpolation"]),
        )
        if len(preprocessing.mean) != len(preprocessing.std) or len(preprocessing.mean) not in (1, 3):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise ExportError(f"{folder / PREPROCESSING}: damaged: {_AGAIN}") from None
    if not isinstance(classes, list) or not classes:
        raise ExportError(f"{folder / CLASSES}: is no list of names: {_AGAIN}")
    return preprocessing, [str(name) for name in classes]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}): {_AGAIN}") from None
    except ValueError:
        raise ExportError(f"{path}: damaged (not JSON): copy it or {_AGAIN}") from None
