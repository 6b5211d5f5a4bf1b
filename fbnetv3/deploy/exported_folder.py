"""An exported folder: the model file, its preprocessing and class names, and a manifest with checksums."""

from __future__ import annotations

import contextlib
import json
import os
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
from fbnetv3.deploy.formats.export_format import FORMATS, get_format
from fbnetv3.deploy.formats.onnx_format import OnnxFormat, OnnxRuntime
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor, preprocessing_from_dict
from fbnetv3.deploy.predictors.detector_predictor import DetectorPredictor, resize_from_dict
from fbnetv3.errors import ExportError, UsageError, UserError, suggest
from fbnetv3.utils.files import PARTIAL_PREFIX, file_sha256, output_error, write_json

T = TypeVar("T")

MANIFEST_FILE = "manifest.json"
PREPROCESSING_FILE = "preprocessing.json"
CLASSES_FILE = "classes.json"
LAYOUT = 2
"""Version of the folder's layout; incremented when older versions of `load` can no longer read it."""
CLASSIFICATION = "classification"
DETECTION = "detection"


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        folder: the exported folder.
        model: the model file in it.
        manifest: the folder's manifest.
    """

    folder: Path
    model: Path
    manifest: Manifest


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json.

    Attributes:
        network: name of the architecture.
        format: a name in `FORMATS`.
        input: name, type and shape of the input; None in the shape for a dynamic size.
        output: name, type and shape of the logits; a list of these for a detector's boxes, scores and classes.
        files: "sha256" and size in "bytes" of each other file.
        versions: versions of Python and of the packages that exported the network.
        command: the command that exported it.
        verification: result of the comparison with the original network: number of "images", largest difference,
            "tolerance" and "runtime".
        task: "classification" or "detection".
        layout: version of the folder's layout.
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


def load(folder: str | os.PathLike) -> ClassifierPredictor | DetectorPredictor:
    """Load an exported folder of any format, after comparing every file with its checksum.

    Checksums detect corruption, not malice: like any torch.export archive, a .pt2 file may run code when it is loaded.
    Load such files only from people you trust. ONNX and ExecuTorch files contain no code.

    Args:
        folder: a folder written by `tools/export_net.py`, `export_classifier` or `export_detector`.

    Returns:
        A `ClassifierPredictor` or a `DetectorPredictor`.

    Raises:
        ExportError: it is not an exported folder, or a file is missing or corrupt; the message names it.
        MissingPackageError: the format's runtime is not installed; the message says what to install.
    """
    folder = Path(folder).expanduser()
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    # Files that match their checksums are still not trusted: each reader checks its file
    if manifest.task == DETECTION:
        return open_detector(folder, manifest.network)
    return open_classifier(folder, manifest.format, manifest.network)


def open_classifier(folder: Path, format: str, name: str) -> ClassifierPredictor:
    """Open a classifier's folder without reading its manifest."""
    export_format = get_format(format)
    preprocessing, classes = read_preprocessing(folder, preprocessing_from_dict)
    runtime = export_format.open(folder / export_format.file_name)
    return ClassifierPredictor(runtime, preprocessing, classes, name)


def open_detector(folder: Path, name: str) -> DetectorPredictor:
    """Open a detector's folder, whose model is an ONNX file, without reading its manifest."""
    resize, classes = read_preprocessing(folder, resize_from_dict)
    return DetectorPredictor(OnnxRuntime(folder / OnnxFormat().file_name), resize, classes, name)


def write_preprocessing(
    folder: Path,
    preprocessing: Mapping[str, Any],
    classes: Sequence[str],
) -> None:
    """Write preprocessing.json and classes.json."""
    write_json(folder / PREPROCESSING_FILE, preprocessing)
    write_json(folder / CLASSES_FILE, list(classes))


