"""detectron2's COCO evaluator on clean annotations: pycocotools sees what training and checks see, never the file."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fbnetv3.data.classes.class_matching import match_classes
from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations
from fbnetv3.detection.data.annotations.ground_truth import build_coco, build_ground_truth
from fbnetv3.utils.files import write_json

logger = logging.getLogger(__name__)

RESULTS_FILE_NAME = "coco_instances_results.json"
_IOU_THRESHOLDS = {"AP": None, "AP50": 0.5, "AP75": 0.75}
_AREAS = {"APs": "small", "APm": "medium", "APl": "large"}

_Result = dict[str, Any]


class CleanCOCOEvaluator(COCOEvaluator):
    """Computes average precision by pycocotools on clean annotations.

    Unlike detectron2's evaluator, it reads no file, accepts ids of any kind, matches classes by name, and reports NaN
    where there is nothing to detect and 0 where nothing was detected. The results file has the ids of the dataset.

    Args:
        name: registered name of the dataset.
        clean: its annotations.
        tasks: "bbox", "segm" and "keypoints".
        folder: folder for the results, or None.
        classes: class names of the detector; by default those of the dataset.
        max_detections: number of detections per image and class that count; negative for all, as in detectron2.
        keypoint_sigmas: `TEST.KEYPOINT_OKS_SIGMAS`; by default those of COCO's 17 keypoints.

    Raises:
        ClassMismatchError: the dataset has a class that the detector lacks.
    """

    def __init__(
        self,
        name: str,
        clean: CleanAnnotations,
        tasks: Sequence[str] = ("bbox",),
        folder: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        max_detections: int = 100,
        keypoint_sigmas: Sequence[float] = (),
    ) -> None:
        # detectron2's constructor would read the file; these are the attributes that its other methods use
        self._logger = logging.getLogger("detectron2.evaluation.coco_evaluation")
        self._distributed = True
        self._output_dir = folder
        self._tasks = tasks
        self._metadata = MetadataCatalog.get(name)
        self._do_evaluation = True
        self._kpt_oks_sigmas = keypoint_sigmas
        self._cpu_device = "cpu"
        self._coco_api = build_ground_truth(clean)
        self.name = name
        self.clean = clean
        # pycocotools would leave out as many of the last ones
        self.max_detections = max_detections if max_detections >= 0 else sys.maxsize
        self._image_numbers = {image_id: number for number, image_id in enumerate(clean.image_ids, 1)}
        # Category number of each output of the detector
        outputs = clean.classes if classes is None else list(classes)
        matched = match_classes(clean.classes, outputs, name, "the detector")
        self._outputs = outputs
        self._category_numbers = {index: number for number, index in enumerate(matched, 1)}

    def _eval_predictions(self, predictions: list[_Result], img_ids: Any = None) -> None:
        """Write the results file, and fill in the metrics of all tasks. detectron2 calls this on rank 0."""
        results = self._select_results(
            list(itertools.chain(*(image["instances"] for image in predictions)))
        )
        if self._output_dir:
            own_ids = [
                {
                    **result,
                    "image_id": self.clean.image_ids[result["image_id"] - 1],
                    "category_id": self.clean.category_ids[result["category_id"] - 1],
                }
                for result in results
            ]
            write_json(Path(self._output_dir) / RESULTS_FILE_NAME, own_ids, indent=None)
        for task in self._tasks:
            self._results[task] = self._evaluate_task(task, results)

    def _select_results(self, results: list[_Result]) -> list[_Result]:
        """Return the detections of the dataset's classes with the numbers of clean images and categories."""
        left_out: Counter[int] = Counter()
        selected = []
        for result in results:
            number = self._category_numbers.get(result["category_id"])
            if number is None:
                left_out[result["category_id"]] += 1
            else:
                image_number = self._image_numbers[result["image_id"]]
                selected.append({**result, "image_id": image_number, "category_id": number})
        if left_out:
            counts = ", ".join(
                f"{count} {self._class_name(index)}" for index, count in left_out.most_common(5)
            )
            logger.info(
                "%s: %d detections of classes that it lacks are left out (%s)",
                self.name,
                left_out.total(),
                counts if len(left_out) <= 5 else f"{counts} and more",
            )
        return selected

    def _class_name(self, index: int) -> str:
        return self._outputs[index] if index < len(self._outputs) else f"class {index}"

    def _evaluate_task(self, task: str, results: list[_Result]) -> dict[str, float]:
        """Return the metrics of a task in percent: "AP" and so on, and "AP-" with each class name."""
        ground_truth = self._coco_api if task == "bbox" else build_ground_truth(self.clean, task)
        if num_left_out := len(self.clean.annotations) - len(ground_truth.anns):
            logger.info("%s: %d objects without a mask are left out of %s", self.name, num_left_out, task)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its own table
            evaluation = COCOeval(ground_truth, _load_results(ground_truth, results, task), task)
            if task != "keypoints":
                evaluation.params.maxDets = [self.max_detections]
            elif self._kpt_oks_sigmas:
                evaluation.params.kpt_oks_sigmas = np.array(self._kpt_oks_sigmas)
            evaluation.evaluate()
            evaluation.accumulate()
        return summarize_precision(evaluation, self.clean.classes)

    def _eval_box_proposals(self, predictions: list[_Result]) -> None:
        numbered = [{**image, "image_id": self._image_numbers[image["image_id"]]} for image in predictions]
        super()._eval_box_proposals(numbered)


def _load_results(ground_truth: COCO, results: list[_Result], task: str) -> COCO:
    """Return detections as pycocotools' object; it cannot load an empty list itself."""
    # Without a box, pycocotools takes the area of the mask, which decides whether a detection is small or large
    unwanted = ("bbox",) if task == "segm" else ("segmentation",)
    copies = [{key: value for key, value in result.items() if key not in unwanted} for result in results]
    if copies:
        return ground_truth.loadRes(copies)
    return build_coco({**ground_truth.dataset, "annotations": []})


def summarize_precision(evaluation: COCOeval, classes: Sequence[str]) -> dict[str, float]:
    """Return average precision in percent: of all sizes, of each size, and of each class; NaN without objects.

    `evaluation` is pycocotools' after `accumulate`, for the categories `classes`. The last of its `maxDets` counts.
    """
    params = evaluation.params
    precision = evaluation.eval["precision"][..., -1]  # (IoU thresholds, recalls, classes, areas)
    areas: Mapping[str, int] = {label: i for i, label in enumerate(params.areaRngLbl)}
    everything = precision[..., areas["all"]]
    metrics = {}
    for name, threshold in _IOU_THRESHOLDS.items():
        selected = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
        metrics[name] = _mean_percent(everything[selected])
    for name, label in _AREAS.items():
        if label in areas:  # keypoints have no small objects
            metrics[name] = _mean_percent(precision[..., areas[label]])
    return metrics | {f"AP-{name}": _mean_percent(everything[:, :, i]) for i, name in enumerate(classes)}


def _mean_percent(precision: np.ndarray) -> float:
    """Return the mean in percent of the values that exist; pycocotools marks the others by -1."""
    existing = precision[precision > -1]
    return 100 * float(existing.mean()) if existing.size else math.nan
