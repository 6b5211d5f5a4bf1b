"""Export a classifier or a detector: `fbnetv3 export --model fbnetv3_b --format onnx --output exported/b`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from fbnetv3.commands.network_exporters import classifier_exporter, detector_exporter
from fbnetv3.config import is_detection_config
from fbnetv3.deploy import FORMATS, ExportedNetwork, Manifest
from fbnetv3.deploy.detector_graph.detector_onnx import DETECTOR_FORMATS
from fbnetv3.deploy.exported_collection import (
    ExportVariant,
    Variant,
    collection_variants,
    export_collection,
    format_table,
)
from fbnetv3.deploy.formats.export_format import FLOAT32, INT8, PRECISIONS, get_format
from fbnetv3.deploy.formats.quantization import AUTO
from fbnetv3.model_zoo.pretrained import is_checkpoint
from fbnetv3.model_zoo.zoo import is_detector
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.command_line import ArgumentParser, positive_int, program_name
from fbnetv3.utils.files import expand_path

ALL = "all"
# Options of int8, and those of every lower precision
INT8_DEFAULTS = {"calibration": None, "reduce_range": False, "float_layers": AUTO}
PRECISION_DEFAULTS = {"val_images": 1000, "max_drop": 1.0, "min_agreement": None, **INT8_DEFAULTS}


def main(argv: Sequence[str] | None = None) -> None:
    """Export a network."""
    parser = _build_parser()
    args = parser.parse_intermixed_args(argv)
    is_detector_model = bool(args.model) and _is_detector(args.model)
    if args.model and args.overrides and not (is_detector_model and is_checkpoint(args.model)):
        parser.error("KEY VALUE pairs need --config, or a detector's checkpoint as --model")
    if args.weights and is_detector_model and is_checkpoint(args.model):
        parser.error(f"{args.model}: is a checkpoint with weights of its own: omit --weights")
    for option, default in PRECISION_DEFAULTS.items():
        if getattr(args, option) is None:
            setattr(args, option, default)
        elif args.precision == FLOAT32 or (args.precision is None and args.format != ALL):
            needed = "--int8" if option in INT8_DEFAULTS else "--int8 or another --precision"
            parser.error(f"--{option.replace('_', '-')} needs {needed}")
    if args.model and args.format != ALL:
        get_format(args.format)  # fail early; with --config, the config's IMPORTS may register it later
    command = shlex.join([program_name(), *(sys.argv[1:] if argv is None else argv)])
    is_detector_export = is_detector_model or bool(args.config and is_detection_config(args.config))
    if is_detector_export:
        export, describe = detector_exporter(args, command), _describe_detections
    else:
        export, describe = classifier_exporter(args, command), _describe_logits
    if args.format == ALL:
        _export_all(export, DETECTOR_FORMATS if is_detector_export else FORMATS.names(), args)
        return
    precision = args.precision or FLOAT32
    exported = export(args.format, precision, expand_path(args.output))
    print(f"{_describe_export(exported)}; {describe(exported.manifest)}")
    if comparison := exported.manifest.verification.get(precision):
        print(_format_comparison(comparison, precision))


def _export_all(export: ExportVariant, formats: Sequence[str], args: argparse.Namespace) -> None:
    """Export in all of these formats, and print a table."""
    variants = collection_variants(formats, [args.precision] if args.precision else PRECISIONS)

    def report(variant: Variant) -> None:
        outcome = variant.problem or f"{variant.bytes / 1e6:.2f} MB"
        print(f"{variant.folder}: {outcome}", file=sys.stderr, flush=True)

    exported = export_collection(export, variants, expand_path(args.output), report)
    print(format_table(exported))


def _is_detector(model: str) -> bool:
    """Return whether a model is a detector of the zoo, or a detector's checkpoint or the folder of its run."""
    if not is_checkpoint(model):
        return is_detector(model)
    weights = RunFolder(model).trained_weights() if expand_path(model).is_dir() else model
    return weights is not None and read_detector_record(str(weights)) is not None


