"""detectron2's mapper from dataset dicts to model inputs, which reads unusual images correctly."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T

from fbnetv3.data.image_io import read_rendered_image
from fbnetv3.detection.data.augmentation.augmentation_keys import combines_images, cuts_objects
from fbnetv3.detection.data.augmentation.copy_paste import paste_objects
from fbnetv3.detection.data.augmentation.image_augmentation import (
    SafeResizeShortestEdge,
    build_image_augmentations,
    jitter_size,
)
from fbnetv3.detection.data.augmentation.mosaic import NUM_IMAGES, join_mosaic
from fbnetv3.detection.data.augmentation.training_sample import (
    TrainingSample,
    drop_hidden,
    transform_annotation,
)
from fbnetv3.errors import UsageError


def read_image_array(path: str | os.PathLike, format: str = "BGR") -> np.ndarray:
    """Read an image file as uint8 (height, width, channels), rendered as everywhere; see `render_image`.

    Unlike detectron2's `read_image`, 16-bit gray images are scaled instead of clipped, transparent ones are shown on
    white, and TIFFs are rotated only once. `format` is `INPUT.FORMAT`: "BGR", "RGB", "L" and so on.

    Raises:
        CorruptImageError: the file is missing, corrupt, not an image, too large to decode safely, or its values are out
            of range.
    """
    return detection_utils.convert_PIL_to_numpy(read_rendered_image(path), format)


def inference_resize(cfg: CfgNode) -> SafeResizeShortestEdge:
    """Return the resizing of inference: `INPUT.MIN_SIZE_TEST` and `INPUT.MAX_SIZE_TEST`."""
    return SafeResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)


class FBNetV3DatasetMapper(DatasetMapper):
    """detectron2's `DatasetMapper` for detection, with these differences; ordinary images give the same inputs.

    - Images of more than 8 bits are scaled; detectron2 clips them.
    - Transparent images are shown on white; detectron2 drops their transparency.
    - Images of extreme aspect ratios keep at least one pixel per side; detectron2 fails on them.
    - Boxes stay fractional after resizing; detectron2 truncates them if the annotation file has integers.
    - `INPUT.AUGMENTATION` is applied, except what combines several images; see `CombiningMapper`.
    - With crops, masks become bitmaps, and objects of which too little remains are dropped (`MIN_VISIBLE`).

    The arguments are detectron2's: `FBNetV3DatasetMapper(cfg, is_train=True)` takes them from a config, and
    `build_detection_train_loader(cfg, mapper=...)` accepts the mapper. As in detectron2, crowds are skipped, boxes are
    clipped to their image, and boxes without area are removed.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments from a config."""
        if cfg.MODEL.KEYPOINT_ON and not is_train:
            # Without annotations nothing is flipped, and the names of the training data may be unknown
            cfg = cfg.clone()
            cfg.defrost()
            cfg.MODEL.KEYPOINT_ON = False
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = build_image_augmentations(cfg, is_train)
        if is_train and cuts_objects(cfg):
            # What remains of a mask is a bitmap, and its box is tight, as in detectron2
            arguments["instance_mask_format"] = "bitmask"
            arguments["recompute_boxes"] = cfg.MODEL.MASK_ON
            section = cfg.INPUT.get("AUGMENTATION", {})
            arguments["min_visible"] = section.get("MIN_VISIBLE", 0.0)
            arguments["keep_masks"] = bool(section.get("COPY_PASTE"))
        return arguments

    @configurable
    def __init__(
        self, is_train: bool, *, min_visible: float = 0.0, keep_masks: bool = False, **arguments: Any
    ) -> None:
        super().__init__(is_train, **arguments)
        self.min_visible = min_visible
        self.keep_masks = keep_masks

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn a dataset dict into a model's input: "image" (C, H, W), "instances" and so on.

        Raises:
            CorruptImageError: the image cannot be read.
            SizeMismatchError: its size differs from the one in the dataset dict.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        return self.to_input(dataset_dict, self.load_sample(dataset_dict))

    def load_sample(self, dataset_dict: dict[str, Any]) -> TrainingSample:
        """Read a dataset dict's image and augment it with its annotations, except crowds. May modify the dict."""
        image = read_image_array(dataset_dict["file_name"], self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        inputs = T.AugInput(image)
        transforms = self.augmentations(inputs)
        sample = TrainingSample(inputs.image, [])
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                dataset_dict, sample.size, transforms, proposal_topk=self.proposal_topk
            )
        for annotation in dataset_dict.get("annotations") or () if self.is_train else ():
            if annotation.get("iscrowd", 0):
                continue
            if not self.use_instance_mask and not self.keep_masks:
                annotation.pop("segmentation", None)
            if not self.use_keypoint:
                annotation.pop("keypoints", None)
            elif "keypoints" not in annotation and self.keypoint_hflip_indices is not None:
                # detectron2 needs them for all objects or for none
                annotation["keypoints"] = np.zeros((len(self.keypoint_hflip_indices), 3))
            annotation["bbox"] = [float(value) for value in annotation["bbox"]]
            sample.annotations.append(
                transform_annotation(
                    annotation,
                    transforms,
                    image.shape[:2],
                    sample.size,
                    bitmaps=self.instance_mask_format == "bitmask",
                    flip_indices=self.keypoint_hflip_indices,
                )
            )
        return sample

    def to_input(self, dataset_dict: dict[str, Any], sample: TrainingSample) -> dict[str, Any]:
        """Put a sample into its dataset dict as the model's input."""
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        annotations = dataset_dict.pop("annotations", None)
        if not self.is_train or annotations is None:
            return dataset_dict
        visible = drop_hidden(sample.annotations, self.min_visible)
        for annotation in visible:
            if not self.use_instance_mask:
                annotation.pop("segmentation", None)
            if "keypoints" in annotation:  # torch warns of lists of arrays
                annotation["keypoints"] = np.asarray(annotation["keypoints"]).tolist()
        instances = detection_utils.annotations_to_instances(
            visible, sample.size, self.instance_mask_format
        )
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = detection_utils.filter_empty_instances(instances)
        return dataset_dict


