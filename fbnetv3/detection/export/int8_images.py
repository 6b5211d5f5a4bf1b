"""Choose the images on which a detector of a lower precision is calibrated, compared and evaluated."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from fbnetv3.deploy.detector_graph.detector_int8 import AveragePrecision, DetectorPrecisionSettings
from fbnetv3.deploy.formats.export_format import INT8
from fbnetv3.deploy.formats.quantization import split_image_folder
from fbnetv3.deploy.input_images import load_rgb_array, sample_image_files
from fbnetv3.deploy.predictors.detector_predictor import DetectorPredictor
from fbnetv3.detection.data.detection_datasets import detector_classes, load_dataset_dicts
from fbnetv3.detection.inference.array_predictors import to_instances
from fbnetv3.detection.recorded_detectors import recorded_classes
from fbnetv3.detection.training.detector_evaluation import evaluate_datasets
from fbnetv3.errors import DataError, UsageError
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.utils.text import evenly_spaced

MAX_CALIBRATION_IMAGES = 100


def detector_precision_settings(
    cfg: CfgNode,
    weights: str | os.PathLike,
    classes: Sequence[str] | None = None,
    *,
    precision: str = INT8,
    calibration: str | os.PathLike | None = None,
    max_images: int = 1000,
    **limits: Any,
) -> DetectorPrecisionSettings:
    """Choose the images for `export_detector(..., precision=...)`.

    Calibration images come from the folder `calibration`, or else from `DATASETS.TRAIN`. Up to `max_images` images of
    the first dataset of `DATASETS.TEST` are compared, and AP is computed on the whole of it. If it does not exist, the
    folder is split. Without a test dataset, or without objects in it, agreement decides. `classes` name the outputs of
    weights that do not record their classes; `limits` are other fields of `DetectorPrecisionSettings`. Only int8 is
    calibrated: other `precision`s need only images to compare on.

    Raises:
        UsageError: neither a folder nor a dataset has images.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = os.fspath(weights)
    test_names = [name for name in cfg.DATASETS.TEST if dataset_images([name], 1)][:1]
    compared: Sequence[Any] = dataset_images(test_names, max_images)
    images: Sequence[Any] = ()
    if precision != INT8:
        compared = compared or (sample_image_files(calibration, max_images) if calibration else ())
    elif calibration is not None and not compared:
        images, compared = split_image_folder(calibration, MAX_CALIBRATION_IMAGES, max_images)
    elif calibration is not None:
        images = sample_image_files(calibration, MAX_CALIBRATION_IMAGES)
    else:
        images = dataset_images(cfg.DATASETS.TRAIN, MAX_CALIBRATION_IMAGES)
    if not compared or (precision == INT8 and not images):
        raise UsageError(
            f"{precision} needs images: name a folder (--calibration), or set DATASETS.TRAIN and DATASETS.TEST to "
            "datasets that exist"
        )
    # Recorded names match the dataset's, whatever names the export gets
    recorded = recorded_classes(read_detector_record(os.fspath(weights)))
    names = list(detector_classes(cfg).values()) if recorded or classes is None else classes
    has_objects = bool(test_names) and _has_objects(test_names[0])
    measure_ap = average_precision(cfg, test_names[0], names) if has_objects else None
    return DetectorPrecisionSettings(precision, compared, images, measure_ap, **limits)


def dataset_images(names: Sequence[str], count: int) -> list[str]:
    """Return up to `count` evenly spaced image files of the first of these datasets that has any on disk."""
    for name in names:
        try:
            files = [image["file_name"] for image in load_dataset_dicts(name)]
        except (DataError, UsageError):
            continue
        if existing := [file for file in evenly_spaced(files, count) if os.path.isfile(file)]:
            return existing
    return []


def _has_objects(name: str) -> bool:
    """Return whether there is anything to find in a dataset, without which AP is NaN."""
    images = load_dataset_dicts(name)
    return any(not a.get("iscrowd", 0) for image in images for a in image.get("annotations", ()))


def average_precision(cfg: CfgNode, name: str, classes: Sequence[str]) -> AveragePrecision:
    """Return a function that computes an exported detector's box AP in percent on a registered dataset."""
    # Exported graphs have no test-time augmentation
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.AUG.ENABLED = False

    def compute(predictor: DetectorPredictor, precision: str) -> float:
        model = _ExportedModel(predictor)
        results = evaluate_datasets(cfg, model, [name], ProcessGroup(), classes=classes, network=precision)
        return results[name]["bbox"]["AP"]

    return compute


class _ExportedModel(nn.Module):
    """An exported detector as detectron2's evaluation calls it; it reads the images itself."""

    def __init__(self, predictor: DetectorPredictor) -> None:
        super().__init__()
        self._predictor = predictor

    def forward(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        outputs = []
        for image in inputs:
            pixels = load_rgb_array(image["file_name"])
            outputs.append({"instances": to_instances(self._predictor.detect(pixels), pixels.shape)})
        return outputs
