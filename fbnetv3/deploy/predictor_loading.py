"""Load exported folders as predictors, in the runtime that is asked for or in the fastest."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from fbnetv3.data.classes.keypoint_skeleton import skeleton_from_dict
from fbnetv3.deploy.collection_index import read_index
from fbnetv3.deploy.exported_folder import (
    CLASSIFICATION,
    DETECTION,
    MANIFEST_FILE,
    Manifest,
    as_file_error,
    is_collection,
    open_classifier,
    open_detector,
    read_manifest,
)
from fbnetv3.deploy.formats.export_format import FLOAT32, get_format
from fbnetv3.deploy.model_check import check_classifier_files, check_detector_files
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.detector_predictor import (
    CLASSES_OUTPUT,
    HEATMAPS,
    SCORES_OUTPUT,
    DetectorPredictor,
)
from fbnetv3.deploy.runtime_choice import (
    AUTO,
    choose_fastest,
    predictor_runs,
    predictors_agree,
    predictors_are_similar,
    runtime_openers,
)
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.modeling.torch_device import AUTO_DEVICE, CPU
from fbnetv3.utils.files import expand_path


def load(
    folder: str | os.PathLike, runtime: str | None = None, device: str = CPU
) -> ClassifierPredictor | DetectorPredictor:
    """Load an exported folder of any format, after comparing every file with its checksum.

    Of a folder with several exports (`--format all`), the fastest on this machine is loaded, among those whose runtime
    is installed and that give the right outputs.

    Checksums detect corruption, not tampering: like any torch.export archive, a .pt2 file may run code when it is
    loaded, and one of AOTInductor is native code. Load such files only from people you trust. ONNX, OpenVINO,
    ExecuTorch, LiteRT, Core ML and NCNN files contain no code.

    Args:
        folder: a folder written by `tools/export_net.py`, `export_classifier` or `export_detector`.
        runtime: with one export, one of the format's runtimes, such as "openvino" for ONNX files; "auto" runs all that
            are installed for a moment, and takes the fastest of those that give the outputs of the format's own.
            Default: the latter.
        device: device to compute on: "cpu"; "cuda" or "cuda:1", for formats and runtimes that can use a GPU; or "auto",
            a GPU if there is one that the runtime can use.

    Raises:
        ExportError: the folder is not an exported folder, or one of its files is missing or corrupt; the message names
            the file.
        MissingPackageError: the runtime is not installed; the message says what to install.
        UsageError: the format has no such runtime, or the runtime cannot use the device.
    """
    folder = expand_path(folder)
    if is_collection(folder):
        if runtime not in (None, AUTO):
            raise UsageError(
                f"{folder}: has several exports: name one of its folders to choose the runtime"
            )
        return _load_fastest(folder, device)
    manifest = read_manifest(folder)
    openers = predictor_openers(folder, manifest, runtime, device)
    if len(openers) == 1:
        (open_predictor,) = openers.values()
        return open_predictor()
    # Lower precisions are rounded differently by every runtime
    tolerance = manifest.verification.get("tolerance") if manifest.precision == FLOAT32 else None
    agrees = partial(predictors_agree, tolerance=tolerance)
    any_batch = manifest.task == CLASSIFICATION and manifest.input["shape"][0] is None
    return choose_fastest(openers, agrees, predictor_runs(any_batch))


def _load_fastest(folder: Path, device: str) -> ClassifierPredictor | DetectorPredictor:
    variants = [variant for variant in read_index(folder) if not variant.problem]
    # A float32 export is the reference for all others
    variants.sort(key=lambda variant: variant.precision != FLOAT32)
    openers: dict[str, Callable[[], Any]] = {}
    task = ""
    for variant in variants:
        export_format = get_format(variant.format)
        is_for_cpus = not export_format.device_runtimes()
        if export_format.why_not_run_here() or (is_for_cpus and device not in (CPU, AUTO_DEVICE)):
            continue
        path = folder / variant.folder
        manifest = read_manifest(path)
        task = manifest.task
        openers |= {
            f"{variant.folder} in {name}": opener
            for name, opener in predictor_openers(path, manifest, AUTO, device).items()
        }
    if not openers:
        raise ExportError(f"{folder}: none of its exports runs here on device {device!r}")
    return choose_fastest(openers, predictors_are_similar, predictor_runs(task == CLASSIFICATION))


def predictor_openers(
    folder: Path, manifest: Manifest, runtime: str | None, device: str = CPU
) -> dict[str, Callable[[], Any]]:
    """Return functions that open a folder as a predictor, by name of the runtime; see `runtime_openers`."""
    export_format = get_format(manifest.format)
    path = folder / export_format.file_name
    openers = runtime_openers(export_format, path, manifest.precision, runtime, device)
    return {name: partial(_open_predictor, folder, manifest, opener) for name, opener in openers.items()}


def _open_predictor(
    folder: Path, manifest: Manifest, open_runtime: Callable[[], Any]
) -> ClassifierPredictor | DetectorPredictor:
    # Files that match their checksums are still not trusted: each reader checks its file
    model = folder / get_format(manifest.format).file_name
    if manifest.task == DETECTION:
        outputs = cast("list[dict[str, Any]]", manifest.output)
        output_names = [output["name"] for output in outputs]
        detector = open_detector(folder, manifest.network, output_names, open_runtime)
        category_ids = _category_ids(outputs)
        if len(category_ids) not in (0, len(detector.classes)):
            raise ExportError(
                f"{folder}: has {len(category_ids)} category ids for {len(detector.classes)} classes: export it again"
            )
        with as_file_error(folder / MANIFEST_FILE):
            skeleton = skeleton_from_dict(_output_entry(outputs, HEATMAPS).get("keypoints"))
            check_detector_files(detector, model, manifest.input, outputs)
            min_score = float(_output_entry(outputs, SCORES_OUTPUT).get("threshold", 0))
        return replace(detector, category_ids=category_ids, skeleton=skeleton, min_score=min_score)
    is_sigmoid = isinstance(manifest.output, dict) and manifest.output.get("activation") == "sigmoid"
    classifier = open_classifier(folder, manifest.network, open_runtime, multi_label=is_sigmoid)
    with as_file_error(folder / MANIFEST_FILE):
        check_classifier_files(classifier, model, manifest.input, manifest.output)
    return classifier


def _category_ids(outputs: Sequence[Mapping[str, Any]]) -> list[int | float | str]:
    """Return the category ids of a detector's classes; empty if the export does not have them."""
    return list(_output_entry(outputs, CLASSES_OUTPUT).get("category_ids") or [])


def _output_entry(outputs: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """Return the manifest's entry of an output; empty if there is none."""
    return next((output for output in outputs if output["name"] == name), {})
