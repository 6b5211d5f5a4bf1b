"""Clean annotations as the ground truth of pycocotools, in memory."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections import defaultdict
from typing import Any

import pycocotools.mask as mask_util
from pycocotools.coco import COCO

from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations
from fbnetv3.detection.data.annotations.mask_shapes import encode_masks


def build_ground_truth(clean: CleanAnnotations, task: str = "bbox") -> COCO:
    """Return the ground truth of a task for pycocotools: "bbox", "segm" or "keypoints".

    For "segm", objects without a mask, or whose mask covers no pixel, are left out; a crowd without a mask has that of
    its box. For "keypoints", objects without keypoints are ignored, as in COCO. pycocotools adds keys to annotations;
    those of `clean` remain as they are.
    """
    if task == "segm":
        annotations = _with_masks(clean)
    elif task == "keypoints":
        annotations = _with_keypoints(clean)
    else:
        annotations = [dict(annotation) for annotation in clean.annotations]
    return build_coco({**_image_and_category_lists(clean), "annotations": annotations})


def build_coco(data: dict[str, Any]) -> COCO:
    """Return pycocotools' object for a mapping in COCO's format."""
    coco = COCO()
    coco.dataset = data
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco


def _image_and_category_lists(clean: CleanAnnotations) -> dict[str, Any]:
    return {"info": {}, "images": clean.images, "categories": clean.categories}


def _with_masks(clean: CleanAnnotations) -> list[dict[str, Any]]:
    by_image = defaultdict(list)
    for annotation in clean.annotations:
        if "segmentation" in annotation or annotation["iscrowd"]:
            by_image[annotation["image_id"]].append(annotation)
    masked = []
    for image_id, members in by_image.items():
        image = clean.images[image_id - 1]
        shapes = [member.get("segmentation") or [_corners(member["bbox"])] for member in members]
        encoded = encode_masks(shapes, image["width"], image["height"])
        for annotation, mask, area in zip(members, encoded, mask_util.area(encoded), strict=True):
            if area:
                masked.append({**annotation, "segmentation": mask})
    return sorted(masked, key=lambda annotation: annotation["id"])


def _corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return list(itertools.chain((x, y), (x + width, y), (x + width, y + height), (x, y + height)))


def _with_keypoints(clean: CleanAnnotations) -> list[dict[str, Any]]:
    lengths = {
        len(annotation["keypoints"]) for annotation in clean.annotations if "keypoints" in annotation
    }
    missing = {"keypoints": [0] * max(lengths, default=0), "num_keypoints": 0}
    return [{**missing, **annotation} for annotation in clean.annotations]
