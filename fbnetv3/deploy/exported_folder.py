"""An exported folder: the model's file, how images become its input, its classes, and a manifest with checksums."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

import fbnetv3
from fbnetv3.deploy.formats.export_formats import FORMATS
from fbnetv3.errors import ExportError, OutputError, UsageError, UserError
from fbnetv3.utils.files import PARTIAL_PREFIX, atomic_write, file_sha256

T = TypeVar("T")

MANIFEST, PREPROCESSING, CLASSES = "manifest.json", "preprocessing.json", "classes.json"
LAYOUT = 2
"""Of the folder; grows when an older `load` could no longer read it."""
CLASSIFICATION, DETECTION = "classification", "detection"
_AGAIN = "export it again"


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        folder: where it lies.
        model: the model's file in it.
        manifest: what the folder holds.
    """

    folder: Path
    model: Path
    manifest: Manifest


@dataclass(frozen=True)
class Manifest:
    """What lies in an exported folder.

    Attributes:
        network: name of the architecture.
        format: a key of `FORMATS`.
        input: name, type and shape of the input; None in the shape for a size that is open.
        output: name, type and shape of the logits; a list of these for a detector's boxes, scores and classes.
        files: for each other file its "sha256" and its size in "bytes".
        versions: of Python and of what exported it.
        command: what exported it.
        verification: how it was compared with the network: on how many "images", how far it was off, the "tolerance",
            the "runtime".
        task: classification or detection.
        layout: of the folder.
    """

    network: str
    format: str
    input: dict[str, Any]
    output: dict[str, Any] | list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    versions: dict[str, str]
    command: str
    verification: dict[str, Any]
    task: str = CLASSIFICATION
    layout: int = LAYOUT


def versions(format: str) -> dict[str, str]:
    """Of Python, of us and of what writes and runs a format."""
    found = {"python": platform.python_version(), "fbnetv3": fbnetv3.__version__, "torch": torch.__version__}
    for name in FORMATS[format].packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # as where onnxruntime comes as onnxruntime-gpu
            continue
    return found


def write_description(folder: Path, preprocessing: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Write what belongs to a model besides its file: how images become its input, and the classes' names."""
    _write_json(folder / PREPROCESSING, preprocessing)
    _write_json(folder / CLASSES, list(classes))


def checksums(folder: Path, format: str) -> dict[str, dict[str, Any]]:
    """The manifest's "files"."""
    paths = [folder / name for name in (FORMATS[format].file, PREPROCESSING, CLASSES)]
    return {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths}


def described(folder: Path, *, format: str, **fields: Any) -> Manifest:
    """Write the manifest, the last of a folder's files.

    Args:
        folder: holds the other files.
        format: of the model's file.
        fields: the manifest's, but those that the folder shows.
    """
    manifest = Manifest(format=format, files=checksums(folder, format), versions=versions(format), **fields)
    _write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def _write_json(path: Path, value: object) -> None:
    with atomic_write(path) as f:
        f.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


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
        if manifest.task not in (CLASSIFICATION, DETECTION):
            raise KeyError(manifest.task)
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


def read_description(folder: Path, parsed: Callable[[dict[str, Any]], T]) -> tuple[T, list[str]]:
    """How images become the input, and the names of the classes.

    Args:
        folder: the exported folder.
        parsed: makes sense of the fields, or raises TypeError, KeyError or ValueError.

    Raises:
        ExportError: a file makes no sense.
    """
    fields, classes = _read_json(folder / PREPROCESSING), _read_json(folder / CLASSES)
    try:
        preprocessing = parsed(fields)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise ExportError(f"{folder / PREPROCESSING}: damaged: {_AGAIN}") from None
    if not isinstance(classes, list) or not classes:
        raise ExportError(f"{folder / CLASSES}: is no list of names: {_AGAIN}")
    return preprocessing, [str(name) for name in classes]


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when the block ends well, and is gone when it does not.

    Raises:
        UsageError: there is something at `output` already.
        OutputError: it cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output}: is there already: choose another folder, or remove it")
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=PARTIAL_PREFIX))
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(output)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}): {_AGAIN}") from None
    except (ValueError, RecursionError):
        raise ExportError(f"{path}: damaged (not JSON): copy it or {_AGAIN}") from None
