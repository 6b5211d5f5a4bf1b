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
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import GeneralizedRCNNWithTTA
from torch import nn
from torch.utils.data import DataLoader

from fbnetv3.detection.data.detection_datasets import (
    load_clean_annotations,
    names_its_classes,
    prepare_datasets,
)
from fbnetv3.detection.data.detection_loaders import build_test_loader
from fbnetv3.detection.data.detector_class_matching import model_classes
from fbnetv3.detection.models.fbnetv3_backbone import arch_name
from fbnetv3.detection.recorded_detectors import recorded_classes, use_recorded_detector
from fbnetv3.detection.training.coco_evaluator import CleanCOCOEvaluator
from fbnetv3.detection.training.detector_checkpoint import load_detector
from fbnetv3.detection.training.detector_setup import build_detector, detector_process_group, use_own_gpu
from fbnetv3.detection.training.evaluation_tables import COLUMNS, Results, format_precision, write_results
from fbnetv3.detection.unsupported_keys import check_supported_keys
from fbnetv3.errors import UsageError
from fbnetv3.training.devices.device_memory import explain_out_of_memory
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt, deferred_interrupts
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.training.run_state.run_folder import RunFolder, select_weights
from fbnetv3.utils.files import make_folder
from fbnetv3.utils.logging_setup import quiet_detectron2, quiet_other_ranks

logger = logging.getLogger(__name__)


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
        cfg = use_own_gpu(cfg, group)
        weights = select_weights(cfg, keep)
        if not weights:
            raise UsageError(
                f"{cfg.OUTPUT_DIR}: has no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to the folder of a run"
            )
        record = read_detector_record(weights)
        cfg = use_recorded_detector(cfg, record, weights, keep)
        prepare_datasets(cfg, group, skeleton=record.skeleton if record else None)
        classes = list(model_classes(cfg, cfg.DATASETS.TEST, recorded_classes(record)).values()) or None
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
    classes: Sequence[str] | None = None,
    network: str = "",
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
        classes: class names of the detector, to match those of the datasets by name; by default, a dataset's classes
            are the detector's, in the same order.
        network: what is evaluated, for the log, if there are several.
    """
    results: Results = {}
    evaluated = _augment_tests(cfg, model) if cfg.TEST.AUG.ENABLED else model
    for name in names:
        loader = build_test_loader(cfg, name)
        dataset_folder = folder / name if folder else None
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own table
            evaluator = _build_evaluator(cfg, name, dataset_folder, classes)
            with explain_out_of_memory(torch.device(cfg.MODEL.DEVICE), "lower INPUT.MIN_SIZE_TEST"):
                task_results = inference_on_dataset(
                    evaluated, _InterruptibleLoader(loader, group), evaluator
                )
        # Only rank 0 gathers the detections
        if group.is_rank_0:
            results[name] = {task: dict(values) for task, values in task_results.items()}
            _log_results(f"{name}, {network}" if network else name, results[name])
            if dataset_folder:
                write_results(make_folder(dataset_folder), results[name])
    return results


def _augment_tests(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Return a detector with the test-time augmentation of `TEST.AUG`, in the model's training mode."""
    # One image per batch: the padding of several sizes would change the results of squeeze-and-excite
    return GeneralizedRCNNWithTTA(cfg, model, batch_size=1).train(model.training)


def to_scalars(results: Results) -> dict[str, float]:
    """Flatten results to names such as "bbox/AP50", with the dataset in front if there are several; leave out NaN."""
    nested: Any = next(iter(results.values())) if len(results) == 1 else results
    return {key: value for key, value in flatten_results_dict(nested).items() if math.isfinite(value)}


def _log_results(name: str, tasks: Mapping[str, Mapping[str, float]]) -> None:
    parts = []
    for task, values in tasks.items():
        prefix = "" if task == "bbox" else f"{task} "
        parts += [
            f"{prefix}{column} {format_precision(values[column])}" for column in COLUMNS if column in values
        ]
    logger.info("%s: %s", name, ", ".join(parts))


def _build_evaluator(
    cfg: CfgNode, name: str, folder: Path | None, classes: Sequence[str] | None
) -> DatasetEvaluator:
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if evaluator_type == "pascal_voc":
        if classes and list(classes) != list(MetadataCatalog.get(name).thing_classes):
            raise UsageError(
                f"{name}: datasets of type 'pascal_voc' are evaluated only with their own classes in their own order"
            )
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
    return CleanCOCOEvaluator(
        name,
        load_clean_annotations(name),
        tasks,
        str(folder) if folder else None,
        classes=classes if names_its_classes(name) else None,
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
        keypoint_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
    )


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
