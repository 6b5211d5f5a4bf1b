"""Detect objects with an exported detector; the results are boxes with labels and scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.data.preprocessing_values import RENDERING_STEP
from fbnetv3.deploy.input_images import ClassifierImage, is_batch, load_rgb_array, prepare_images
from fbnetv3.deploy.predictors.instance_maps import encode_mask_runs, locate_keypoints, paste_masks
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.utils.checks import check_int

DETECTOR_INPUT = "images"
SCORES_OUTPUT = "scores"
CLASSES_OUTPUT = "classes"
DETECTOR_OUTPUTS = ("boxes", SCORES_OUTPUT, CLASSES_OUTPUT, "image_indices")
MASKS = "masks"  # output of a mask head
HEATMAPS = "keypoint_heatmaps"  # output of a keypoint head
_MAX_SIDE = 100_000  # pixels


class DetectorRuntime(Protocol):
    """An object that runs a detector on arrays."""

    name: str  # the library and its version, for messages

    def run_outputs(self, input_name: str, value: np.ndarray) -> list[np.ndarray]:
        """Return all outputs for images, uint8 (N, H, W, 3), in the order of the detector's output names."""
        ...

    def describe_inputs(self) -> list[dict[str, Any]]:
        """Return the "name", "type" and "shape" of each input, where None means any size."""
        ...

    def describe_outputs(self) -> list[dict[str, Any]]:
        """Return the "name", "type" and "shape" of each output, where None means any size."""
        ...


@dataclass(frozen=True)
class Detection:
    """One detected object; its box is x0, y0, x1, y1 in pixels of the upright image, its score in [0, 1].

    A detector with a mask head also gives the mask, bool (height, width) of the image; one with a keypoint head gives
    the keypoints, float32 (P, 3): x, y, score. They are None otherwise.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    class_index: int
    mask: np.ndarray | None = field(default=None, compare=False, repr=False)
    keypoints: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False)
class DetectionArrays:
    """The detections in one image, best first.

    Boxes are float32 (K, 4), x0, y0, x1, y1 in pixels of the image; scores are float32 (K,), class indices int64 (K,).
    `mask_probabilities`, float32 (K, M, M), cover the boxes; `paste_masks` turns them into masks of the image.
    Keypoints are float32 (K, P, 3): x, y, score. Both are None if the detector has no such head. `mask_runs` are the
    masks of the image in little memory, to compare them: an array of K arrays, see `encode_mask_runs`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    mask_probabilities: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    mask_runs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: np.ndarray) -> DetectionArrays:
        """Return the detections at `rows`: indices, or bool (K,)."""
        values = (getattr(self, each.name) for each in fields(self))
        return DetectionArrays(*(None if value is None else value[rows] for value in values))  # type: ignore[arg-type]


def with_mask_runs(arrays: DetectionArrays, height: int, width: int) -> DetectionArrays:
    """Return the detections in an image of this size with `mask_runs`, if they have masks."""
    if arrays.mask_probabilities is None:
        return arrays
    masks = paste_masks(arrays.mask_probabilities, arrays.boxes, height, width)
    return replace(arrays, mask_runs=encode_mask_runs(masks))


@dataclass(frozen=True, eq=False)
class DetectorInput:
    """An image for a detector: its resized pixels, uint8 (h, w, 3), and its own size (height, width)."""

    pixels: np.ndarray
    size: tuple[int, int]


@dataclass(frozen=True)
class ShortSideResize:
    """How a detector's images are resized, as by detectron2's `ResizeShortestEdge`.

    `shortest` is the length of the short side in pixels, `INPUT.MIN_SIZE_TEST`; 0 leaves images unchanged. `longest` is
    the maximum length of the long side, `INPUT.MAX_SIZE_TEST`.
    """

    shortest: int
    longest: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of a resized image of this height and width."""
        if not self.shortest:
            return height, width
        # Scale the short side to `shortest`; shrink further if the long side would exceed `longest`
        scale = self.shortest / min(height, width)
        sides = (self.shortest, scale * width) if height < width else (scale * height, self.shortest)
        shrink = min(1.0, self.longest / max(sides))
        new_height, new_width = (max(1, int(side * shrink + 0.5)) for side in sides)
        return new_height, new_width

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Resize an image, uint8 (height, width, 3)."""
        height, width = self.size(*pixels.shape[:2])
        if (height, width) == pixels.shape[:2]:
            return np.ascontiguousarray(pixels)
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