def read_preprocessing(folder: Path, from_dict: Callable[[dict[str, Any]], T]) -> tuple[T, list[str]]:
    """Read preprocessing.json and classes.json.

    Args:
        folder: the exported folder.
        from_dict: builds the preprocessing; raises TypeError, KeyError, ValueError or OverflowError for wrong fields.

    Returns:
        The preprocessing and the class names.
    """
    fields = _read_json(folder / PREPROCESSING_FILE)
    classes = _read_json(folder / CLASSES_FILE)
    # Check the types and values
    try:
        preprocessing = from_dict(fields)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise _corrupt(folder / PREPROCESSING_FILE, "unexpected content") from None
    if not isinstance(classes, list) or not classes:
        raise _corrupt(folder / CLASSES_FILE, "not a list of names")
    return preprocessing, [str(name) for name in classes]


def write_manifest(folder: Path, *, format: str, **fields: Any) -> Manifest:
    """Write the manifest, the last file of an exported folder.

    Args:
        folder: the exported folder, with all other files.
        format: format of the model file.
        fields: the other fields of `Manifest`, except files and versions.
    """
    file_names = (get_format(format).file_name, PREPROCESSING_FILE, CLASSES_FILE)
    paths = [folder / name for name in file_names]
    files = {path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in paths}
    manifest = Manifest(format=format, files=files, versions=_package_versions(format), **fields)
    write_json(folder / MANIFEST_FILE, asdict(manifest))
    return manifest


def _package_versions(format: str) -> dict[str, str]:
    versions = {"python": platform.python_version(), "fbnetv3": fbnetv3.__version__, "torch": torch.__version__}
    for name in get_format(format).packages:
        with contextlib.suppress(PackageNotFoundError):  # onnxruntime may be installed as onnxruntime-gpu
            versions[name] = version(name)
    return versions


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an exported folder."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        problem = "has no manifest.json: it is not an exported folder" if folder.is_dir() else "no such folder"
        raise ExportError(f"{folder}: {problem}; tools/export_net.py creates one")
    # Read the layout first: a newer one may have fields that are unknown here
    fields = _read_json(path)
    layout = fields.get("layout") if isinstance(fields, dict) else None
    if isinstance(layout, int) and layout > LAYOUT:
        raise ExportError(f"{folder}: exported by a newer version of fbnetv3: update this one, or export it again")
    # Check types
    try:
        manifest = Manifest(**fields)
        checksums = {name: (file["sha256"], file["bytes"]) for name, file in manifest.files.items()}
        is_known_format = manifest.format in FORMATS
    except (TypeError, KeyError, AttributeError):
        raise _corrupt(path, "not a manifest of an exported network") from None
    # Check values; the listed files must be exactly those of the format, so that no path leaves the folder
    if manifest.task not in (CLASSIFICATION, DETECTION):
        raise _corrupt(path, f"unknown task {manifest.task!r}")
    if not is_known_format:
        advice = f"{suggest(manifest.format, FORMATS.names())} Import the module that registers it (--import)"
        raise ExportError(f"{path}: unknown export format '{manifest.format}': {advice}")
    if set(checksums) != {get_format(manifest.format).file_name, PREPROCESSING_FILE, CLASSES_FILE}:
        raise _corrupt(path, f"lists the files {', '.join(sorted(checksums)) or 'none'}")
    return manifest


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare size and checksum of every file with the manifest."""
    for name, entry in manifest.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            is_unchanged = size == entry["bytes"] and file_sha256(path) == entry["sha256"]
        except OSError as error:
            raise _unreadable(path, error) from None
        if not is_unchanged:
            raise _corrupt(path, f"{size} bytes; size or SHA-256 differs from {MANIFEST_FILE}")


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Create a temporary folder that is renamed to `output` if the block succeeds, and deleted if it fails.

    Raises:
        UsageError: `output` exists and is not an empty folder.
        OutputError: it cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} already exists: choose a different folder, or delete it")
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=output.parent, prefix=PARTIAL_PREFIX))
        yield temporary
        # Make the folder readable: mkdtemp's folders are private
        temporary.chmod(0o755)
        temporary.replace(output)
    except UserError:
        raise
    except OSError as error:
        raise output_error(output, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise _corrupt(path, "not JSON") from None


def _corrupt(path: Path, reason: str) -> ExportError:
    return ExportError(f"{path}: corrupt ({reason}): copy the whole folder again, or export it again")


def _unreadable(path: Path, error: OSError) -> ExportError:
    return ExportError(f"{path}: cannot be read ({error.strerror}): copy the whole folder again, or export it again")
