"""A folder with exports of one network in several formats and precisions: which exist, how they compare, the fastest.

Each export is a folder of its own, such as `onnx` or `onnx_int8`; an index beside them lists all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tabulate import tabulate

from fbnetv3.deploy.collection_index import Variant
from fbnetv3.deploy.exported_folder import INDEX_FILE, ExportedNetwork, Manifest, atomic_folder
from fbnetv3.deploy.formats.export_format import FLOAT32, get_format
from fbnetv3.deploy.input_images import load_rgb_array, sample_classifier_images, sample_detector_images
from fbnetv3.deploy.latency.timing import device_name, time_calls
from fbnetv3.deploy.predictor_loading import load
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.deploy.predictors.detector_predictor import DetectorPredictor
from fbnetv3.errors import ExportError, UserError
from fbnetv3.utils.files import atomic_write, write_json

TABLE_FILE = "formats.md"
_SECONDS = 1.0  # of timing for the table

Predictor = ClassifierPredictor | DetectorPredictor
ExportVariant = Callable[[str, str, Path], ExportedNetwork]
"""Exports the network in a format and a precision into a folder."""


def collection_variants(formats: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Return every format with every precision that it offers, among `precisions`."""
    return [
        (name, precision)
        for name in formats
        for precision in get_format(name).precisions
        if precision in precisions
    ]


def export_collection(
    export: ExportVariant,
    variants: Sequence[tuple[str, str]],
    output: Path,
    report: Callable[[Variant], None] = lambda variant: None,
) -> list[Variant]:
    """Export a network in many formats and precisions into one folder, and write the index and a table.

    A format that is not installed, that does not support the network or that loses too much accuracy is left out; the
    table says why. `report` is called after each.

    Raises:
        UsageError: the output folder is not empty.
        ExportError: nothing could be exported.
    """
    exported = []
    with atomic_folder(output) as folder:
        for format, precision in variants:
            variant = Variant(format, precision)
            try:
                variant = _describe(export(format, precision, folder / variant.folder))
            except UserError as error:
                variant = Variant(format, precision, problem=str(error))
            exported.append(variant)
            report(variant)
        if all(variant.problem for variant in exported):
            problems = "; ".join(f"{variant.folder}: {variant.problem}" for variant in exported)
            raise ExportError(f"{output}: nothing was exported: {problems}")
        index = {"device": device_name(), "variants": [asdict(variant) for variant in exported]}
        write_json(folder / INDEX_FILE, index)
        with atomic_write(folder / TABLE_FILE) as f:
            f.write(format_table(exported, "github").encode() + b"\n")
    return exported


def _describe(network: ExportedNetwork) -> Variant:
    manifest = network.manifest
    check = manifest.verification
    comparison = check.get(manifest.precision, {})
    scores = [
        next((comparison[key] for key in (f"top1_{name}", f"ap_{name}") if key in comparison), None)
        for name in (FLOAT32, manifest.precision)
    ]
    milliseconds = None if "not_run" in check else measure_predictor(load(network.folder), _SECONDS)
    return Variant(
        manifest.format,
        manifest.precision,
        bytes=get_format(manifest.format).model_bytes(network.model),
        difference=largest_difference(manifest),
        before=scores[0],
        after=scores[1],
        agreement=comparison.get("agreement"),
        milliseconds=milliseconds,
    )


def largest_difference(manifest: Manifest) -> float | None:
    """Return by how much a float32 export differs from the network, and one of lower precision from float32.

    For classifiers, it is the largest difference of a logit relative to the image's largest logit, for detectors in
    float32 that of a box, in pixels. It is None if it was not measured.
    """
    check = manifest.verification
    if manifest.precision != FLOAT32:
        return check.get(manifest.precision, {}).get("largest_relative_difference")
    return check.get("largest_relative_difference", check.get("largest_box_difference"))


def measure_predictor(predictor: Predictor, seconds: float) -> float:
    """Return the median time in ms for one image: a sample, preprocessed, or for detectors a photo of 640 x 427."""
    if isinstance(predictor, ClassifierPredictor):
        batch = predictor.preprocess(sample_classifier_images(predictor.preprocessing.channels)[0])
        return time_calls(lambda: predictor.runtime.run(batch), seconds=seconds).median
    photo = load_rgb_array(sample_detector_images()[0], "the sample photo")
    return time_calls(lambda: predictor.detect(photo), seconds=seconds).median


def format_table(variants: Sequence[Variant], style: str = "plain") -> str:
    """Format a row for each variant: size, accuracy and speed, or why it was not exported."""
    headers = [
        "format",
        "precision",
        "size",
        "difference",
        "float32 accuracy",
        "accuracy",
        "agreement",
        "ms",
    ]
    rows = [
        [
            variant.format,
            variant.precision,
            *(
                [variant.problem]
                if variant.problem
                else [
                    f"{variant.bytes / 1e6:.2f} MB",
                    _format_value(variant.difference, ".1e"),
                    _format_value(variant.before, ".2f", "%"),
                    _format_value(variant.after, ".2f", "%"),
                    _format_value(variant.agreement, ".2f", "%"),
                    _format_value(variant.milliseconds, ".2f"),
                ]
            ),
        ]
        for variant in variants
    ]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True)


def _format_value(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"
