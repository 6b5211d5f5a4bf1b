"""Lower precisions of an export: how int8 is calibrated, what stays float32, and how much accuracy may be lost."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.export import ExportedProgram

from fbnetv3.deploy.formats.export_format import FLOAT32, INT8, PRECISIONS, ExportFormat
from fbnetv3.deploy.input_images import ClassifierImage, sample_image_files
from fbnetv3.deploy.int8.comparison_images import (
    agreement_bound,
    select_images,
    warn_if_few_calibration_images,
    warn_if_few_comparison_images,
)
from fbnetv3.deploy.int8.layer_sensitivity import (
    choose_float_layers,
    layer_names,
    measure_sensitivity,
    most_sensitive,
)
from fbnetv3.deploy.predictors.classifier_predictor import DEFAULT_THRESHOLD, ClassifierPredictor
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import DataError, ExportError, UsageError
from fbnetv3.modeling.qat.quantized_layers import LearnedInt8
from fbnetv3.utils.text import evenly_spaced, first_few

AUTO = "auto"
# Percent of unlabeled images
_MIN_AGREEMENT_INT8 = 98.0
_MIN_AGREEMENT_FLOAT = 99.0
# Factors of a format's share of weights in float layers, tried until the limits are met
_SHARE_FACTORS = (1, 4, 16)
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
        min_agreement: minimum percentage of images for which both choose the same class, or the same set of labels;
            default: without targets, 98 for int8 and 99 for other precisions; no limit with targets.
        reduce_range: whether to use 7-bit weights, only with int8 in ONNX and OpenVINO: on x86 without VNNI, sums of
            two 8-bit products may saturate.
        float_layers: with int8, the layers that stay float, by name; or their number, for the most sensitive ones; or
            "auto", for those that do the most harm for their size, and more until the limits are met.
        learned: ranges from quantization-aware training, which need no calibration and determine the float layers.
    """

    precision: str
    images: Sequence[ClassifierImage]
    targets: Sequence[int] | None = None
    calibration: Sequence[ClassifierImage] = ()
    max_drop: float = 1.0
    min_agreement: float | None = None
    reduce_range: bool = False
    float_layers: str | int | Sequence[str] = AUTO
    learned: LearnedInt8 | None = None

    def __post_init__(self) -> None:
        reduced = [precision for precision in PRECISIONS if precision != FLOAT32]
        if self.precision not in reduced:
            raise UsageError(f"precision {self.precision!r} must be one of {', '.join(reduced)}")
        if self.precision == INT8 and not self.calibration and not self.learned:
            raise UsageError("int8 needs images to calibrate on")
        if isinstance(self.float_layers, str) and self.float_layers != AUTO:
            raise UsageError(
                f"float_layers {self.float_layers!r} must be auto, a number of layers or a list of their names"
            )
        if self.learned and self.float_layers != AUTO:
            raise UsageError("float_layers: quantization-aware training has determined the float layers")
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

    def compare(
        self, float32_logits: np.ndarray, logits: np.ndarray, multi_label: bool = False
    ) -> dict[str, float]:
        """Return "agreement" and, with targets, top-1 of both logits (N, classes), in percent: "top1_float32" etc.

        With `multi_label`, images have any number of labels, whose probability is at least 0.5, and agree if these are
        the same.
        """
        float32_classes = float32_logits.argmax(1)
        classes = logits.argmax(1)
        equal = {"agreement": float32_classes == classes}
        if multi_label:
            threshold = math.log(DEFAULT_THRESHOLD / (1 - DEFAULT_THRESHOLD))
            equal["agreement"] = ((float32_logits >= threshold) == (logits >= threshold)).all(1)
        if self.targets is not None:
            targets = np.asarray(self.targets)
            equal["top1_float32"] = float32_classes == targets
            equal[f"top1_{self.precision}"] = classes == targets
        return {key: 100 * float(is_equal.mean()) for key, is_equal in equal.items()}

    def describe_violation(self, comparison: dict[str, float], multi_label: bool = False) -> str:
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
            choice = "labels" if multi_label else "class"
            return f"chooses the same {choice} as float32 for {agreement:.2f}% of {count} images; {limit}"
        return ""


