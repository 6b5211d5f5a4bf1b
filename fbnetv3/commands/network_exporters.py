"""Load the network that the options of `fbnetv3 export` name, and return a function that exports it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbnetv3.config.loading import RUN_CONFIG
from fbnetv3.data.classes.class_names import read_class_names
from fbnetv3.deploy import ExportedNetwork, PrecisionSettings, export_classifier
from fbnetv3.deploy.detector_graph.detector_onnx import DETECTOR_FORMATS
from fbnetv3.deploy.exported_collection import ExportVariant
from fbnetv3.deploy.formats.export_format import FLOAT32, INT8, get_format
from fbnetv3.deploy.formats.quantization import AUTO, split_image_folder
from fbnetv3.deploy.input_images import ClassifierImage, sample_image_files
from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo.pretrained import (
    PretrainedClassifier,
    find_detector_weights,
    find_zoo_detector,
    is_checkpoint,
    load_classifier_from_config,
    load_classifier_from_name,
)
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.utils.nested_keys import parse_pairs

MAX_CALIBRATION_IMAGES = 256


def classifier_exporter(args: argparse.Namespace, command: str) -> ExportVariant:
    """Load the classifier, and return a function that exports it."""
    images = sample_image_files(args.images) if args.images else None
    if args.config:
        net = load_classifier_from_config(
            args.config, args.overrides, weights=args.weights, classes=args.classes
        )
    else:
        net = load_classifier_from_name(
            args.model, weights=args.weights or "published", classes=args.classes
        )

    def export(format: str, precision: str, output: Path) -> ExportedNetwork:
        return export_classifier(
            net.model,
            net.preprocessing,
            net.classes,
            output,
            format=format,
            any_size=args.any_size,
            images=images,
            name=net.name,
            precision=None if precision == FLOAT32 else _precision_settings(net, format, precision, args),
            command=command,
            multi_label=net.multi_label,
        )

    return export


def detector_exporter(args: argparse.Namespace, command: str) -> ExportVariant:
    """Load the detector's config, and return a function that exports the detector."""
    if args.any_size:
        raise UsageError("detectors take images of any size: omit --any-size")
    if args.float_layers != AUTO:
        raise UsageError("--float-layers: in detectors the first layers stay in float; omit it")
    from fbnetv3.detection.detection_config import load_detection_config
    from fbnetv3.detection.export.detector_export import export_detector
    from fbnetv3.detection.export.int8_images import detector_precision_settings
    from fbnetv3.detection.models.fbnetv3_backbone import arch_name
    from fbnetv3.detection.recorded_detectors import config_from_checkpoint, use_recorded_detector

    pairs = parse_pairs(args.overrides)
    if args.model and is_checkpoint(args.model):
        cfg = config_from_checkpoint(args.model, args.overrides)
        weights, name = cfg.MODEL.WEIGHTS, arch_name(cfg)
    elif args.model:
        config, weights = find_zoo_detector(args.model, args.weights)
        cfg, name = load_detection_config(config), Path(config).stem
    else:
        cfg = load_detection_config(args.config, args.overrides)
        weights = find_detector_weights(args.config, cfg, args.weights, pairs)
        cfg = use_recorded_detector(cfg, read_detector_record(weights), weights, pairs)
        # The config of a run says nothing by its name
        name = arch_name(cfg) if Path(args.config).name == RUN_CONFIG else Path(args.config).stem
    classes = read_class_names(args.classes) if args.classes else None
    images = sample_image_files(args.images) if args.images else None
    limits = {key: getattr(args, key) for key in ("max_drop", "min_agreement", "reduce_range")}

    def export(format: str, precision: str, output: Path) -> ExportedNetwork:
        if format not in DETECTOR_FORMATS:
            raise UsageError(
                f"--format {format} for a detector must be one of {', '.join(DETECTOR_FORMATS)}"
            )
        precisions = get_format(format).precisions
        if precision not in precisions:
            raise UsageError(f"{format} offers {' and '.join(precisions)} for detectors, not {precision}")
        settings = None
        if precision != FLOAT32:
            folder = args.calibration or (args.images if precision != INT8 else None)
            settings = detector_precision_settings(
                cfg,
                weights,
                classes,
                precision=precision,
                calibration=folder,
                max_images=args.val_images,
                **limits,
            )
        return export_detector(
            cfg,
            weights,
            output,
            images=images,
            classes=classes,
            format=format,
            precision=settings,
            name=name,
            command=command,
        )

    return export


def _precision_settings(
    net: PretrainedClassifier, format: str, precision: str, args: argparse.Namespace
) -> PrecisionSettings:
    """Choose calibration and comparison images: the config's dataset, or, if it is missing, a folder of images."""
    limits = {
        "max_drop": args.max_drop,
        "min_agreement": args.min_agreement,
        "reduce_range": args.reduce_range,
    }
    if precision == INT8:
        limits |= _layer_settings(net, format, args)
    folder = args.calibration or (args.images if precision != INT8 else None)
    try:
        images, targets = net.labeled_images("val", args.val_images)
    except (DataError, UsageError) as error:
        if not folder:
            raise
        print(
            f"without labels, {precision} is judged by agreement with float32 ({error})",
            file=sys.stderr,
        )
        if precision != INT8:
            return PrecisionSettings(precision, sample_image_files(folder, args.val_images), **limits)
        parts = split_image_folder(folder, MAX_CALIBRATION_IMAGES, args.val_images)
        return PrecisionSettings(INT8, parts[1], calibration=parts[0], **limits)
    if precision != INT8:
        return PrecisionSettings(precision, images, targets, **limits)
    calibration: Sequence[ClassifierImage]
    if args.calibration:
        calibration = sample_image_files(args.calibration, MAX_CALIBRATION_IMAGES)
    else:
        calibration, _ = net.labeled_images("train", MAX_CALIBRATION_IMAGES)
    return PrecisionSettings(INT8, images, targets, calibration=calibration, **limits)


def _layer_settings(net: PretrainedClassifier, format: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what `PrecisionSettings` take from --float-layers and from quantization-aware training."""
    layers = args.float_layers
    if layers != AUTO:
        layers = int(layers) if layers.isdecimal() else layers.split(",")
    learned = net.learned_int8 if get_format(format).selects_float_layers else None
    if learned and learned.weight_bits == 7 and not args.reduce_range:
        raise UsageError(f"{net.name}: was trained for weights of 7 bits: add --reduce-range")
    return {"float_layers": layers, "learned": learned}
