"""detectron2's mapper from dataset dicts to model inputs, which reads unusual images correctly."""

from __future__ import annotations

import copy
import os
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from fbnetv3.data.image_io import read_rendered_image


def read_image_array(path: str | os.PathLike, format: str = "BGR") -> np.ndarray:
    """Read an image file as uint8 (height, width, channels), rendered as everywhere; see `render_image`.

    Unlike detectron2's `read_image`, 16-bit gray images are scaled instead of clipped, transparent ones are shown on
    white, and TIFFs are rotated only once. `format` is `INPUT.FORMAT`: "BGR", "RGB", "L" and so on.

    Raises:
        CorruptImageError: the file is missing, corrupt, not an image, too large to decode safely, or its values are out
            of range.
    """
    return utils.convert_PIL_to_numpy(read_rendered_image(path), format)


class SafeResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's transform, but each side keeps at least one pixel, however extreme the aspect ratio."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform for an image (height, width, channels)."""
        transform = super().get_transform(image)
        if isinstance(transform, T.ResizeTransform):
            transform.new_h = max(1, transform.new_h)
            transform.new_w = max(1, transform.new_w)
        return transform


def inference_resize(cfg: CfgNode) -> SafeResizeShortestEdge:
    """Return the resizing of inference: `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`."""
    return SafeResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)


class FBNetV3DatasetMapper(DatasetMapper):
    """detectron2's `DatasetMapper` for detection, with four differences; ordinary images give the same inputs.

    - Images of more than 8 bits are scaled; detectron2 clips them.
    - Transparent images are shown on white; detectron2 drops their transparency.
    - Images of extreme aspect ratios keep at least one pixel per side; detectron2 fails on them.
    - Boxes stay fractional after resizing; detectron2 truncates them if the annotation file has integers.

    The arguments are detectron2's: `FBNetV3DatasetMapper(cfg, is_train=True)` takes them from a config, and
    `build_detection_train_loader(cfg, mapper=...)` accepts the mapper. As in detectron2, crowds are skipped, boxes are
    clipped to their image, and boxes without area are removed.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments from a config."""
        arguments = super().from_config(cfg, is_train)
        for augmentation in arguments["augmentations"]:
            if type(augmentation) is T.ResizeShortestEdge:
                augmentation.__class__ = SafeResizeShortestEdge  # overrides one method; the settings remain
        return arguments

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn a dataset dict into a model's input: "image" (C, H, W), "instances" and so on.

        Raises:
            CorruptImageError: the image cannot be read.
            SizeMismatchError: its size differs from the one in the dataset dict.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_image_array(dataset_dict["file_name"], self.image_format)
        utils.check_image_size(dataset_dict, image)

        # Augment the image
        inputs = T.AugInput(image)
        transforms = self.augmentations(inputs)
        size = inputs.image.shape[:2]
        channels_first = np.ascontiguousarray(inputs.image.transpose(2, 0, 1))
        dataset_dict["image"] = torch.as_tensor(channels_first)

        # Apply the same transforms to proposals and annotations
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif dataset_dict.get("annotations") is not None:
            for annotation in dataset_dict["annotations"]:
                annotation["bbox"] = [float(value) for value in annotation["bbox"]]
            self._transform_annotations(dataset_dict, transforms, size)
        return dataset_dict
