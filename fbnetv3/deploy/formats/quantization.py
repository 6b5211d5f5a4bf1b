"""Post-training int8 quantization: how to calibrate, what stays float32, and how much accuracy may be lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import ExportFormat
from fbnetv3.deploy.input_images import ClassifierImage, sample_image_files
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.errors import DataError, ExportError, UsageError
from fbnetv3.utils.text import evenly_spaced

# A hard swish is 0 below -3 and has no limit above; a hard sigmoid is 0 below -3 and 1 above 3
HARD_SWISH_RANGE = (-3.0, None)
HARD_SIGMOID_RANGE = (-3.0, 3.0)
_DEFAULT_MIN_AGREEMENT = 98.0  # percent of unlabeled images
_CALIBRATION_BATCH = 8  # small, because calibration keeps the feature maps of a whole batch


@dataclass(frozen=True)
class Int8Settings:
    """How to quantize a network and how to judge the result.

    Attributes:
        calibration: a few hundred images, on which the range of each feature map is measured.
        images: other images, on which int8 is compared with float32.
        targets: class index of each of `images`, to measure top-1; None if unknown.
        max_drop: maximum drop in top-1, in percentage points.
        min_agreement: minimum percentage of images for which both choose the same class; default: 98 without
            targets, no limit with targets.
        reduce_range: whether to use 7-bit weights, only with ONNX: on x86 without VNNI, sums of two 8-bit products may
            saturate.
    """

    calibration: Sequence[ClassifierImage]
    images: Sequence[ClassifierImage]
    targets: Sequence[int] | None = None
    max_drop: float = 1.0
    min_agreement: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if not self.calibration:
            raise UsageError("int8 needs images to calibrate on")
        targets = self.images if self.targets is None else self.targets
        if not self.images or len(targets) != len(self.images):
            raise UsageError("int8 needs images to compare on, and the targets of all of them or of none")

    @property
    def required_agreement(self) -> float:
        """`min_agreement` or its default."""
        if self.min_agreement is not None:
            return self.min_agreement
        return _DEFAULT_MIN_AGREEMENT if self.targets is None else 0.0

    def compare(self, float32_logits: np.ndarray, int8_logits: np.ndarray) -> dict[str, float]:
        """Return "agreement" and, with targets, "top1_float32" and "top1_int8" of logits (N, classes), in percent."""
        float32_classes = float32_logits.argmax(1)
        int8_classes = int8_logits.argmax(1)
        equal = {"agreement": float32_classes == int8_classes}
        if self.targets is not None:
            targets = np.asarray(self.targets)
            equal["top1_float32"] = float32_classes == targets
            equal["top1_int8"] = int8_classes == targets
        return {key: 100 * float(is_equal.mean()) for key, is_equal in equal.items()}

    def describe_violation(self, comparison: dict[str, float]) -> str:
        """Describe which limit the result of `compare` exceeds; return an empty text if none."""
        # Labels decide if available; agreement decides without labels, or if a minimum was set
        count = len(self.images)
        if self.targets is not None:
            before = comparison["top1_float32"]
            after = comparison["top1_int8"]
            if before - after > self.max_drop:
                limit = f"the limit is a loss of {self.max_drop:g} points (max_drop)"
                return f"reduces top-1 from {before:.2f} to {after:.2f}% on {count} images; {limit}"
        agreement = comparison["agreement"]
        if agreement < self.required_agreement:
            limit = f"{self.required_agreement:g}% are required"
            return f"chooses the same class as float32 for {agreement:.2f}% of {count} images; {limit}"
        return ""


def quantize_model_file(
    program: ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    float32_predictor: ClassifierPredictor,
    int8: Int8Settings,
) -> dict[str, Any]:
    """Replace the model file with its int8 version, and return the comparison, for the manifest."""
    # Compute float32 logits before the file is replaced
    float32_logits = float32_predictor.logits(int8.images)
    float32_bytes = path.stat().st_size
    batches = float32_predictor.batches(int8.calibration, _CALIBRATION_BATCH)
    export_format.quantize(program, path, batches, int8.reduce_range)
    int8_predictor = replace(float32_predictor, runtime=export_format.open(path))
    comparison = int8.compare(float32_logits, int8_predictor.logits(int8.images))
    if violation := int8.describe_violation(comparison):
        name = float32_predictor.name
        raise ExportError(f"{name}: int8 {violation}. Nothing was exported; try other calibration images")
    return {
        **comparison,
        "images": len(int8.images),
        "calibration_images": len(int8.calibration),
        "bytes_float32": float32_bytes,
        "bytes_int8": path.stat().st_size,
        "max_drop": int8.max_drop,
        "min_agreement": int8.required_agreement,
    }


def count_float_layers(weight_counts: Sequence[int], max_share: float) -> int:
    """Return how many of a network's first layers stay float32: those that together hold `max_share` of all weights.

    The first layers have the largest feature maps with the fewest channels. Rounding does the most harm there, and
    float32 weights take little space. Where quantizing the maps takes longer than integer products save, float32 is
    also faster.
    """
    return int((np.cumsum(weight_counts) <= max_share * sum(weight_counts)).sum())


def split_image_folder(
    folder: str | os.PathLike, max_calibration: int, max_comparison: int
) -> tuple[list[Path], list[Path]]:
    """Divide the image files of a folder and its subfolders into images to calibrate on and images to compare on.

    Both are evenly spaced over the sorted file names. If there are few images, each part gets half of them.
    """
    paths = sample_image_files(folder, max_calibration + max_comparison)
    if len(paths) < 2:
        raise DataError(
            f"{folder}: has only one image; int8 needs images to calibrate on and others to compare on"
        )
    calibration = evenly_spaced(paths, min(max_calibration, (len(paths) + 1) // 2))
    chosen = set(calibration)
    comparison = [path for path in paths if path not in chosen]
    return calibration, comparison[:max_comparison]
