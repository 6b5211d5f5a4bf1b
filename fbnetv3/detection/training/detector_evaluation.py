"""Average precision of a detector on datasets, computed by pycocotools."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, PascalVOCDetectionEvaluator, inference_on_dataset
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from fbnetv3.detection.data.detection_datasets import load_clean_annotations, names_its_classes
from fbnetv3.detection.data.detection_loaders import build_test_loader
from fbnetv3.detection.training.coco_evaluator import CleanCOCOEvaluator
from fbnetv3.errors import UsageError
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, dict[str, float]]]  # {dataset: {"bbox": {"AP": percent, ...}}}

_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate_datasets(
    cfg: CfgNode,
    model: nn.Module,
    names: Sequence[str],
    group: ProcessGroup,
    folder: Path | None = None,
    classes: Sequence[str] | None = None,
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
        folder: where to write the detections, in a folder per dataset; None writes nothing.
        classes: class names of the detector, to match those of the datasets by name; by default, a dataset's classes
            are the detector's, in the same order.
    """
    results: Results = {}
    for name in names:
        loader = build_test_loader(cfg, name)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own table
            evaluator = _build_evaluator(cfg, name, str(folder / name) if folder else None, classes)
            task_results = inference_on_dataset(model, _InterruptibleLoader(loader, group), evaluator)
        # Only rank 0 gathers the detections
        if group.is_rank_0:
            results[name] = dict(task_results)
            parts = []
            for task, values in results[name].items():
                prefix = "" if task == "bbox" else f"{task} "
                parts += [
                    f"{prefix}{column} {format_precision(values[column])}"
                    for column in _COLUMNS
                    if column in values
                ]
            logger.info("%s: %s", name, ", ".join(parts))
    return results


def format_precision(value: float) -> str:
    """Return average precision with two decimals; "n/a" for NaN, where there is nothing to detect."""
    return "n/a" if math.isnan(value) else f"{value:.2f}"


def detection_table(results: Results) -> str:
    """Format results as a table with a row for each dataset and task."""
    rows = [
        [name, task, *(format_precision(values[column]) if column in values else "" for column in _COLUMNS)]
        for name, tasks in results.items()
        for task, values in tasks.items()
    ]
    return tabulate(rows, ["dataset", "task", *_COLUMNS], disable_numparse=True)


def _build_evaluator(
    cfg: CfgNode, name: str, folder: str | None, classes: Sequence[str] | None
) -> DatasetEvaluator:
    evaluator_type = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if evaluator_type == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    if evaluator_type not in ("coco", "coco_panoptic_seg"):
        raise UsageError(
            f"{name}: datasets of type '{evaluator_type}' cannot be evaluated; supported: coco, coco_panoptic_seg, "
            "pascal_voc"
        )
    clean = load_clean_annotations(name)
    return CleanCOCOEvaluator(
        name,
        clean,
        ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        folder,
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
