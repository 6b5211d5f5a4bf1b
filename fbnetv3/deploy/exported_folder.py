"""An exported folder: the model file, its preprocessing and class names, and a manifest with checksums."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

import torch

import fbnetv3
from fbnetv3.data.classes.keypoint_skeleton import skeleton_from_dict
from fbnetv3.data.preprocessing_values import preprocessing_from_dict
from fbnetv3.deploy.formats.export_format import FLOAT32, FORMATS, INT8, get_format
from fbnetv3.deploy.formats.onnx_format import OnnxFormat, OnnxRuntime
from fbnetv3.deploy.model_check import check_classifier_files, check_detector_files
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.detector_predictor import (
    CLASSES_OUTPUT,
    DETECTOR_OUTPUTS,
    HEATMAPS,
    SCORES_OUTPUT,
    DetectorPredictor,
    resize_from_dict,
)
from fbnetv3.errors import ExportError, MissingPackageError, UsageError, suggest
from fbnetv3.utils.files import PARTIAL_PREFIX, as_output_error, expand_path, file_sha256, write_json
from fbnetv3.utils.text import one_line

T = TypeVar("T")

MANIFEST_FILE = "manifest.json"
PREPROCESSING_FILE = "preprocessing.json"
CLASS_NAMES_FILE = "classes.json"
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


def load(folder: str | os.PathLike) -> ClassifierPredictor | DetectorPredictor:
    """Load an exported folder of any format, after comparing every file with its checksum.

    Checksums detect corruption, not tampering: like any torch.export archive, a .pt2 file may run code when it is
    loaded, and one of AOTInductor is native code. Load such files only from people you trust. ONNX, ExecuTorch, LiteRT,
    Core ML and NCNN files contain no code.

    Args:
        folder: a folder written by `tools/export_net.py`, `export_classifier` or `export_detector`.

    Raises:
        ExportError: the folder is not an exported folder, or one of its files is missing or corrupt; the message names
            the file.
        MissingPackageError: the format's runtime is not installed; the message says what to install.
    """
    folder = expand_path(folder)
    manifest = read_manifest(folder)
    # Files that match their checksums are still not trusted: each reader checks its file
    if manifest.task == DETECTION:
        outputs = cast("list[dict[str, Any]]", manifest.output)
        detector = open_detector(folder, manifest.network, [output["name"] for output in outputs])
        category_ids = _category_ids(outputs)
        if len(category_ids) not in (0, len(detector.classes)):
            raise ExportError(
                f"{folder}: has {len(category_ids)} category ids for {len(detector.classes)} classes: export it again"
            )
        with as_file_error(folder / MANIFEST_FILE):
            skeleton = skeleton_from_dict(_output_entry(outputs, HEATMAPS).get("keypoints"))
            check_detector_files(detector, folder / OnnxFormat().file_name, manifest.input, outputs)
            min_score = float(_output_entry(outputs, SCORES_OUTPUT).get("threshold", 0))
        return replace(detector, category_ids=category_ids, skeleton=skeleton, min_score=min_score)
    is_sigmoid = isinstance(manifest.output, dict) and manifest.output.get("activation") == "sigmoid"
    classifier = open_classifier(
        folder, manifest.format, manifest.network, precision=manifest.precision, multi_label=is_sigmoid
    )
    model = folder / get_format(manifest.format).file_name
    with as_file_error(folder / MANIFEST_FILE):
        check_classifier_files(classifier, model, manifest.input, manifest.output)
    return classifier


def _category_ids(outputs: Sequence[Mapping[str, Any]]) -> list[int | float | str]:
    """Return the category ids of a detector's classes; empty if the export does not have them."""
    return list(_output_entry(outputs, CLASSES_OUTPUT).get("category_ids") or [])


def _output_entry(outputs: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return the manifest's entry of an output; empty if there is none."""
    return next((output for output in outputs if output["name"] == name), {})


def is_exported_folder(path: str | os.PathLike) -> bool:
    """Return whether a path is a folder that an export has written."""
    return (expand_path(path) / MANIFEST_FILE).is_file()


def open_classifier(
    folder: Path, format: str, name: str, *, precision: str = FLOAT32, multi_label: bool = False
) -> ClassifierPredictor:
    """Open a classifier's folder without reading its manifest."""
    export_format = get_format(format)
    preprocessing, classes = read_preprocessing(folder, preprocessing_from_dict)
    runtime = export_format.open(folder / export_format.file_name, precision)
    return ClassifierPredictor(runtime, preprocessing, classes, name, multi_label)


def open_detector(
    folder: Path, name: str, output_names: Sequence[str] = DETECTOR_OUTPUTS
) -> DetectorPredictor:
    """Open a detector's folder, whose model is an ONNX file, without reading its manifest."""
    resize, classes = read_preprocessing(folder, resize_from_dict)
    runtime = OnnxRuntime(folder / OnnxFormat().file_name)
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
    }
    for package in get_format(format).packages:
        # onnxruntime may be installed as onnxruntime-gpu
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    manifest = Manifest(format=format, files=files, versions=versions, **fields)
    write_json(folder / MANIFEST_FILE, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an exported folder, and compare the size and checksum of every other file with it."""
    path = folder / MANIFEST_FILE
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
