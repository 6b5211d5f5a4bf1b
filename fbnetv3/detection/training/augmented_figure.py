"""A picture of training inputs after all augmentation, with their boxes, masks and keypoints."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from fbnetv3.detection.inference.visualize import class_color, draw_detections
from fbnetv3.training.reports.image_grid import draw_image_grid
from fbnetv3.utils.text import shorten

MAX_INPUTS = 12
_COLUMNS = 4
_MAX_SIDE = 480  # of a tile, in pixels
_TILE_INCHES = 3.2
_MASK_OPACITY = 0.35
_CAPTION_LIMIT = 36


def first_inputs(loader: DataLoader, count: int = MAX_INPUTS) -> list[dict[str, Any]]:
    """Return the inputs of a training loader's first steps, read in this process. They do not change the run."""
    assert loader.batch_sampler is not None
    keys = itertools.islice(itertools.chain.from_iterable(loader.batch_sampler), count)
    return [loader.dataset[key] for key in keys]


def draw_training_inputs(inputs: Sequence[dict[str, Any]], cfg: CfgNode) -> Any:
    """Draw inputs of the model, from its mapper, as a figure: images with what the detector learns from them."""
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    pictures, captions = [], []
    for image in inputs:
        instances = image["instances"]
        pixels = image["image"].numpy().transpose(1, 2, 0)
        rgb = np.ascontiguousarray(pixels[..., ::-1]) if cfg.INPUT.FORMAT == "BGR" else pixels
        pictures.append(_draw_targets(np.broadcast_to(rgb, (*rgb.shape[:2], 3)), instances, names))
        height, width = instances.image_size
        captions.append(
            [
                shorten(image["file_name"].rpartition("/")[2], _CAPTION_LIMIT),
                f"{height} x {width} pixels; objects: {len(instances)}",
            ]
        )
    # The largest picture fills its tile
    side = min(_MAX_SIDE, max(max(picture.size) for picture in pictures))
    tiles = [_to_tile(picture, side) for picture in pictures]
    return draw_image_grid(
        tiles, captions, columns=_COLUMNS, title="training images, augmented", tile_inches=_TILE_INCHES
    )


def _draw_targets(rgb: np.ndarray, instances: Instances, names: Sequence[str] | None) -> Image.Image:
    """Return a picture, uint8 (height, width, 3), with masks, keypoints and labeled boxes."""
    pixels = rgb.astype(np.float32)
    classes = instances.gt_classes.tolist()
    if instances.has("gt_masks"):
        for mask, index in zip(_bitmaps(instances), classes, strict=True):
            pixels[mask] += _MASK_OPACITY * (np.array(class_color(index)) - pixels[mask])
    # Boxes and labels are drawn like detections
    boxes = Instances(instances.image_size)
    boxes.pred_boxes = instances.gt_boxes
    boxes.pred_classes = instances.gt_classes
    labels = names or [str(index) for index in range(max(classes, default=0) + 1)]
    picture = draw_detections(pixels.round().astype(np.uint8), boxes, labels)
    if instances.has("gt_keypoints"):
        draw = ImageDraw.Draw(picture)
        radius = max(1.5, min(picture.size) / 120)
        for x, y, visibility in instances.gt_keypoints.tensor.reshape(-1, 3).tolist():
            if visibility > 0:
                # Hollow if it is covered
                fill = "white" if visibility > 1 else None
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill, outline="red")
    return picture


def _bitmaps(instances: Instances) -> list[np.ndarray]:
    """Return masks of either kind as bool (height, width)."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        return [polygons_to_bitmask(polygons, *instances.image_size) for polygons in masks.polygons]
    return list(masks.tensor.to(torch.bool).numpy())


def _to_tile(picture: Image.Image, side: int) -> np.ndarray:
    """Return the picture in the middle of a white square, smaller if it does not fit."""
    picture.thumbnail((side, side))
    tile = Image.new("RGB", (side, side), "white")
    tile.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(tile)
