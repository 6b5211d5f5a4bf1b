"""The images of a detection dataset, as the checks of datasets read them, and pictures of them with their boxes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from fbnetv3.data.image_io import EncodedImage, read_encoded_image
from fbnetv3.detection.data.annotations.annotation_ids import Id
from fbnetv3.detection.data.annotations.clean_annotations import CleanAnnotations
from fbnetv3.detection.data.formats import RawAnnotations
from fbnetv3.detection.inference.visualize import draw_detections


class DetectionImages:
    """The images of a split with the classes of their boxes.

    Args:
        raw: the annotations as their files have them.
        clean: the same after cleaning; None if they cannot be cleaned, which leaves the images without boxes.
    """

    picture_side = 480
    """Size of the pictures on a page of the check, in pixels; they are shown smaller."""

    def __init__(self, raw: RawAnnotations, clean: CleanAnnotations | None) -> None:
        self.classes = clean.classes if clean else raw.class_names
        self.clean = clean
        self._root = raw.image_root
        self._names = [image["file_name"] for image in raw.data["images"]]
        self._ids = [image["id"] for image in raw.data["images"]]
        # By the files' ids, because images that cannot be read are not among the clean ones
        self._sizes: dict[Id, tuple[int, int]] = {}
        self._annotations: dict[Id, list[Mapping[str, Any]]] = defaultdict(list)
        if clean:
            for image_id, image in zip(clean.image_ids, clean.images, strict=True):
                self._sizes[image_id] = image["width"], image["height"]
            for annotation in clean.annotations:
                self._annotations[clean.image_ids[annotation["image_id"] - 1]].append(annotation)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[EncodedImage, Any]:
        """Return an image, not decoded yet, and which classes it has: 1 or 0 for each, float32 (classes,)."""
        classes = np.zeros(len(self.classes), np.float32)
        classes[[annotation["category_id"] - 1 for annotation in self.boxes(index)]] = 1
        return read_encoded_image(os.path.join(self._root, self._names[index])), classes

    def image_name(self, index: int) -> str:
        """Return the name of an image, relative to the image folder."""
        return self._names[index]

    def boxes(self, index: int) -> list[Mapping[str, Any]]:
        """Return the annotations of an image, without crowds."""
        return [
            annotation for annotation in self._annotations[self._ids[index]] if not annotation["iscrowd"]
        ]

    def decorate(self, picture: Image.Image, index: int) -> Image.Image:
        """Return a picture of an image, of any size, with its boxes drawn on it."""
        annotations = self.boxes(index)
        if not annotations:
            return picture
        width, height = self._sizes[self._ids[index]]
        scale = np.array([picture.width / width, picture.height / height] * 2)
        corners = np.array([annotation["bbox"] for annotation in annotations])
        corners[:, 2:] += corners[:, :2]
        instances = Instances((picture.height, picture.width))
        instances.pred_boxes = Boxes(torch.from_numpy(corners * scale))
        instances.pred_classes = torch.tensor([annotation["category_id"] - 1 for annotation in annotations])
        return draw_detections(np.asarray(picture.convert("RGB")), instances, self.classes)
