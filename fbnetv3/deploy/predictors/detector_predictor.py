"""Detect objects with an exported detector; the results are boxes with labels and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from fbnetv3.data.preprocessing_values import RENDERING_STEP
from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
from fbnetv3.deploy.input_images import ImageLike, is_batch, load_rgb_array
from fbnetv3.errors import ExportError, UsageError
from fbnetv3.utils.checks import check_int

DETECTOR_INPUT = "image"
CLASSES_OUTPUT = "classes"
DETECTOR_OUTPUTS = ("boxes", "scores", CLASSES_OUTPUT)
_MAX_SIDE = 100_000  # pixels


@dataclass(frozen=True)
class Detection:
    """One detected object; its box is x0, y0, x1, y1 in pixels of the upright image, its score in [0, 1]."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    class_index: int


@dataclass(frozen=True)
class DetectionArrays:
    """The detections in one image, best first.

    Boxes are float32 (N, 4), x0, y0, x1, y1 in pixels of the image; scores are float32 (N,), class indices int64 (N,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


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
    """A detector with its resizing, class names and category ids."""

    runtime: OnnxRuntime
    resize: ShortSideResize
    classes: Sequence[str]
    name: str = "the detector"
    category_ids: Sequence[int | float | str] = ()
    """Ids of the classes in results files; empty in folders of earlier versions."""

    def __call__(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float = 0.0
    ) -> list[Detection] | list[list[Detection]]:
        """Return the objects in images, best first.

        Args:
            images: one image or a list of images; each is a path, a Pillow image, or a uint8 array (H, W) or
                (H, W, 3) in RGB. Files and Pillow images are rendered as in training: see `render_image`. For a list,
                the result is a list of detections for each image.
            score_threshold: minimum score, in addition to the detector's own threshold, from its config.

        Raises:
            DataError: an image is missing or corrupt; the message names it.
            UsageError: `score_threshold` is not in [0, 1].
            ExportError: the detector returns a class index without a name.
        """
        if not 0 <= score_threshold <= 1:
            raise UsageError(f"score_threshold {score_threshold} must be in [0, 1]")
        image_list: list[Any] = list(images) if is_batch(images) else [images]
        arrays = (load_rgb_array(image, f"images[{i}]") for i, image in enumerate(image_list))
        detections = [self._to_detections(self.detect(pixels), score_threshold) for pixels in arrays]
        return detections if is_batch(images) else detections[0]

    def detect(self, pixels: np.ndarray) -> DetectionArrays:
        """Return the objects in one image, uint8 (height, width, 3) in RGB, as arrays.

        Boxes are scaled from the resized to the original image and clipped to it, as detectron2 does.
        """
        height, width = pixels.shape[:2]
        # Run the graph
        resized = self.resize(pixels)
        boxes, scores, classes = self.runtime.run_outputs(DETECTOR_INPUT, resized)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ExportError(
                f"{self.name}: returns class indices {classes.min()} to {classes.max()}, "
                f"but has {len(self.classes)} class names"
            )
        # Scale back to the original image, clip, and drop boxes that are then empty
        boxes = boxes * np.array([width / resized.shape[1], height / resized.shape[0]] * 2, np.float32)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        is_nonempty = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return DetectionArrays(boxes[is_nonempty], scores[is_nonempty], classes[is_nonempty])

    def _to_detections(self, arrays: DetectionArrays, score_threshold: float) -> list[Detection]:
        rows = zip(arrays.boxes.tolist(), arrays.scores.tolist(), arrays.classes.tolist(), strict=True)
        return [
            Detection(self.classes[index], score, tuple(box), index)
            for box, score, index in rows
            if score >= score_threshold
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
            "order: row, column, channel; uint8",
            "boxes are in pixels of the resized image: scale them back and clip them to the image",
        ],
    }


def resize_from_dict(fields: Mapping[str, Any]) -> ShortSideResize:
    """Build the resizing from the result of `resize_to_dict`. Raise ValueError for an invalid value."""
    resize = ShortSideResize(int(fields["shortest"]), int(fields["longest"]))
    check_int(resize.shortest, "shortest", 0)
    check_int(resize.longest, "longest", 1, _MAX_SIDE)
    return resize