def reduce_precision(
    program: ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    predictor: ClassifierPredictor,
    settings: PrecisionSettings,
) -> None:
    """Replace the model file with one of a lower precision; `predictor` preprocesses the calibration images."""
    settings, _ = with_usable_images(settings, predictor)
    float_layers = next(_float_layer_choices(program, export_format, predictor, settings))
    _replace_file(program, path, export_format, predictor, settings, float_layers)


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
        DataError: too many images are corrupt.
    """
    precision = settings.precision
    settings, counts = with_usable_images(settings, float32_predictor)
    # Compute float32 logits before the file is replaced
    float32_logits = float32_predictor.logits(settings.images)
    float32_bytes = export_format.model_bytes(path)
    multi_label = float32_predictor.multi_label
    # Keep more layers in float until the limits are met
    for attempt, float_layers in enumerate(
        _float_layer_choices(program, export_format, float32_predictor, settings)
    ):
        if attempt:
            export_format.write(program, path)
        _replace_file(program, path, export_format, float32_predictor, settings, float_layers)
        reduced = replace(float32_predictor, runtime=export_format.open(path, precision))
        logits = reduced.logits(settings.images)
        comparison = settings.compare(float32_logits, logits, multi_label)
        violation = settings.describe_violation(comparison, multi_label)
        if not violation:
            break
    if violation:
        advice = "; try other calibration images" if precision == INT8 else ""
        raise ExportError(
            f"{float32_predictor.name}: {precision} {violation}. Nothing was exported{advice}"
        )
    num_images = len(settings.images)
    bound = agreement_bound(comparison["agreement"], num_images)
    warn_if_few_comparison_images(precision, num_images, comparison["agreement"], bound)
    int8_details: dict[str, Any] = {}
    if precision == INT8:
        int8_details["calibration_images"] = 0 if settings.learned else len(settings.calibration)
        int8_details["trained_ranges"] = settings.learned is not None
        if float_layers is not None:
            int8_details["float_layers"] = list(float_layers)
    return {
        **comparison,
        "agreement_lower_bound": bound,
        "largest_relative_difference": relative_difference(logits, float32_logits),
        "images": num_images,
        **counts,
        **int8_details,
        "bytes_float32": float32_bytes,
        f"bytes_{precision}": export_format.model_bytes(path),
        "max_drop": settings.max_drop,
        "min_agreement": settings.required_agreement,
    }


def with_usable_images(
    settings: PrecisionSettings, predictor: ClassifierPredictor
) -> tuple[PrecisionSettings, dict[str, int]]:
    """Leave out corrupt images, and those to compare on that are used for calibration; return their numbers, too."""
    calibration = [] if settings.learned else settings.calibration
    selection = select_images(calibration, settings.images, predictor.preprocess)
    targets = settings.targets
    usable = replace(
        settings,
        calibration=[calibration[index] for index in selection.calibration],
        images=[settings.images[index] for index in selection.comparison],
        targets=None if targets is None else [targets[index] for index in selection.comparison],
    )
    if usable.calibration:
        warn_if_few_calibration_images(len(usable.calibration))
    return usable, selection.counts


def _float_layer_choices(
    program: ExportedProgram,
    export_format: ExportFormat,
    predictor: ClassifierPredictor,
    settings: PrecisionSettings,
) -> Iterator[Collection[str] | None]:
    """Yield sets of layers to keep in float, from few to many; None for a format that chooses them itself."""
    if settings.precision != INT8 or not export_format.selects_float_layers:
        if settings.learned or settings.float_layers != AUTO:
            raise UsageError(
                "float_layers and trained ranges are available for int8 with onnx and executorch"
            )
        yield None
        return
    names = list(layer_names(program.module()).values())
    if settings.learned:
        yield [name for name in names if name not in settings.learned.ranges]
        return
    if not isinstance(settings.float_layers, (str, int)):
        if unknown := [name for name in settings.float_layers if name not in names]:
            raise UsageError(
                f"float_layers: no such layers: {first_few(unknown)}; there are {first_few(names)}"
            )
        yield settings.float_layers
        return
    batches = predictor.batches(settings.calibration, _CALIBRATION_BATCH)
    sensitivities = measure_sensitivity(program, batches, 7 if settings.reduce_range else 8)
    if isinstance(settings.float_layers, int):
        yield most_sensitive(sensitivities)[: settings.float_layers]
        return
    for factor in _SHARE_FACTORS:
        yield choose_float_layers(sensitivities, min(1, factor * export_format.float_share))


def _replace_file(
    program: ExportedProgram,
    path: Path,
    export_format: ExportFormat,
    predictor: ClassifierPredictor,
    settings: PrecisionSettings,
    float_layers: Collection[str] | None,
) -> None:
    batches = predictor.batches(settings.calibration, _CALIBRATION_BATCH)
    if float_layers is None:
        export_format.reduce_precision(program, path, settings.precision, batches, settings.reduce_range)
        return
    ranges = settings.learned.ranges if settings.learned else {}
    export_format.quantize_layers(
        program, path, batches, settings.reduce_range, float_layers=float_layers, ranges=ranges
    )


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
