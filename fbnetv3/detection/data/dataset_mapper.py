"""detectron2's mapper from a dataset's entries to inputs, for all images that may turn up."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from fbnetv3.detection.data.detection_images import read_image, with_safe_resize


class FBNetV3DatasetMapper(DatasetMapper):
    """detectron2's `DatasetMapper` for detection, with three corners filed off; else both give the same.

    detectron2's clips what has more than 8 bits, where this one scales it. It shrinks the short side of a very long
    image to nothing, which ends the training. It rounds boxes down to whole pixels of the resized image where an
    annotation file gives whole numbers. Arguments are those of detectron2's; `FBNetV3DatasetMapper(cfg,
    is_train=True)` takes them from a config, and `build_detection_train_loader(cfg, mapper=...)` takes the mapper.

    Crowds are left out, boxes are clipped to their image, and those without an area left out: detectron2's doing.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from a config, as for detectron2's."""
        arguments = super().from_config(cfg, is_train)
        return {**arguments, "augmentations": with_safe_resize(arguments["augmentations"])}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """An entry in detectron2's dataset format to a model's input: "image" (C, H, W), "instances" and so on.

        Raises:
            DamagedImageError: the image cannot be read; named.
            SizeMismatchError: it has another size than the entry says.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = read_image(dataset_dict["file_name"], self.image_format)
        utils.check_image_size(dataset_dict, image)
        inputs = T.AugInput(image)
        transforms = self.augmentations(inputs)
        shape = inputs.image.shape[:2]
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        if self.proposal_topk is not None:
            utils.transform_proposals(dataset_dict, shape, transforms, proposal_topk=self.proposal_topk)
        annotated = dataset_dict.get("annotations") is not None
        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif annotated:
            for annotation in dataset_dict["annotations"]:
                annotation["bbox"] = [float(value) for value in annotation["bbox"]]
            self._transform_annotations(dataset_dict, transforms, shape)
        return dataset_dict
