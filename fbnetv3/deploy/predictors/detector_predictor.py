"""The predictor of an exported detector: images in, boxes with labels and scores out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fbnetv3.deploy.exported_folder import read_description
from fbnetv3.deploy.formats.export_formats import FORMATS
from fbnetv3.deploy.formats.runtimes import OnnxRuntime
from fbnetv3.deploy.input_images import AnyPicture, is_several, upright_pixels
from fbnetv3.errors import ExportError, UsageError

FORMAT = "onnx"
_MOST_PIXELS = 100_000  # of a side
INPUT, OUTPUTS = "image", ("boxes", "scores", "classes")


@dataclass(frozen=True)
class Detection:
    """An object that was found.

    Attributes:
        label: name of its class.
        score: in [0, 1].
        box: x0, y0, x1, y1, in pixels of the image as it is seen.
        index: number of its class.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    index: int


@dataclass(frozen=True)
class Boxes:
    """What was found in an image, best first.

    Attributes:
        boxes: float32 (N, 4): x0, y0, x1, y1 in pixels of the image.
        scores: float32 (N,).
        classes: int64 (N,).
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Resizing:
    """How large a detector wants its images, as detectron2's `ResizeShortestEdge` has it.

    Attributes:
        shortest: pixels of the shorter side, `INPUT.MIN_SIZE_TEST`; 0 leaves images as they are.
        longest: pixels that the longer side has at most, `INPUT.MAX_SIZE_TEST`.
    """

    shortest: int
    longest: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of an image of this height and width, resized."""
        if not self.shortest:
            return height, width
        scale = self.shortest / min(height, width)
        sides = (self.shortest, scale * width) if height < width else (scale * height, self.shortest)
        shrunk = min(1.0, self.longest / max(sides))
        high, wide = (max(1, int(side * shrunk + 0.5)) for side in sides)
        return high, wide

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """An image, uint8 (height, width, 3), resized."""
        height, width = self.size(*pixels.shape[:2])
        if (height, width) == pixels.shape[:2]:
            return np.ascontiguousarray(pixels)
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


class DetectionPredictor:
    """Finds objects in images.

    Args:
        runtime: runs the detector.
        resizing: how large it wants its images.
        classes: names of the classes.
        name: of the detector, for messages.
    """

    def __init__(self, runtime: OnnxRuntime, resizing: Resizing, classes: Sequence[str], name: str = "") -> None:
        self.runtime, self.resizing, self.classes, self.name = runtime, resizing, list(classes), name

    def __call__(
        self, images: AnyPicture | Sequence[AnyPicture], score_threshold: float = 0.0
    ) -> list[Detection] | list[list[Detection]]:
        """The objects in images, best first.

        Args:
            images: one, or a list of them: a path, an array, uint8 (H, W) or (H, W, 3) in RGB, or a Pillow image. Files
                and Pillow images are turned as their EXIF says.
            score_threshold: leaves out what is below; the detector's own, from its config, counts besides.

        Returns:
            For an image its detections; for a list of images a list of these.

        Raises:
            DataError: an image is missing, damaged, or no image; the text names it.
            UsageError: a threshold outside [0, 1].
        """
        if not 0 <= score_threshold <= 1:
            raise UsageError(f"score_threshold {score_threshold}: is not in [0, 1]")
        several: list[Any] = list(images) if is_several(images) else [images]
        pixels = (upright_pixels(image, f"images[{i}]") for i, image in enumerate(several))
        found = [self._detections(self.boxes(each), score_threshold) for each in pixels]
        return found if is_several(images) else found[0]

    def boxes(self, pixels: np.ndarray) -> Boxes:
        """The objects of one image, uint8 (height, width, 3) in RGB, as arrays.

        Boxes are scaled from the resized image to the given one and clipped to it, as detectron2 does at the end.

        Raises:
            ExportError: it finds a class that has no name.
        """
        height, width = pixels.shape[:2]
        resized = self.resizing(pixels)
        boxes, scores, classes = self.runtime.outputs(INPUT, resized)
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ExportError(f"{self.name or 'the detector'}: finds class {classes.max()} of {len(self.classes)}")
        boxes = boxes * np.array([width / resized.shape[1], height / resized.shape[0]] * 2, np.float32)
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Boxes(boxes[kept], scores[kept], classes[kept])

    def _detections(self, found: Boxes, score_threshold: float) -> list[Detection]:
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
        return [
            Detection(self.classes[index], score, tuple(box), index)
            for box, score, index in rows
            if score >= score_threshold
        ]


def open_detector(folder: Path, name: str) -> DetectionPredictor:
    """The predictor of a detector's folder whose manifest is known. Checks nothing."""
    resizing, classes = read_description(folder, resizing_from)
    return DetectionPredictor(OnnxRuntime(folder / FORMATS[FORMAT].file), resizing, classes, name)


def fields_of(resizing: Resizing) -> dict[str, Any]:
    """What preprocessing.json says."""
    size = (
        f"resize the shorter side to {resizing.shortest} pixels, or so that the longer one has {resizing.longest}, "
        "whichever is smaller; both sides rounded (bilinear, antialiased, as Pillow does)"
    )
    return {
        **asdict(resizing),
        "channels": "RGB",
        "steps": [
            *([size] if resizing.shortest else []),
            "order: row, column, channel; uint8",
            "boxes are in pixels of the resized image: scale them back, and clip them to the image",
        ],
    }


def resizing_from(fields: Mapping[str, Any]) -> Resizing:
    """The reverse of `fields_of`."""
    found = Resizing(int(fields["shortest"]), int(fields["longest"]))
    if found.shortest < 0 or not 1 <= found.longest <= _MOST_PIXELS:
        raise ValueError
    return found
