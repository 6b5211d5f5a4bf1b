"""Average precision of a detector on datasets, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    PascalVOCDetectionEvaluator,
    inference_on_dataset,
)
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn
from torch.utils.data import DataLoader

from fbnetv3.data.classes.class_matching import match_classes
from fbnetv3.detection.data.detection_datasets import load_dataset_dicts, prepare_datasets
from fbnetv3.detection.data.detection_loaders import build_test_loader
from fbnetv3.detection.data.detector_class_matching import model_classes
from fbnetv3.detection.models.fbnetv3_backbone import arch_name
from fbnetv3.detection.recorded_detectors import recorded_classes, use_recorded_detector
from fbnetv3.detection.training.detector_checkpoint import load_detector
from fbnetv3.detection.training.detector_setup import build_detector, detector_process_group
from fbnetv3.detection.training.evaluation_tables import COLUMNS, Results, write_results
from fbnetv3.detection.unsupported_keys import check_supported_keys
from fbnetv3.errors import UsageError
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt, deferred_interrupts
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.training.run_state.run_folder import RunFolder, select_weights
from fbnetv3.utils.files import make_folder
from fbnetv3.utils.logging_setup import quiet_detectron2, quiet_other_ranks

logger = logging.getLogger(__name__)

_COCO_MAX_DETECTIONS = 100


def evaluate_detector(cfg: CfgNode, keep: Collection[str] = ()) -> Results:
    """Evaluate the weights of the run in `OUTPUT_DIR`, or `MODEL.WEIGHTS`, on `DATASETS.TEST`.

    If the weights record their detector, its architecture, channel order and classes are used, and the classes of the
    datasets are matched by name. Averaged weights (EMA) are preferred if the file has both. The detections and the
    results are written to `inference/` in `OUTPUT_DIR`; see `evaluate_datasets`.

    Args:
        cfg: config from `load_detection_config` or `config_from_checkpoint`.
        keep: keys whose values in `cfg` are used even if the weights record others, such as those of the command line.

    Raises:
        UsageError: there are no weights or no dataset, or a dataset has classes that the detector lacks.
        WeightsError: the weights cannot be loaded.
        DataError: a dataset cannot be read.
    """
    with detector_process_group(cfg) as group, quiet_other_ranks(group.rank), quiet_detectron2():
        if not cfg.DATASETS.TEST:
            raise UsageError(
                "DATASETS.TEST is empty: name a dataset to evaluate on, or set DATASETS.CUSTOM"
            )
        check_supported_keys(cfg)
        weights = select_weights(cfg, keep)
        if not weights:
            raise UsageError(
                f"{cfg.OUTPUT_DIR}: has no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to the folder of a run"
            )
        record = read_detector_record(weights)
        cfg = use_recorded_detector(cfg, record, weights, keep)
        prepare_datasets(cfg, group)
        classes = list(model_classes(cfg, cfg.DATASETS.TEST, recorded_classes(record)).values())
        model = load_detector(build_detector(cfg), weights)
        logger.info("evaluating %s of %s on %s", arch_name(cfg), weights, ", ".join(cfg.DATASETS.TEST))
        folder = RunFolder(cfg.OUTPUT_DIR).detections
        with deferred_interrupts():
            return evaluate_datasets(cfg, model, cfg.DATASETS.TEST, group, folder, classes)


def evaluate_datasets(
    cfg: CfgNode,
    model: nn.Module,
    names: Sequence[str],
    group: ProcessGroup,
    folder: Path | None = None,
    classes: Sequence[str] = (),
) -> Results:
    """Evaluate a detector on registered datasets, whose images are divided among the processes.

    The model's training mode is restored. Rank 0 returns for each dataset and task ("bbox", "segm", "keypoints") the
    average precision in percent: "AP", "AP50", "AP75", "APs", "APm", "APl", and "AP-" with each class name; NaN if the
    dataset has no such objects. Other ranks return an empty mapping.

    Args:
        cfg: detectron2's config.
        model: the detector.
        names: the datasets.
        group: the processes.
        folder: where a folder for each dataset receives the detections in COCO's format, the results and a table of
            classes; None writes nothing.
        classes: names of the model's classes, by which those of a dataset are matched; empty if they are the dataset's.
    """
    results: Results = {}
    evaluated = GeneralizedRCNNWithTTA(cfg, model) if cfg.TEST.AUG.ENABLED else model
    for name in names:
        loader = build_test_loader(cfg, name)
        dataset_folder = folder / name if folder else None
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own table
            evaluator = _build_evaluator(cfg, name, dataset_folder, classes)
            task_results = inference_on_dataset(evaluated, _InterruptibleLoader(loader, group), evaluator)
        # Only rank 0 gathers the detections
        if group.is_rank_0:
            results[name] = _complete_results(name, task_results)
            _log_results(name, results[name])
            if dataset_folder:
                write_results(make_folder(dataset_folder), results[name])
    return results


def to_scalars(results: Results) -> dict[str, float]:
    """Flatten results to names such as "bbox/AP50", with the dataset in front if there are several; leave out NaN."""
    nested: Any = next(iter(results.values())) if len(results) == 1 else results
    return {key: value for key, value in flatten_results_dict(nested).items() if math.isfinite(value)}


def _complete_results(
    name: str, task_results: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the results of each task; without detections, 0 instead of detectron2's NaN if there are objects."""
    results = {task: dict(values) for task, values in task_results.items()}
    for task, values in results.items():
        if all(map(math.isnan, values.values())) and _has_objects(name):
            results[task] = dict.fromkeys(COLUMNS, 0.0)
    return results