class CombiningMapper:
    """Maps dataset dicts like another mapper, but combines images with random others: mosaic and copy-paste.

    Args:
        mapper: maps a single image.
        dicts: the images to draw others from, each with equal probability.
        cfg: the config with the section `INPUT.AUGMENTATION`.
    """

    def __init__(self, mapper: FBNetV3DatasetMapper, dicts: Sequence[dict[str, Any]], cfg: CfgNode) -> None:
        self.mapper = mapper
        self.dicts = dicts
        section = cfg.INPUT.AUGMENTATION
        self.mosaic = section.MOSAIC
        self.scales = tuple(section.MOSAIC_SCALE)
        self.copy_paste = section.COPY_PASTE
        # Large-scale jitter may have made the first image small
        self.canvas_size = jitter_size(cfg) if section.LARGE_SCALE_JITTER else None
        # The model pads images with the same color
        self.fill = cfg.MODEL.PIXEL_MEAN

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn a dataset dict into a model's input, as `FBNetV3DatasetMapper` does."""
        dataset_dict = copy.deepcopy(dataset_dict)
        sample = self.mapper.load_sample(dataset_dict)
        if np.random.rand() < self.mosaic:
            others = [self._random_sample() for _ in range(NUM_IMAGES - 1)]
            sample = join_mosaic([sample, *others], self.scales, self.fill, self.canvas_size)
        if np.random.rand() < self.copy_paste:
            sample = paste_objects(sample, self._random_sample(), self.mapper.min_visible)
        return self.mapper.to_input(dataset_dict, sample)

    def _random_sample(self) -> TrainingSample:
        index = np.random.randint(len(self.dicts))
        return self.mapper.load_sample(copy.deepcopy(self.dicts[index]))


def build_training_mapper(
    cfg: CfgNode, dicts: Sequence[dict[str, Any]]
) -> FBNetV3DatasetMapper | CombiningMapper:
    """Build the mapper of the training images, with the augmentation of the config.

    Raises:
        UsageError: copy-paste is on, but no object has a mask.
    """
    mapper = FBNetV3DatasetMapper(cfg, is_train=True)
    if not combines_images(cfg):
        return mapper
    annotations = (annotation for image in dicts for annotation in image.get("annotations", ()))
    if cfg.INPUT.AUGMENTATION.COPY_PASTE and not any(a.get("segmentation") for a in annotations):
        raise UsageError(
            "INPUT.AUGMENTATION.COPY_PASTE needs masks to cut out objects, but no annotation of DATASETS.TRAIN "
            'has a "segmentation": set it to 0; INPUT.AUGMENTATION.MOSAIC works with boxes'
        )
    return CombiningMapper(mapper, dicts, cfg)
