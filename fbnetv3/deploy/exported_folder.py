"""An exported folder: the model file, its preprocessing and class names, and a manifest with checksums."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import torch

import fbnetv3
from fbnetv3.data.preprocessing_values import preprocessing_from_dict
from fbnetv3.deploy.formats.export_format import FLOAT32, FORMATS, INT8, Runtime, get_format
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.detector_predictor import (
    DETECTOR_OUTPUTS,
    DetectorPredictor,
    DetectorRuntime,
    resize_from_dict,
)
from fbnetv3.errors import ExportError, MissingPackageError, UsageError, suggest
from fbnetv3.utils.files import PARTIAL_PREFIX, as_output_error, expand_path, file_sha256, write_json
from fbnetv3.utils.text import one_line

T = TypeVar("T")

MANIFEST_FILE = "manifest.json"
PREPROCESSING_FILE = "preprocessing.json"
CLASS_NAMES_FILE = "classes.json"
INDEX_FILE = "formats.json"  # of a folder with several exports
_DATA_FILES = (PREPROCESSING_FILE, CLASS_NAMES_FILE)
# Version of the folder's layout; incremented when older versions of `load` can no longer read it
MANIFEST_VERSION = 4
_FIRST_BATCHED_DETECTOR = 3  # before, a detector took a single image
CLASSIFICATION = "classification"
DETECTION = "detection"


@dataclass(frozen=True)
class ExportedNetwork:
    """An exported network: its folder, the model file in it, and the manifest."""

    folder: Path
    model: Path
    manifest: Manifest


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    `input` and `output` have "name", "type" and "shape", where None means any size; detectors have a list of outputs.
    The output of a classifier also has the "activation" that turns logits into probabilities: "softmax", or "sigmoid"
    for several labels per image.
    `files` has the "sha256" and the size in "bytes" of every other file. `verification` is the result of the
    comparison with the original network; under the name of a lower `precision`, that of the comparison with float32.
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
    precision: str = FLOAT32
    layout: int = MANIFEST_VERSION


def is_exported_folder(path: str | os.PathLike) -> bool:
    """Return whether a path is a folder that an export has written, of one format or of several."""
    folder = expand_path(path)
    return (folder / MANIFEST_FILE).is_file() or is_collection(folder)


def is_collection(folder: Path) -> bool:
    """Return whether a folder has exports in several formats; see `export_collection`."""
    return (folder / INDEX_FILE).is_file()


def open_classifier(
    folder: Path, name: str, open_runtime: Callable[[], Runtime], *, multi_label: bool = False
) -> ClassifierPredictor:
    """Open a classifier's folder without reading its manifest; `open_runtime` opens the model file."""
    preprocessing, classes = read_preprocessing(folder, preprocessing_from_dict)
    return ClassifierPredictor(open_runtime(), preprocessing, classes, name, multi_label)


def open_detector(
    folder: Path, name: str, output_names: Sequence[str], open_runtime: Callable[[], Runtime]
) -> DetectorPredictor:
    """Open a detector's folder without reading its manifest; `open_runtime` opens the model file."""
    resize, classes = read_preprocessing(folder, resize_from_dict)
    runtime = cast("DetectorRuntime", open_runtime())  # the formats of detectors have these
    return DetectorPredictor(runtime, resize, classes, name, output_names[len(DETECTOR_OUTPUTS) :])


