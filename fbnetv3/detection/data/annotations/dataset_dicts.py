"""detectron2's dataset dicts from clean annotations, and annotations from anyone's dataset dicts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations
from fbnetv3.detection.data.annotations.coco_files import CocoData
from fbnetv3.utils.checks import is_int

# detectron2 places keypoints at the centers of pixels; COCO's files have the pixels' integer coordinates
_PIXEL_CENTER = 0.5


def to_dataset_dicts(
    clean: CleanAnnotations, class_indices: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return one dict per image in detectron2's format, with the file's image ids.

    `class_indices` are the indices that the categories get, by default their positions.
    """
    dicts = [
        {
            "file_name": os.path.join(clean.image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image_id,
            "annotations": [],
        }
        for image, image_id in zip(clean.images, clean.image_ids, strict=True)
    ]
    for annotation in clean.annotations:
        position = annotation["category_id"] - 1
        entry = {
            "iscrowd": annotation["iscrowd"],
            "bbox": list(annotation["bbox"]),
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": position if class_indices is None else class_indices[position],
        }
        if "segmentation" in annotation:
            entry["segmentation"] = annotation["segmentation"]
        if "keypoints" in annotation:
            # Visibility is every third number
            entry["keypoints"] = [
                value if i % 3 == 2 else value + _PIXEL_CENTER
                for i, value in enumerate(annotation["keypoints"])
            ]
        dicts[annotation["image_id"] - 1]["annotations"].append(entry)
    return dicts


def from_dataset_dicts(dicts: Sequence[Mapping[str, Any]], classes: Sequence[str] = ()) -> CocoData:
    """Return annotations in COCO's format, not clean yet, of images in detectron2's format.

    File names stay complete paths. Category ids are class indices. See `dict_id` for image ids. Without names of the
    classes, each is called by its index.
    """
    images, annotations = [], []
    for number, record in enumerate(dicts, 1):
        image_id = dict_id(record, number)
        image = {key: _plain(record[key]) for key in ("width", "height") if key in record}
        if "file_name" in record:
            image["file_name"] = os.fspath(record["file_name"])
        images.append({"id": image_id, **image})
        for entry in record.get("annotations", ()):
            annotation = {key: value for key, value in entry.items() if key != "bbox_mode"}
            annotation["image_id"] = image_id
            annotation["category_id"] = _plain(entry.get("category_id"))
            if isinstance(entry.get("segmentation"), list):
                annotation["segmentation"] = [
                    np.asarray(polygon).tolist() for polygon in entry["segmentation"]
                ]
            if "bbox" in entry:
                annotation["bbox"] = _to_coco_box(entry["bbox"], entry.get("bbox_mode", BoxMode.XYXY_ABS))
            if "keypoints" in entry:
                annotation["keypoints"] = [
                    value if i % 3 == 2 else value - _PIXEL_CENTER
                    for i, value in enumerate(entry["keypoints"])
                ]
            annotations.append(annotation)
    if not classes:
        indices = [a["category_id"] for a in annotations if is_int(a["category_id"])]
        classes = [str(index) for index in range(1 + max(indices, default=0))]
    categories = [{"id": index, "name": name} for index, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def dict_id(record: Mapping[str, Any], number: int) -> Any:
    """Return the id of an image in detectron2's format; `number`, its position, if it has none."""
    return _plain(record.get("image_id", number))


def _plain(value: Any) -> Any:
    """Return a number of NumPy's or torch's as Python's."""
    return value.item() if hasattr(value, "item") else value


def _to_coco_box(box: Any, mode: int) -> list[Any]:
    """Return a box as [x, y, width, height]; a box of another length, such as a rotated one, as it is."""
    values = [_plain(value) for value in box]
    if len(values) != 4:
        return values
    return list(BoxMode.convert(values, BoxMode(mode), BoxMode.XYWH_ABS))