def _build_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Export a network and verify the export against the original.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="training or detection config")
    source.add_argument(
        "--model",
        metavar="NAME",
        help="architecture, model zoo entry such as digits/fbnetv3_digits, checkpoint or run folder",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="file, URL, 'published' or 'random'; see docs/deploy.md for the defaults",
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="file of class names, one per line or a JSON list"
    )
    formats = ", ".join(FORMATS.names())
    parser.add_argument(
        "--format",
        required=True,
        help=f"{formats}, a format that an imported module registers, or 'all' for a folder of each and a table",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument(
        "--any-size", action="store_true", help="make height and width dynamic, not only the batch"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="folder of images to verify the export on (default: scikit-learn's sample images)",
    )
    _add_precision_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys to change, such as DATA.ROOT datasets/cifar10",
    )
    return parser


def _add_precision_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("precision")
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="reduce the verified export to it, and compare with float32; each format offers some (default: float32; "
        "with --format all every one)",
    )
    group.add_argument(
        "--int8", action="store_const", dest="precision", const=INT8, help="short for --precision int8"
    )
    group.add_argument(
        "--calibration",
        metavar="DIR",
        help="images to calibrate int8 on (default: the config's training images); without labels, also those to "
        "compare on",
    )
    group.add_argument(
        "--val-images",
        type=positive_int,
        metavar="N",
        help="maximum number of images on which to compare with float32 (default: 1000)",
    )
    group.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="maximum drop in top-1, or in a detector's AP, in percentage points (default: 1)",
    )
    group.add_argument(
        "--min-agreement",
        type=float,
        metavar="PERCENT",
        help="minimum percentage of images with an unchanged class, or of a detector's objects that both find "
        "(default: 98 and 90 without labels, no limit with labels)",
    )
    group.add_argument(
        "--reduce-range",
        action="store_true",
        default=None,
        help="7-bit weights, for x86 without VNNI (onnx, openvino)",
    )
    group.add_argument(
        "--float-layers",
        metavar="LAYERS",
        help="layers of a classifier that int8 leaves in float: their number, or names separated by commas (default: "
        "auto, those that do the most harm; onnx, executorch)",
    )


def _describe_logits(manifest: Manifest) -> str:
    check = manifest.verification
    if "not_run" in check:
        return f"not compared with the network: {check['not_run']}"
    runtime = check["runtime"]
    if manifest.precision != FLOAT32:
        runtime += f" before {manifest.precision}"
    return (
        f"logits of {runtime} differ from the network's by at most {check['largest_relative_difference']:.1e} of the "
        f"largest logit on {check['images']} images"
    )


def _describe_detections(manifest: Manifest) -> str:
    check = manifest.verification
    maps = (
        f"; {check[f'equal_{noun}']} of their {check[noun]} {noun} are equal"
        for noun in ("masks", "keypoints")
        if noun in check
    )
    return (
        f"of {check['detections']} detections in {check['images']} images, {check['equal']} of {check['runtime']} "
        f"equal detectron2's; their boxes differ by at most {check['largest_box_difference']:.1e} pixels, scores by "
        f"{check['largest_score_difference']:.1e}{''.join(maps)}"
    )


def _describe_export(exported: ExportedNetwork) -> str:
    size = get_format(exported.manifest.format).model_bytes(exported.model)
    return f"{exported.model}: {exported.manifest.network}, {size / 1e6:.1f} MB"


def _format_comparison(result: dict[str, Any], precision: str) -> str:
    """Format size, agreement and, with labels, top-1 or AP of float32 and of a lower precision.

    In parentheses is the lower end of the agreement's 95% confidence interval.
    """
    float32_bytes = result["bytes_float32"]
    reduced_bytes = result[f"bytes_{precision}"]
    headers = [f"on {result['images']} images", "agreement", "size", "of float32"]
    rows = [
        [FLOAT32, "", f"{float32_bytes / 1e6:.2f} MB", ""],
        [
            precision,
            f"{result['agreement']:.2f}% (≥ {result['agreement_lower_bound']:.2f}%)",
            f"{reduced_bytes / 1e6:.2f} MB",
            f"{100 * reduced_bytes / float32_bytes:.1f}%",
        ],
    ]
    for key, header in {"top1": "top-1", "ap": "AP"}.items():
        if f"{key}_{precision}" in result:
            headers.insert(1, header)
            for row in rows:
                row.insert(1, f"{result[f'{key}_{row[0]}']:.2f}%")
    alignment = ["left", *("right" for _ in headers[1:])]
    return tabulate(rows, headers, tablefmt="plain", colalign=alignment, disable_numparse=True)
