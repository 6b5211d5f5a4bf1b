"""Lower precisions of an export: how int8 is calibrated, what stays float32, and how much accuracy may be lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, INT8, PRECISIONS, ExportFormat
from fbnetv3.deploy.input_images import ClassifierImage, sample_image_files
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.errors import DataError, ExportError, UsageError
from fbnetv3.utils.text import evenly_spaced

# A hard swish is 0 below -3 and has no limit above; a hard sigmoid is 0 below -3 and 1 above 3
HARD_SWISH_RANGE = (-3.0, None)
HARD_SIGMOID_RANGE = (-3.0, 3.0)
# Percent of unlabeled images
_MIN_AGREEMENT_INT8 = 98.0
_MIN_AGREEMENT_FLOAT = 99.0
_CALIBRATION_BATCH = 8  # small, because calibration keeps the feature maps of a whole batch


@dataclass(frozen=True)
class PrecisionSettings:
    """To which precision a network is reduced, and how to judge the result.

    Attributes:
        precision: "int8", "bfloat16" or "float16"; each format offers some of them.
        images: images on which the result is compared with float32.
        targets: class index of each of `images`, to measure top-1; None if unknown.
        calibration: for int8, a few hundred other images, on which the range of each feature map is measured.
        max_drop: maximum drop in top-1, in percentage points.
        min_agreement: minimum percentage of images for which both choose the same class; default: without targets, 98
            for int8 and 99 for other precisions; no limit with targets.
        reduce_range: whether to use 7-bit weights, only with int8 in ONNX and OpenVINO: on x86 without VNNI, sums of
            two 8-bit products may saturate.
    """

    precision: str
    images: Sequence[ClassifierImage]
    targets: Sequence[int] | None = None
    calibration: Sequence[ClassifierImage] = ()
    max_drop: float = 1.0
    min_agreement: float | None = None
    reduce_range: bool = False

    def __post_init__(self) -> None:
        reduced = [precision for precision in PRECISIONS if precision != FLOAT32]
        if self.precision not in reduced:
            raise UsageError(f"precision {self.precision!r} must be one of {', '.join(reduced)}")
        if self.precision == INT8 and not self.calibration:
            raise UsageError("int8 needs images to calibrate on")
        targets = self.images if self.targets is None else self.targets
        if not self.images or len(targets) != len(self.images):
            raise UsageError(
                f"{self.precision} needs images to compare on, and the targets of all of them or of none"
            )

    @property
    def required_agreement(self) -> float:
        """`min_agreement` or its default."""
        if self.min_agreement is not None:
            return self.min_agreement
        if self.targets is not None:
            return 0.0
        return _MIN_AGREEMENT_INT8 if self.precision == INT8 else _MIN_AGREEMENT_FLOAT

    def compare(self, float32_logits: np.ndarray, logits: np.ndarray) -> dict[str, float]:
        """Return "agreement" and, with targets, top-1 of both logits (N, classes), in percent: "top1_float32" etc."""
        float32_classes = float32_logits.argmax(1)
        classes = logits.argmax(1)
        equal = {"agreement": float32_classes == classes}
        if self.targets is not None:
            targets = np.asarray(self.targets)
            equal["top1_float32"] = float32_classes == targets
            equal[f"top1_{self.precision}"] = classes == targets
        return {key: 100 * float(is_equal.mean()) for key, is_equal in equal.items()}

    def describe_violation(self, comparison: dict[str, float]) -> str:
        """Describe which limit the result of `compare` exceeds; return an empty text if none."""
        # Labels decide if available; agreement decides without labels, or if a minimum was set
        count = len(self.images)
        if self.targets is not None:
            before = comparison["top1_float32"]
            after = comparison[f"top1_{self.precision}"]
            if before - after > self.max_drop:
                limit = f"the limit is a loss of {self.max_drop:g} points (max_drop)"
                return f"reduces top-1 from {before:.2f} to {after:.2f}% on {count} images; {limit}"
        agreement = comparison["agreement"]
        if agreement < self.required_agreement:
            limit = f"{self.required_agreement:g}% are required"
            return f"chooses the same class as float32 for {agreement:.2f}% of {count} images; {limit}"
        return ""


def reduce_precision(
    program: ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    predictor: ClassifierPredictor,
    settings: PrecisionSettings,
) -> None:
    """Replace the model file with one of a lower precision; `predictor` preprocesses the calibration images."""
    batches = predictor.batches(settings.calibration, _CALIBRATION_BATCH)
    export_format.reduce_precision(program, path, settings.precision, batches, settings.reduce_range)


def reduce_and_compare(
    program: ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    float32_predictor: ClassifierPredictor,
    settings: PrecisionSettings,
) -> dict[str, Any]:
    """Replace the model file with one of a lower precision, and return the comparison, for the manifest.

    Raises:
        ExportError: the result exceeds a limit of the settings.
    """
    precision = settings.precision
    # Compute float32 logits before the file is replaced
    float32_logits = float32_predictor.logits(settings.images)
    float32_bytes = export_format.model_bytes(path)
    reduce_precision(program, path, export_format, float32_predictor, settings)
    reduced = replace(float32_predictor, runtime=export_format.open(path, precision))
    comparison = settings.compare(float32_logits, reduced.logits(settings.images))
    if violation := settings.describe_violation(comparison):
        advice = "; try other calibration images" if precision == INT8 else ""
        raise ExportError(
            f"{float32_predictor.name}: {precision} {violation}. Nothing was exported{advice}"
        )
    calibration = {"calibration_images": len(settings.calibration)} if precision == INT8 else {}
    return {
        **comparison,
        "images": len(settings.images),
        **calibration,
        "bytes_float32": float32_bytes,
        f"bytes_{precision}": export_format.model_bytes(path),
        "max_drop": settings.max_drop,
        "min_agreement": settings.required_agreement,
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
