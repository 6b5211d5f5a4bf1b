"""Export of a detector: written aside, compared with the original box by box, and only then put in its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fbnetv3.deploy.detector_graph.box_ops import onnx_operators
from fbnetv3.deploy.exported_folder import DETECTION, Exported, described, new_folder, write_description
from fbnetv3.deploy.formats.export_formats import FORMATS, captured, check_format, write_onnx
from fbnetv3.deploy.input_images import AnyPicture, sample_photographs, upright_pixels
from fbnetv3.deploy.predictors.detector_predictor import (
    FORMAT,
    INPUT,
    OUTPUTS,
    Boxes,
    Resizing,
    fields_of,
    open_detector,
)
from fbnetv3.errors import ExportError, UsageError

BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-4
"""How far a box may lie from the original's, in pixels of the image, and a score from its score."""
SHARE = 0.99
"""Of detections that must be the original's. A suppression that hangs on the last bit of two boxes may turn out
otherwise elsewhere."""
_AXES = {0: "height", 1: "width"}
_EXAMPLE = (352, 480)  # no map of it has a size that another has too


@dataclass(frozen=True)
class Agreement:
    """How far detections are those of the original.

    Attributes:
        detections: of both, each counted once.
        equal: those that both have: of one class, within the tolerances.
        box_difference: the largest of these, in pixels.
        score_difference: the largest of these.
    """

    detections: int
    equal: int
    box_difference: float
    score_difference: float


def write_detector(
    model: nn.Module,
    resizing: Resizing,
    classes: Sequence[str],
    output: str | os.PathLike,
    *,
    original: Callable[[np.ndarray], Boxes],
    images: Sequence[AnyPicture] | None = None,
    name: str = "detector",
    command: str = "",
) -> Exported:
    """Export a detector into a new folder, as ONNX. The folder is there when the export finds what the original finds,
    and not at all otherwise.

    Args:
        model: from an image, uint8 (H, W, 3) in RGB, to boxes (N, 4) in its pixels, scores (N,) and classes (N,), by
            operators that torch.export takes, and those of `box_ops`.
        resizing: how large it wants its images.
        classes: their names.
        output: the folder to make; it may exist, if it is empty.
        original: what the detector finds in an image, uint8 (H, W, 3) in RGB, of any size.
        images: what to compare on, at least one; default: `sample_photographs`.
        name: of the detector.
        command: what to note in the manifest as the origin.

    Raises:
        UsageError: a wrong argument, or the folder is in use.
        MissingPackageError: a library is not installed; the text says what to install.
        ExportError: the detector cannot be exported, finds nothing to compare, or the export finds something else.
        DataError: an image to compare on is damaged.
        OutputError: the folder cannot be written.
    """
    if not classes:
        raise UsageError("no class names")
    check_format(FORMAT)
    given = sample_photographs() if images is None else images
    if not given:
        raise UsageError("no image to compare the export on")
    chosen, output = FORMATS[FORMAT], Path(output).expanduser()
    with new_folder(output) as folder:
        pixels = [upright_pixels(image, f"images[{i}]") for i, image in enumerate(given)]
        expected = [original(each) for each in pixels]
        if not sum(map(len, expected)):
            raise ExportError(
                f"{name}: finds nothing in the {len(pixels)} images that its export would be compared on: give images "
                "of what it was trained for (--images)"
            )
        program = captured(model, torch.zeros(*_EXAMPLE, 3, dtype=torch.uint8), [*_AXES])
        write_onnx(program, folder / chosen.file, input=INPUT, outputs=OUTPUTS, axes=_AXES, operators=onnx_operators)
        write_description(folder, fields_of(resizing), classes)
        found = open_detector(folder, name)
        agreement = compared([found.boxes(each) for each in pixels], expected)
        _refuse(agreement, found.runtime.name, name)
        manifest = described(
            folder,
            network=name,
            format=FORMAT,
            task=DETECTION,
            input={"name": INPUT, "type": "uint8", "shape": [None, None, 3]},
            output=_OUTPUTS,
            command=command,
            verification={
                "images": len(pixels),
                "detections": agreement.detections,
                "equal": agreement.equal,
                "largest_box_difference": agreement.box_difference,
                "largest_score_difference": agreement.score_difference,
                "tolerance": {"box": BOX_TOLERANCE, "score": SCORE_TOLERANCE, "share": SHARE},
                "runtime": found.runtime.name,
            },
        )
    return Exported(output, output / chosen.file, manifest)


_OUTPUTS: list[dict[str, Any]] = [
    {"name": name, "type": kind, "shape": shape}
    for name, kind, shape in zip(OUTPUTS, ("float32", "float32", "int64"), ([None, 4], [None], [None]), strict=True)
]


def compared(found: Sequence[Boxes], expected: Sequence[Boxes]) -> Agreement:
    """How far the detections of images are the expected ones, each taken once."""
    total, boxes, scores = 0, [], []
    for ours, theirs in zip(found, expected, strict=True):
        left = np.ones(len(ours), bool)
        pairs = 0
        for box, score, number in zip(theirs.boxes, theirs.scores, theirs.classes, strict=True):
            box_off, score_off = np.abs(ours.boxes - box).max(axis=1, initial=0), np.abs(ours.scores - score)
            same = left & (ours.classes == number) & (box_off <= BOX_TOLERANCE) & (score_off <= SCORE_TOLERANCE)
            if same.any():
                best = np.where(same, box_off, np.inf).argmin()
                left[best] = False
                boxes.append(float(box_off[best]))
                scores.append(float(score_off[best]))
                pairs += 1
        total += len(ours) + len(theirs) - pairs
    return Agreement(total, len(boxes), max(boxes, default=0.0), max(scores, default=0.0))


def _refuse(agreement: Agreement, runtime: str, name: str) -> None:
    if agreement.equal < SHARE * agreement.detections:
        raise ExportError(
            f"{name}: {runtime} finds something else than the detector: of {agreement.detections} detections "
            f"{agreement.equal} are the same, {SHARE:.0%} would have to be: nothing was exported"
        )