def write_preprocessing(folder: Path, preprocessing: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Write preprocessing.json and classes.json."""
    write_json(folder / PREPROCESSING_FILE, preprocessing)
    write_json(folder / CLASS_NAMES_FILE, list(classes))


def read_preprocessing(folder: Path, from_dict: Callable[[dict[str, Any]], T]) -> tuple[T, list[str]]:
    """Read the class names, and preprocessing.json, which `from_dict` checks and converts."""
    path = folder / PREPROCESSING_FILE
    with as_file_error(path):
        preprocessing = from_dict(json.loads(path.read_text()))
    path = folder / CLASS_NAMES_FILE
    with as_file_error(path):
        classes = json.loads(path.read_text())
        if not isinstance(classes, list) or not classes:
            raise ValueError("not a list of names")
    return preprocessing, [str(name) for name in classes]


def write_manifest(folder: Path, *, format: str, **fields: Any) -> Manifest:
    """Write the manifest, which lists all other files of a folder. `fields` are the other fields of `Manifest`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in paths
    }
    versions = {
        "python": platform.python_version(),
        "fbnetv3": fbnetv3.__version__,
        "torch": torch.__version__,
        **get_format(format).package_versions(),
    }
    manifest = Manifest(format=format, files=files, versions=versions, **fields)
    write_json(folder / MANIFEST_FILE, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an exported folder, and compare the size and checksum of every other file with it."""
    path = folder / MANIFEST_FILE
    if is_collection(folder):
        exports = ", ".join(sorted(each.parent.name for each in folder.glob(f"*/{MANIFEST_FILE}")))
        raise ExportError(f"{folder}: has exports in several formats: name one of its folders: {exports}")
    if not path.is_file():
        problem = f"is not an exported folder (no {MANIFEST_FILE})" if folder.is_dir() else "no such folder"
        raise ExportError(f"{folder}: {problem}; create one with tools/export_net.py")
    with as_file_error(path):
        fields = json.loads(path.read_text())
        # Read the layout first: a newer one may have fields that are unknown here
        if fields.get("layout", MANIFEST_VERSION) > MANIFEST_VERSION:
            raise ExportError(
                f"{folder}: exported by a newer version of fbnetv3: update this one, or export it again"
            )
        if fields.get("task") == DETECTION and fields.get("layout", 0) < _FIRST_BATCHED_DETECTOR:
            raise ExportError(
                f"{folder}: a detector exported by an older version of fbnetv3: export it again"
            )
        # Older layouts do not have the precision
        fields.setdefault("precision", INT8 if INT8 in fields.get("verification", {}) else FLOAT32)
        manifest = Manifest(**fields)
        if manifest.format not in FORMATS:
            choices = suggest(manifest.format, FORMATS.names())
            raise ExportError(
                f"{path}: unknown export format '{manifest.format}': {choices}; or import the module that registers it "
                "(--import)"
            )
        if manifest.task not in (CLASSIFICATION, DETECTION):
            raise ValueError(f"unknown task {manifest.task!r}")
        model = get_format(manifest.format).file_name
        # Some models are folders
        has_model = any(name == model or name.startswith(f"{model}/") for name in manifest.files)
        has_data = set(_DATA_FILES) <= manifest.files.keys()
        if not (has_model and has_data) or not all(map(_is_inside_folder, manifest.files)):
            raise ValueError(f"lists the files {', '.join(manifest.files) or 'none'}")
    for name, entry in manifest.files.items():
        with as_file_error(folder / name):
            size = (folder / name).stat().st_size
            if size != entry["bytes"] or file_sha256(folder / name) != entry["sha256"]:
                raise ValueError(
                    f"has {size} bytes, and its size or SHA-256 differs from {MANIFEST_FILE}, as in a file of another "
                    "export"
                )
    return manifest


def _is_inside_folder(name: str) -> bool:
    """Return whether a path of a manifest is relative and cannot leave the folder."""
    path = PurePosixPath(name)
    # Backslashes and colons are part of paths on Windows
    return not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":"}


@contextlib.contextmanager
def as_file_error(path: Path) -> Iterator[None]:
    """Turn the errors of reading and checking an untrusted file into an ExportError that names the file."""
    try:
        yield
    except (ExportError, MissingPackageError):
        raise
    except Exception as error:  # corrupt content may raise almost anything
        problem = f"corrupt ({one_line(error)})"
        if isinstance(error, OSError):
            problem = f"cannot be read ({error.strerror})"
        raise ExportError(f"{path}: {problem}: copy the whole folder again, or export it again") from None


@contextlib.contextmanager
def atomic_folder(output: Path) -> Iterator[Path]:
    """Create a temporary folder that is renamed to `output` if the block succeeds, and deleted if it fails."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output} already exists: choose a different folder, or delete it")
    with as_output_error(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=PARTIAL_PREFIX) as temporary:
            # A folder inside has the usual permissions; temporary folders are private
            folder = Path(temporary) / "exported"
            folder.mkdir()
            yield folder
            folder.replace(output)