def _log_results(name: str, tasks: Mapping[str, Mapping[str, float]]) -> None:
    parts = []
    for task, values in tasks.items():
        prefix = "" if task == "bbox" else f"{task} "
        parts += [f"{prefix}{column} {values[column]:.2f}" for column in COLUMNS if column in values]
    logger.info("%s: %s", name, ", ".join(parts))


def _has_objects(name: str) -> bool:
    """Return whether a dataset has an object to detect; crowds do not count."""
    annotations = (a for image in load_dataset_dicts(name) for a in image.get("annotations", ()))
    return any(not annotation.get("iscrowd") for annotation in annotations)


def _build_evaluator(
    cfg: CfgNode, name: str, folder: Path | None, classes: Sequence[str]
) -> DatasetEvaluator:
    evaluator = _build_dataset_evaluator(cfg, name, str(folder) if folder else None)
    own_classes = MetadataCatalog.get(name).get("thing_classes", [])
    if not classes or list(own_classes) == list(classes):
        return evaluator
    return _ClassMatchingEvaluator(evaluator, match_classes(own_classes, classes, name, "the detector"))


def _build_dataset_evaluator(cfg: CfgNode, name: str, folder: str | None) -> DatasetEvaluator:
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    if evaluator_type not in ("coco", "coco_panoptic_seg"):
        raise UsageError(
            f"{name}: datasets of type '{evaluator_type}' cannot be evaluated; supported: coco, coco_panoptic_seg, "
            "pascal_voc"
        )
    tasks = ["bbox"]
    if cfg.MODEL.MASK_ON:
        tasks.append("segm")
    if cfg.MODEL.KEYPOINT_ON:
        tasks.append("keypoints")
    max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
    if max_detections == _COCO_MAX_DETECTIONS:
        max_detections = None  # the default, which includes AP of small, medium and large objects
    return COCOEvaluator(
        name,
        tasks,
        True,
        folder,
        use_fast_impl=False,
        kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
        max_dets_per_image=max_detections,
    )


class _ClassMatchingEvaluator(DatasetEvaluator):
    """Evaluates a detector on a dataset with some of its classes, in any order.

    `outputs` is the model's class index for each class of the dataset; detections of other classes do not count.
    """

    def __init__(self, evaluator: DatasetEvaluator, outputs: Sequence[int]) -> None:
        self.evaluator = evaluator
        self.index_of_output = {output: index for index, output in enumerate(outputs)}

    def reset(self) -> None:
        self.evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        """Pass on the detections with the class indices of the dataset."""
        self.evaluator.process(inputs, [self._relabel(output) for output in outputs])

    def evaluate(self) -> Any:
        return self.evaluator.evaluate()

    def _relabel(self, output: Mapping[str, Any]) -> dict[str, Any]:
        if "instances" not in output:
            return dict(output)
        instances = output["instances"].to("cpu")
        indices = [self.index_of_output.get(output, -1) for output in instances.pred_classes.tolist()]
        instances.pred_classes = torch.tensor(indices, dtype=torch.int64)
        return {**output, "instances": instances[instances.pred_classes >= 0]}


class _InterruptibleLoader:
    """A loader that, after an interrupt, stops all processes between the same two batches."""

    def __init__(self, loader: DataLoader, group: ProcessGroup) -> None:
        self.loader = loader
        self.group = group
        # Number of batches that every process has
        self.common_batches = len(cast("Sized", loader.dataset)) // group.size

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches: Iterable[Any] = self.loader
        for i, batch in enumerate(batches):
            # The last batch of some processes has no counterpart in the others
            if i < self.common_batches and agree_on_interrupt(self.group):
                check_interrupt()
            yield batch