@dataclass(frozen=True, eq=False)
class DetectorPredictor:
    """A detector with its resizing, class names and category ids.

    `min_score` is the threshold of the exported graph, below which nothing is detected whatever threshold is asked for;
    0 in folders that do not record it.
    """

    runtime: DetectorRuntime
    resize: ShortSideResize
    classes: Sequence[str]
    name: str = "the detector"
    map_names: Sequence[str] = ()  # outputs of mask and keypoint heads
    category_ids: Sequence[
        int | float | str
    ] = ()  # of the classes, in results files; empty in a file without them
    skeleton: KeypointSkeleton | None = None  # of a detector of keypoints
    min_score: float = 0.0

    def __call__(
        self,
        images: ClassifierImage | Sequence[ClassifierImage],
        score_threshold: float = 0.0,
        *,
        batch_size: int = 1,
        on_error: str = "raise",
    ) -> list[Detection] | list[list[Detection]] | list[list[Detection] | None] | None:
        """Return the objects in images, best first.

        Args:
            images: one image or a list of images; each is a path, the content of a file as bytes or as a file object, a
                Pillow image, or a uint8 array (H, W) or (H, W, 3) in RGB. Files and Pillow images are rendered as in
                training: see `render_image`. For a list, the result is a list of detections for each image.
            score_threshold: minimum score, in addition to the detector's own threshold, from its config.
            batch_size: maximum number of images per call of the network, which must have the same size after resizing.
                The detections do not depend on it.
            on_error: what to do about an image that cannot be read: "raise" an error, or "skip" it with a warning; its
                result is then None.

        Raises:
            DataError: an image is missing or corrupt; the message names it. Not with `on_error="skip"`.
            UsageError: `score_threshold` is not in [0, 1], `batch_size` is less than 1, or `on_error` is no choice.
            ExportError: the detector returns a class index without a name.
        """
        if not 0 <= score_threshold <= 1:
            raise UsageError(f"score_threshold {score_threshold} must be in [0, 1]")
        check_int(batch_size, "batch_size", 1)
        image_list: list[Any] = list(images) if is_batch(images) else [images]
        results: list[Any] = []
        for start in range(0, len(image_list), batch_size):
            part = image_list[start : start + batch_size]
            inputs = prepare_images(part, self.prepare, start, on_error)
            detections = dict(zip(inputs, self.detect_prepared(list(inputs.values())), strict=True))
            for i in range(len(part)):
                results.append(
                    self.to_detections(detections[i], inputs[i].size, score_threshold)
                    if i in inputs
                    else None
                )
        return results if is_batch(images) else results[0]

    def prepare(self, image: ClassifierImage, name: str = "the image") -> DetectorInput:
        """Load and resize an image; see `__call__` for its errors."""
        return self._resize_array(load_rgb_array(image, name))

    def _resize_array(self, pixels: np.ndarray) -> DetectorInput:
        return DetectorInput(self.resize(pixels), pixels.shape[:2])

    def detect(self, pixels: np.ndarray) -> DetectionArrays:
        """Return the objects in one image, uint8 (height, width, 3) in RGB, as arrays; see `detect_batch`."""
        return self.detect_batch([pixels])[0]

    def detect_batch(self, images: Sequence[np.ndarray]) -> list[DetectionArrays]:
        """Return the objects in images, each uint8 (height, width, 3) in RGB, as arrays.

        Images of the same size after resizing form a batch. Boxes are scaled from the resized to the original image and
        clipped to it, as detectron2 does.
        """
        return self.detect_prepared([self._resize_array(image) for image in images])

    def detect_prepared(self, inputs: Sequence[DetectorInput]) -> list[DetectionArrays]:
        """Return the objects in images that `prepare` has resized; see `detect_batch`."""
        indices_by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, each in enumerate(inputs):
            indices_by_shape[each.pixels.shape].append(i)
        results: dict[int, DetectionArrays] = {}
        for indices in indices_by_shape.values():
            batch = np.stack([inputs[i].pixels for i in indices])
            boxes, scores, classes, image_indices, *maps = self.runtime.run_outputs(DETECTOR_INPUT, batch)
            self._check_classes(classes)
            for position, i in enumerate(indices):
                rows = np.flatnonzero(image_indices == position)
                values = boxes[rows], scores[rows], classes[rows], [each[rows] for each in maps]
                results[i] = self._scale_to_image(*values, batch.shape[1:3], inputs[i].size)
        return [results[i] for i in range(len(inputs))]

    def _check_classes(self, classes: np.ndarray) -> None:
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ExportError(
                f"{self.name}: returns class indices {classes.min()} to {classes.max()}, "
                f"but has {len(self.classes)} class names"
            )

    def _scale_to_image(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        maps: Sequence[np.ndarray],
        resized_shape: Sequence[int],
        size: tuple[int, int],
    ) -> DetectionArrays:
        """Scale back to the original image, clip, and drop boxes that are then empty."""
        height, width = size
        scale = np.array([width / resized_shape[1], height / resized_shape[0]], np.float32)
        named_maps = dict(zip(self.map_names, maps, strict=True))
        keypoints = None
        if HEATMAPS in named_maps:
            keypoints = locate_keypoints(named_maps[HEATMAPS], boxes)
            keypoints[..., :2] *= scale
        boxes = (boxes * np.tile(scale, 2)).clip(0, np.array([width, height] * 2, np.float32))
        arrays = DetectionArrays(boxes, scores, classes, named_maps.get(MASKS), keypoints)
        return arrays.select(np.all(boxes[:, 2:] > boxes[:, :2], axis=1))

    def to_detections(
        self, arrays: DetectionArrays, size: tuple[int, int], score_threshold: float = 0.0
    ) -> list[Detection]:
        """Return detections in an image of the size (height, width) with their labels, best first."""
        arrays = arrays.select(arrays.scores >= score_threshold)
        none = [None] * len(arrays)
        masks: Any = none
        if arrays.mask_probabilities is not None:
            masks = paste_masks(arrays.mask_probabilities, arrays.boxes, *size)
        keypoints: Any = none if arrays.keypoints is None else arrays.keypoints
        rows = zip(
            arrays.boxes.tolist(),
            arrays.scores.tolist(),
            arrays.classes.tolist(),
            masks,
            keypoints,
            strict=True,
        )
        return [
            Detection(self.classes[index], score, tuple(box), index, mask, points)
            for box, score, index, mask, points in rows
        ]


def resize_to_dict(resize: ShortSideResize) -> dict[str, Any]:
    """Return the content of preprocessing.json, including the steps in words."""
    resize_step = (
        f"resize the short side to {resize.shortest} pixels, or the long side to {resize.longest}, whichever gives the "
        "smaller image; round both sides (bilinear, antialiased, as Pillow does)"
    )
    return {
        **asdict(resize),
        "channels": "RGB",
        "steps": [
            RENDERING_STEP,
            *([resize_step] if resize.shortest else []),
            "order: image, row, column, channel; uint8",
            "boxes are in pixels of the resized image: scale them back and clip them to the image",
        ],
    }


def resize_from_dict(fields: Mapping[str, Any]) -> ShortSideResize:
    """Build the resizing from the result of `resize_to_dict`. Raise ValueError for an invalid value."""
    resize = ShortSideResize(int(fields["shortest"]), int(fields["longest"]))
    check_int(resize.shortest, "shortest", 0)
    check_int(resize.longest, "longest", 1, _MAX_SIDE)
    return resize
