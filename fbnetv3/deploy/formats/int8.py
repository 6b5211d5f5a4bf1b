"""Post-training quantisation to 8 bits: what to calibrate on, and what a quantised network must still be able to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fbnetv3.deploy.formats.export_formats import FORMATS, needed, silent
from fbnetv3.deploy.input_images import AnyInput, images_below
from fbnetv3.deploy.predictors.classifier_predictor import Predictor, open_folder
from fbnetv3.errors import DataError, ExportError, UsageError

QUANTIZED = ("onnx", "executorch")
"""The formats that have int8."""
AGREEMENT = 98.0
"""Per cent of unlabelled images on which int8 has to choose as float32 does."""
_BATCH = 8  # images at once while calibrating, when the maps of all of them are kept


@dataclass(frozen=True)
class Int8:
    """How to quantise, and how to judge it.

    Attributes:
        calibration: images that show in which range each map's values lie; a few hundred.
        images: others, to compare int8 with float32 on.
        targets: the number of each one's class, to count top-1; None where it is not known.
        max_drop: points of top-1 that may be lost.
        min_agreement: per cent of images on which both have to choose the same class; default: 98 without targets,
            and any with them.
        reduce_range: 7-bit weights in ONNX, for x86 without VNNI, where sums of two 8-bit products may saturate.
    """

    calibration: Sequence[AnyInput]
    images: Sequence[AnyInput]
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
    def needed_agreement(self) -> float:
        """`min_agreement`, or its default."""
        if self.min_agreement is not None:
            return self.min_agreement
        return AGREEMENT if self.targets is None else 0.0

    def compared(self, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
        """What logits (N, classes) for `images` come to: "agreement" and, with targets, "top1_float32" and
        "top1_int8", all in per cent."""
        chosen, then = before.argmax(1), after.argmax(1)
        found = {"agreement": _per_cent(chosen == then)}
        if self.targets is not None:
            targets = np.asarray(self.targets)
            found |= {"top1_float32": _per_cent(chosen == targets), "top1_int8": _per_cent(then == targets)}
        return found

    def refuse(self, found: dict[str, float], name: str) -> None:
        """Pass on what `compared` gives.

        Raises:
            ExportError: too much is lost; the text says how much and what to do.
        """
        reason = ""
        if self.targets is not None and found["top1_float32"] - found["top1_int8"] > self.max_drop:
            reason = (
                f"takes top-1 from {found['top1_float32']:.2f} to {found['top1_int8']:.2f} % on {len(self.images)} "
                f"images, where {self.max_drop:g} points are allowed"
            )
        elif found["agreement"] < self.needed_agreement:
            reason = (
                f"chooses the class that float32 chooses on {found['agreement']:.2f} % of {len(self.images)} images, "
                f"where {self.needed_agreement:g} % are needed"
            )
        if reason:
            raise ExportError(f"{name}: int8 {reason}: nothing was exported; try other images to calibrate on")


def _per_cent(right: np.ndarray) -> float:
    return 100 * float(right.mean())


def leading(counts: Sequence[int], share: float) -> int:
    """How many of a network's first layers stay float32: those that hold at most a share of all its weights.

    They work on the largest maps with the fewest channels: rounding there harms most, float32 costs no size, and where
    quantising maps takes longer than integer products save, it is faster besides.

    Args:
        counts: of the weights of each layer, in the network's order.
        share: of their sum.
    """
    return int((np.cumsum(counts) <= share * sum(counts)).sum())


def folder_split(folder: str | os.PathLike, calibrated: int, compared: int) -> tuple[list[AnyInput], list[AnyInput]]:
    """Images of a folder to calibrate on, and others of it to compare on, both spread evenly over their sorted names;
    half of them each, where the folder has few.

    Args:
        folder: the folder; those in it count too.
        calibrated, compared: how many at most.

    Raises:
        DataError: fewer than two images, or one is damaged.
    """
    found: list[AnyInput] = [*images_below(folder, calibrated + compared)]
    if len(found) < 2:
        raise DataError(f"{folder}: one image alone: int8 needs some to calibrate on, and others to compare on")
    count = min(calibrated, (len(found) + 1) // 2)
    first = {i * len(found) // count for i in range(count)}
    return [found[i] for i in sorted(first)], [image for i, image in enumerate(found) if i not in first][:compared]


def quantised(
    program: torch.export.ExportedProgram, folder: Path, format: str, found: Predictor, int8: Int8
) -> dict[str, float]:
    """Put in the place of an exported folder's model its quantised form.

    Args:
        program: the network, as it was captured for the format.
        folder: where its float32 form lies.
        format: one of `QUANTIZED`.
        found: runs the float32 form.
        int8: how.

    Returns:
        What `Int8.compared` gives, how many images there were, and the sizes of both files in bytes.

    Raises:
        MissingPackageError: a package is not installed; the text says what to install.
        ExportError: it cannot be quantised, or loses too much.
    """
    file = folder / FORMATS[format].file
    before, bytes_float32 = found.logits(int8.images), file.stat().st_size
    batches = found.batches(int8.calibration, _BATCH)
    if format == "onnx":
        with needed("onnx", "onnxruntime"), silent():
            from fbnetv3.deploy.formats.quantize_onnx import quantize_onnx
        quantize_onnx(file, batches, int8.reduce_range)
    else:
        with needed("executorch", "torchao"), silent():
            from fbnetv3.deploy.formats.quantize_executorch import quantize_executorch
        quantize_executorch(program, file, batches)
    about = int8.compared(before, open_folder(folder, format, found.name).logits(int8.images))
    int8.refuse(about, found.name)
    return {
        **about,
        "images": len(int8.images),
        "calibration_images": len(int8.calibration),
        "bytes_float32": bytes_float32,
        "bytes_int8": file.stat().st_size,
        "max_drop": int8.max_drop,
        "min_agreement": int8.needed_agreement,
    }
