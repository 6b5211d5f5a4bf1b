"""Check that the files of an exported folder belong together: model, manifest, preprocessing and class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
from fbnetv3.deploy.formats.openvino_format import OpenVinoRuntime
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.detector_predictor import DetectorPredictor
from fbnetv3.errors import ExportError, MissingPackageError
from fbnetv3.utils.text import one_line

Value = Mapping[str, Any]  # "name", "type" and "shape" of an input or output


def check_classifier_files(predictor: ClassifierPredictor, model: Path, input: Value, output: Any) -> None:
    """Compare a classifier with the input and output that its manifest describes.

    Args:
        predictor: the classifier as it was opened.
        model: its model file, for messages.
        input: the manifest's "input".
        output: the manifest's "output".

    Raises:
        ExportError: one of the files belongs to another export; the message names it.
    """
    preprocessing = predictor.preprocessing
    side = preprocessing.resolution
    image_shape = (1, preprocessing.channels, side, side)
    outputs = [output] if isinstance(output, Mapping) else []
    for value, shape, file in (
        (input, image_shape, "preprocessing.json"),
        *((each, (1, len(predictor.classes)), "classes.json") for each in outputs),
    ):
        described = value.get("shape")
        if described is not None and not _fits(described[1:], shape[1:]):
            raise _mixed_folder(model, f"manifest.json has the shape {described}, {file} {list(shape)}")
    runtime = predictor.runtime
    if isinstance(runtime, OnnxRuntime | OpenVinoRuntime):
        _check_values(model, "input", runtime.describe_inputs(), [input])
        _check_values(model, "output", runtime.describe_outputs(), outputs)
        return
    # Other runtimes do not say what they take
    try:
        logits = runtime.run(np.zeros(image_shape, np.float32))
    except (MemoryError, MissingPackageError):
        raise
    except Exception as error:
        problem = f"cannot run an image of shape {list(image_shape)} ({one_line(error, 120)})"
        raise _mixed_folder(model, problem) from None
    if logits.shape != (1, len(predictor.classes)):
        problem = f"returns logits of shape {list(logits.shape)} for {len(predictor.classes)} class names"
        raise _mixed_folder(model, problem)


def check_detector_files(
    predictor: DetectorPredictor, model: Path, input: Value, outputs: Sequence[Value]
) -> None:
    """Compare a detector with the input and outputs that its manifest describes; see `check_classifier_files`."""
    _check_values(model, "input", predictor.runtime.describe_inputs(), [input])
    _check_values(model, "output", predictor.runtime.describe_outputs(), outputs)


def _check_values(model: Path, kind: str, actual: Sequence[Value], described: Sequence[Value]) -> None:
    """Compare the inputs or outputs of a model with those of the manifest, as far as it describes them."""
    described = [value for value in described if value]
    if described and len(actual) != len(described):
        raise _mixed_folder(model, f"has {len(actual)} {kind}s, manifest.json {len(described)}")
    for value, expected in zip(actual, described, strict=False):
        for key in ("name", "type"):
            if value[key] != expected.get(key, value[key]):
                problem = f"its {kind} has the {key} {value[key]}, in manifest.json {expected[key]}"
                raise _mixed_folder(model, problem)
        if not _fits(expected.get("shape", value["shape"]), value["shape"]):
            problem = f"its {kind} {value['name']} has the shape {value['shape']}, in manifest.json {expected['shape']}"
            raise _mixed_folder(model, problem)


def _fits(described: Sequence[int | None], actual: Sequence[int | None]) -> bool:
    """Return whether two shapes agree wherever both have a size."""
    pairs = zip(described, actual, strict=False)
    return len(described) == len(actual) and all(None in pair or pair[0] == pair[1] for pair in pairs)


def _mixed_folder(model: Path, problem: str) -> ExportError:
    return ExportError(
        f"{model}: is not the model that manifest.json describes: {problem}: copy the whole folder again, or export it "
        "again"
    )
