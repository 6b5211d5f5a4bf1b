"""An oracle: a detector that answers each image with its annotated boxes, as a file has them, with a score of 1."""

import contextlib
import io
import json
import math
from collections import defaultdict

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fbnetv3.detection.training.coco_evaluator import CleanCOCOEvaluator

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def annotated_boxes(data, sizes):
    """Return the boxes (x0, y0, x1, y1) and class names of each image: its id -> [(box, class name), ...].

    Boxes are clipped to their image; crowds, boxes without area, and objects whose only polygons have fewer than three
    points are no objects to find. `sizes` are (width, height) by file name.
    """
    images = {image["id"]: image for image in data["images"]}
    by_text = {_text(key): image for key, image in images.items()}
    names = {_text(category["id"]): category["name"] for category in data["categories"]}
    names |= {category["id"]: category["name"] for category in data["categories"]}
    boxes = {image_id: [] for image_id in images}
    for entry in data["annotations"]:
        image = images.get(entry["image_id"]) or by_text.get(_text(entry["image_id"]))
        masks = entry.get("segmentation")
        if not image or entry.get("iscrowd") or entry.get("ignore") or _has_no_points(masks):
            continue
        width, height = sizes[image["file_name"]]
        x, y, w, h = entry.get("bbox") or _extent(masks)
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + w, width), min(y + h, height)
        if min(x1 - x0, y1 - y0) >= 0.1:
            category = entry["category_id"]
            name = names[category] if category in names else names[_text(category)]
            boxes[image["id"]].append(((x0, y0, x1, y1), name))
    return boxes


def _text(key):
    return str(int(key)) if isinstance(key, float) and key.is_integer() else str(key)


def _has_no_points(masks):
    if not isinstance(masks, list) or not masks:
        return False
    polygons = masks if isinstance(masks[0], list) else [masks]
    return not any(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in polygons)


def _extent(masks):
    polygons = masks if isinstance(masks[0], list) else [masks]
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def oracle_results(clean, boxes, classes=None, **options):
    """Evaluate detections, boxes and class names by image id, all with a score of 1; return the metrics of boxes."""
    scored = {key: [(box, name, 1.0) for box, name in found] for key, found in boxes.items()}
    return evaluate_detections(clean, scored, classes, **options)["bbox"]


def evaluate_detections(clean, detections, classes=None, masks=None, tasks=("bbox",), **options):
    """Evaluate detections, (box, class name, score) by image id, of a detector with `classes`.

    `masks` are the arrays of each image's masks, if the detector has any.
    """
    names = classes or clean.classes
    evaluator = CleanCOCOEvaluator("oracle", clean, tasks, classes=classes, **options)
    evaluator.reset()
    for image, image_id in zip(clean.images, clean.image_ids, strict=True):
        objects = detections.get(image_id, [])
        instances = Instances((image["height"], image["width"]))
        instances.pred_boxes = Boxes(torch.tensor([box for box, _, _ in objects]).reshape(-1, 4))
        instances.pred_classes = torch.tensor(
            [names.index(name) for _, name, _ in objects], dtype=torch.long
        )
        instances.scores = torch.tensor([score for _, _, score in objects])
        if masks is not None and objects:
            instances.pred_masks = torch.from_numpy(np.stack(masks[image_id]))
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def pycocotools_results(clean, detections, folder):
    """Return the metrics of boxes that pycocotools computes from files: the clean annotations, and the detections."""
    content = {"images": clean.images, "annotations": clean.annotations, "categories": clean.categories}
    (folder / "clean.json").write_text(json.dumps(content))
    image_numbers = {image_id: number for number, image_id in enumerate(clean.image_ids, 1)}
    category_numbers = {name: number for number, name in enumerate(clean.classes, 1)}
    results = [
        {
            "image_id": image_numbers[image_id],
            "category_id": category_numbers[name],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for image_id, found in detections.items()
        for (x0, y0, x1, y1), name, score in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "clean.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    columns = {
        name: 100 * value if value >= 0 else math.nan
        for name, value in zip(COLUMNS, evaluation.stats, strict=False)
    }
    for name, number in category_numbers.items():
        precision = evaluation.eval["precision"][:, :, number - 1, 0, -1]
        columns[f"AP-{name}"] = 100 * precision.mean() if precision.min() >= 0 else math.nan
    return columns


def expected_columns(clean):
    """Return the metrics of an oracle: 100, or NaN for sizes and classes of which there is no object."""
    bounds = {"APs": (0, 32**2), "APm": (32**2, 96**2), "APl": (96**2, 1e10)}
    objects = [annotation for annotation in clean.annotations if not annotation["iscrowd"]]
    by_class = defaultdict(list)
    for annotation in objects:
        by_class[clean.classes[annotation["category_id"] - 1]].append(annotation)
    exists = dict.fromkeys(("AP", "AP50", "AP75"), bool(objects))
    exists |= {name: any(low <= a["area"] <= high for a in objects) for name, (low, high) in bounds.items()}
    exists |= {f"AP-{name}": bool(by_class[name]) for name in clean.classes}
    return {name: 100.0 if value else math.nan for name, value in exists.items()}
