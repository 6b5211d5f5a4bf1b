"""Choose the runtime of an exported folder: by name, or the fastest on this machine whose outputs are right."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fbnetv3.deploy.detector_graph.detection_agreement import MIN_EQUAL_SHARE, compare_detections
from fbnetv3.deploy.detector_graph.detector_int8 import agreement
from fbnetv3.deploy.formats.export_format import FORMATS, ExportFormat, get_format
from fbnetv3.deploy.input_images import (
    load_rgb_array,
    sample_classifier_images,
    sample_detector_images,
)
from fbnetv3.deploy.predictors.detector_predictor import DetectorPredictor
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.errors import ExportError, MissingPackageError, UsageError, UserError, suggest
from fbnetv3.modeling.torch_device import AUTO_DEVICE, CPU

logger = logging.getLogger(__name__)

T = TypeVar("T")

AUTO = "auto"
"""In place of a runtime's name: the fastest that is installed and gives the right outputs."""
_ROUNDS = 5  # timed calls of each runtime, in turns
_BATCHES = (1, 16)  # runtimes differ in how they use a batch
# Of lower precisions: largest difference of a logit, relative to the image's largest; percentage of objects found again
_MAX_ROUNDING = 0.3
_MIN_SIMILAR_OBJECTS = 80.0


def runtime_openers(
    export_format: ExportFormat, path: Path, precision: str, runtime: str | None, device: str = CPU
) -> dict[str, Callable[[], Any]]:
    """Return functions that open a model file, by name of the runtime: all of the format's for `AUTO`, otherwise one.

    Args:
        export_format: format of the file.
        path: the model file.
        precision: precision of the export.
        runtime: name of the runtime; None is the format's own.
        device: "cpu", or the device to compute on, on which only some runtimes can. With "auto", those use a GPU if
            there is one, and the others the CPU.

    Raises:
        UsageError: the format has no such runtime, or it does not compute on such a device.
    """
    openers = export_format.runtimes(precision)
    if runtime is None:
        runtime = export_format.runtime_package
    if runtime != AUTO and runtime not in openers:
        raise UsageError(
            f"runtime '{runtime}' does not run {path.name}: {suggest(runtime, [*openers, AUTO])}"
        )
    names = list(openers) if runtime == AUTO else [runtime]
    on_cpu: dict[str, Callable[[], Any]] = {name: partial(openers[name], path, precision) for name in names}
    if device == CPU:
        return on_cpu
    device_openers = export_format.device_runtimes()
    on_device: dict[str, Callable[[], Any]] = {
        name: partial(device_openers[name], path, device) for name in names if name in device_openers
    }
    if device == AUTO_DEVICE:
        return {**on_cpu, **on_device}
    if not on_device:
        others = f"runtime {' or '.join(device_openers)}" if device_openers else _formats_for_devices()
        raise UsageError(
            f"device {device!r}: {path.name} runs in {' or '.join(names)} on the CPU only: set it to auto or cpu, or "
            f"use {others}"
        )
    return on_device


def _formats_for_devices() -> str:
    names = [name for name in FORMATS.names() if get_format(name).device_runtimes()]
    return f"an export to one of the formats {', '.join(sorted(names))}"


def choose_fastest(
    openers: Mapping[str, Callable[[], T]],
    agrees: Callable[[T, T], bool],
    runs: Sequence[Callable[[T], object]],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> T:
    """Open all candidates that run on this machine, and return the fastest of those that agree with the first of them.

    Args:
        openers: functions that open the candidates, by name; the first that runs is the reference.
        agrees: whether the outputs of a candidate, the first argument, are those of the reference.
        runs: the calls to time, of which each counts the same: the product of their times decides.
        clock: time in seconds.

    Raises:
        MissingPackageError: no candidate's package is installed.
        ExportError: no candidate runs on this processor.
    """
    candidates = []
    problems: list[UserError] = []
    for name, open_candidate in openers.items():
        try:
            candidate = open_candidate()
            if len(openers) > 1:
                runs[0](candidate)
        except MissingPackageError as error:
            problems.append(error)
        except ExportError as error:
            logger.warning(f"{name} is not used: {error}")
            problems.append(error)
        else:
            candidates.append(candidate)
    if not candidates:
        raise problems[0]
    reference, *others = candidates
    candidates = [reference, *(candidate for candidate in others if agrees(candidate, reference))]
    if len(candidates) == 1:
        return reference
    scores = [1.0 for _ in candidates]
    for run in runs:
        for index, seconds in enumerate(_time_in_turns(candidates, run, clock)):
            scores[index] *= seconds
    return candidates[scores.index(min(scores))]


def _time_in_turns(
    candidates: Sequence[T], run: Callable[[T], object], clock: Callable[[], float]
) -> list[float]:
    """Return the seconds of the fastest call of each candidate; taking turns, background load affects all alike."""
    times: list[list[float]] = [[] for _ in candidates]
    for turn in range(_ROUNDS + 1):
        for candidate, candidate_times in zip(candidates, times, strict=True):
            start = clock()
            run(candidate)
            # The first turn warms up
            if turn:
                candidate_times.append(clock() - start)
    # The shortest, because background load only adds time
    return [min(candidate_times) for candidate_times in times]


def predictors_agree(predictor: Any, reference: Any, tolerance: float | dict[str, float] | None) -> bool:
    """Return whether two predictors of a network, in different runtimes, give the same outputs for sample images.

    Logits may differ by `tolerance`, relative to the image's largest; without one, the classes must be equal. Detectors
    are compared as an export is with the original.
    """
    if isinstance(reference, DetectorPredictor):
        pixels = [load_rgb_array(image) for image in sample_detector_images()]
        detections = [[each.detect(image) for image in pixels] for each in (predictor, reference)]
        comparison = compare_detections(*detections)
        return comparison.equal >= MIN_EQUAL_SHARE * comparison.detections
    images = sample_classifier_images(reference.preprocessing.channels)
    logits, expected = (each.logits(images) for each in (predictor, reference))
    if isinstance(tolerance, float):
        return relative_difference(logits, expected) <= tolerance
    return bool((logits.argmax(1) == expected.argmax(1)).all())


def predictors_are_similar(predictor: Any, reference: Any) -> bool:
    """Return whether two predictors of a network in different precisions agree but for rounding, for sample images.

    Their accuracy was compared when they were exported, on better images; this notices a runtime that computes
    something else on this machine.
    """
    if isinstance(reference, DetectorPredictor):
        pixels = [load_rgb_array(image) for image in sample_detector_images()]
        detections = [[each.detect(image) for image in pixels] for each in (predictor, reference)]
        return agreement(*detections) >= _MIN_SIMILAR_OBJECTS
    images = sample_classifier_images(reference.preprocessing.channels)
    logits, expected = (each.logits(images) for each in (predictor, reference))
    return relative_difference(logits, expected) <= _MAX_ROUNDING


def predictor_runs(any_batch: bool) -> list[Callable[[Any], object]]:
    """Return functions that run a predictor's network on one image, and on a batch if it takes any."""
    return [partial(_run_network, batch=batch) for batch in (_BATCHES if any_batch else _BATCHES[:1])]


def _run_network(predictor: Any, batch: int) -> None:
    if isinstance(predictor, DetectorPredictor):
        predictor.detect(load_rgb_array(sample_detector_images()[0]))
        return
    side = predictor.preprocessing.resolution
    predictor.runtime.run(np.zeros((batch, predictor.preprocessing.channels, side, side), np.float32))
