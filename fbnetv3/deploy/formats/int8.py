"""Post-training int8 quantization: what to calibrate on, and how much accuracy a quantized network may lose."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fbnetv3.deploy.formats.export_format import FORMATS, ExportFormat, get_format
from fbnetv3.deploy.input_images import ClassifierImage, read_image_folder
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.errors import DataError, ExportError, UsageError
from fbnetv3.utils.text import evenly_spaced

DEFAULT_MIN_AGREEMENT = 98.0
"""Percentage of unlabeled images for which int8 must choose the same class as float32."""
_CALIBRATION_BATCH = 8  # the feature maps of a whole batch are kept at once


@dataclass(frozen=True)
class Int8:
    """How to quantize a network and how to judge the result.

    Attributes:
        calibration: a few hundred images, from which the range of each feature map is taken.
        images: other images, to compare int8 with float32 on.
        targets: class index of each of `images`, to measure top-1; None if unknown.
        max_drop: maximum drop in top-1, in percentage points.
        min_agreement: minimum percentage of images for which both choose the same class; default: 98 without
            targets, no limit with targets.
        reduce_range: use 7-bit weights in ONNX, for x86 without VNNI, where sums of two 8-bit products may saturate.
    """

    calibration: Sequence[ClassifierImage]
    images: Sequence[ClassifierImage]
    targets: Sequence[int] | None = None
    max_drop: float = 1.0
    min_agreement: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if not self.calibration or not self.images:
            raise UsageError("int8 needs images to calibrate on, and others to compare on")
        if self.targets is not None and len(self.images) != len(self.targets):
            raise UsageError(f"int8: {len(self.targets)} targets for {len(self.images)} images")

    @property
    def required_agreement(self) -> float:
        """`min_agreement` or its default."""
        if self.min_agreement is not None:
            return self.min_agreement
        return DEFAULT_MIN_AGREEMENT if self.targets is None else 0.0

    def compare(self, float32_logits: np.ndarray, int8_logits: np.ndarray) -> dict[str, float]:
        """Compare logits (N, classes) for `images`.

        Returns:
            "agreement" and, with targets, "top1_float32" and "top1_int8", as percentages.
        """
        float32_classes = float32_logits.argmax(1)
        int8_classes = int8_logits.argmax(1)
        result = {"agreement": _percentage(float32_classes == int8_classes)}
        if self.targets is not None:
            targets = np.asarray(self.targets)
            result["top1_float32"] = _percentage(float32_classes == targets)
            result["top1_int8"] = _percentage(int8_classes == targets)
        return result

    def check(self, comparison: dict[str, float], name: str) -> None:
        """Check the result of `compare` for the network `name`."""
        # Labels decide if available; agreement decides without labels, or if a minimum was set
        problem = ""
        agreement = comparison["agreement"]
        if self.targets is not None and comparison["top1_float32"] - comparison["top1_int8"] > self.max_drop:
            problem = (
                f"reduces top-1 from {comparison['top1_float32']:.2f} to {comparison['top1_int8']:.2f}% on "
                f"{len(self.images)} images; at most {self.max_drop:g} points may be lost"
            )
        elif agreement < self.required_agreement:
            problem = (
                f"chooses the same class as float32 for {agreement:.2f}% of {len(self.images)} images; "
                f"{self.required_agreement:g}% are required"
            )
        if problem:
            raise ExportError(f"{name}: int8 {problem}. Nothing was exported; try other calibration images")


def _percentage(correct: np.ndarray) -> float:
    return 100 * float(correct.mean())


def int8_formats() -> list[str]:
    """Return the names of the formats that support int8."""
    return [name for name in FORMATS.names() if get_format(name).supports_int8]


def check_int8_support(int8: Int8, format: str) -> None:
    """Raise a UsageError if a format does not support int8, or not with `reduce_range`."""
    export_format = get_format(format)
    if not export_format.supports_int8:
        raise UsageError(f"int8 is available for {' and '.join(int8_formats())}, not for {format}")
    if int8.reduce_range and not export_format.supports_reduce_range:
        raise UsageError(f"reduce_range is not available for {format}; omit it, or export to onnx")


def quantize_model_file(
    program: torch.export.ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    float32_predictor: ClassifierPredictor,
    int8: Int8,
) -> dict[str, Any]:
    """Replace the model file with its int8 version, and compare both.

    Args:
        program: the network, traced for the format.
        path: the model file in float32.
        export_format: its format.
        float32_predictor: runs that file.
        int8: how to quantize and what to compare on.

    Returns:
        The result of `Int8.compare`, numbers of images, sizes of both files in bytes, and the limits that applied.
    """
    # 1. Compute float32 logits, before the file is replaced
    name = float32_predictor.name
    float32_logits = float32_predictor.logits(int8.images)
    float32_bytes = path.stat().st_size
    # 2. Quantize
    batches = float32_predictor.batches(int8.calibration, _CALIBRATION_BATCH)
    export_format.quantize(program, path, batches, int8.reduce_range)

    # 3. Compare
    int8_predictor = float32_predictor.with_runtime(export_format.open(path))
    comparison = int8.compare(float32_logits, int8_predictor.logits(int8.images))
    int8.check(comparison, name)
    return {
        **comparison,
        "images": len(int8.images),
        "calibration_images": len(int8.calibration),
        "bytes_float32": float32_bytes,
        "bytes_int8": path.stat().st_size,
        "max_drop": int8.max_drop,
        "min_agreement": int8.required_agreement,
    }


def split_image_folder(
    folder: str | os.PathLike, max_calibration: int, max_comparison: int
) -> tuple[list[ClassifierImage], list[ClassifierImage]]:
    """Split a folder's images into some to calibrate on and others to compare on.

    Both are evenly spaced over the sorted file names. If there are few images, each part gets half of them.

    Args:
        folder: searched recursively.
        max_calibration: maximum number of images to calibrate on.
        max_comparison: maximum number of images to compare on.
    """
    images: list[ClassifierImage] = [*read_image_folder(folder, max_calibration + max_comparison)]
    if len(images) < 2:
        raise DataError(f"{folder}: only one image; int8 needs some to calibrate on and others to compare on")
    count = min(max_calibration, (len(images) + 1) // 2)
    chosen = set(evenly_spaced(range(len(images)), count))
    calibration = [image for i, image in enumerate(images) if i in chosen]
    comparison = [image for i, image in enumerate(images) if i not in chosen]
    return calibration, comparison[:max_comparison]
