"""Annotations as in LVIS: COCO's format with the images' URLs instead of file names."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from fbnetv3.detection.data.formats.annotation_source import ANNOTATION_FORMATS
from fbnetv3.detection.data.formats.coco_format import COCOReader


class LVISReader(COCOReader):
    """Reads LVIS's `lvis_v1_*.json`: an image without `file_name` is "train2017/NAME" from its `coco_url`.

    `neg_category_ids` and `not_exhaustive_category_ids` are kept, but evaluation is COCO's, which counts detections of
    categories that an image was not searched for as wrong.
    """

    title = "LVIS JSON"
    has_urls = True

    def complete_image(self, image: Any) -> None:
        """Set `file_name` to the last folder and the name in `coco_url`."""
        if isinstance(image, dict) and "file_name" not in image and isinstance(image.get("coco_url"), str):
            image["file_name"] = "/".join(PurePosixPath(image["coco_url"]).parts[-2:])


ANNOTATION_FORMATS.register(LVISReader(), name="lvis")
