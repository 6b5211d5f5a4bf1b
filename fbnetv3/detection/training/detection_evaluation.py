"""Average precision of a detector on data sets, by pycocotools' own evaluation."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, PascalVOCDetectionEvaluator, inference_on_dataset
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from fbnetv3.detection.data.detection_datasets import build_test_loader
from fbnetv3.errors import UsageError
from fbnetv3.training.processes.distributed import World
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt

logger = logging.getLogger(__name__)

# {data set: {"bbox": {"AP": per cent, "AP50": per cent, ...}}}
Results = dict[str, dict[str, dict[str, float]]]
_COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate_detector(
    cfg: CfgNode, model: nn.Module, names: Sequence[str], world: World, folder: Path | None = None
) -> Results:
    """Evaluate a detector; it is in evaluation mode meanwhile and left as it was.

    Args:
        cfg: sizes of the images, and detections an image.
        model: from detectron2's `build_model`.
        names: registered data sets; the processes share the images of each.
        world: the processes.
        folder: where to leave the detections, in a folder for each data set; None for nowhere.

    Returns:
        In process 0: for each data set and task ("bbox", "segm") average precision in per cent: "AP", "AP50", "AP75",
        "APs", "APm", "APl", and "AP-" with each class. NaN where the data set has nothing to measure it by.

    Raises:
        UsageError: a data set of a kind that is not evaluated here.
        DataError: missing or damaged annotations.
    """
    results: Results = {}
    for name in names:
        loader = build_test_loader(cfg, name)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools' own table
            evaluator = _evaluator(cfg, name, str(folder / name) if folder else None)
            found = inference_on_dataset(model, _Interruptible(loader, world), evaluator)
        if world.is_main:
            results[name] = {task: _numbers(values) for task, values in (found or {"bbox": {}}).items()}
            logger.info("%s: %s", name, in_words(results[name]))
    return results


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    """The results of a task; without any detection they are 0, which pycocotools does not say."""
    if all(math.isnan(value) for value in values.values()):
        return dict.fromkeys(_COLUMNS, 0.0)
    return dict(values)


def in_words(tasks: dict[str, dict[str, float]]) -> str:
    """The results of a data set on one line."""
    parts = []
    for task, values in tasks.items():
        prefix = "" if task == "bbox" else f"{task} "
        parts += [f"{prefix}{column} {values[column]:.2f}" for column in _COLUMNS if column in values]
    return ", ".join(parts)


def as_table(results: Results) -> str:
    """The results as a table, one line for each data set and task."""
    rows = [
        [name, task, *(f"{values[column]:.2f}" if column in values else "" for column in _COLUMNS)]
        for name, tasks in results.items()
        for task, values in tasks.items()
    ]
    return tabulate(rows, ["data set", "task", *_COLUMNS], disable_numparse=True)


def _evaluator(cfg: CfgNode, name: str, folder: str | None) -> DatasetEvaluator:
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind == "pascal_voc":
        return PascalVOCDetectionEvaluator(name)
    if kind not in ("coco", "coco_panoptic_seg"):
        raise UsageError(f"{name}: no evaluation for data sets of the kind '{kind}': coco or pascal_voc")
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    most = cfg.TEST.DETECTIONS_PER_IMAGE
    return COCOEvaluator(
        name, tasks, True, folder, use_fast_impl=False, max_dets_per_image=most if most != 100 else None
    )


class _Interruptible:
    """A loader that an interrupt ends between two batches: in all processes at the same one."""

    def __init__(self, loader: DataLoader, world: World) -> None:
        self.loader, self.world = loader, world
        self.shared = len(cast("Sized", loader.dataset)) // world.size  # batches that every process has

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches: Iterable[Any] = self.loader
        for number, batch in enumerate(batches):
            if number < self.shared and agree_on_interrupt(self.world):
                check_interrupt()
            yield batch
