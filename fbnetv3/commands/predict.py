"""Classify images: `fbnetv3 predict MODEL IMAGE ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.deploy import ClassifierPredictor, TorchRuntime, load
from fbnetv3.deploy.exported_folder import is_exported_folder
from fbnetv3.deploy.input_sources import find_images
from fbnetv3.deploy.predictors.augmented_predictor import augment_predictor
from fbnetv3.deploy.predictors.file_predictions import (
    NO_LABEL,
    ImagePredictions,
    PictureWriter,
    classify_images,
    write_predictions_csv,
    write_predictions_json,
)
from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo.pretrained import (
    is_checkpoint,
    load_classifier_from_checkpoint,
    load_classifier_from_config,
    load_classifier_from_name,
)
from fbnetv3.modeling.torch_device import AUTO_DEVICE
from fbnetv3.modeling.tta import TTA_VIEWS
from fbnetv3.utils.command_line import ArgumentParser, positive_int
from fbnetv3.utils.files import expand_path, make_folder


def main(argv: Sequence[str] | None = None) -> None:
    """Classify images, past those that cannot be read."""
    args = _parse_args(argv)
    images = find_images(args.images)
    predictor = augment_predictor(_load_predictor(args), args.tta)
    predictor.check_limits(args.top, args.threshold)
    for file in filter(None, (args.csv, args.json)):
        make_folder(expand_path(file).parent)  # before the work
    pictures = PictureWriter(expand_path(args.pictures)) if args.pictures else None
    width = max(map(len, predictor.classes))
    results = []
    for result in classify_images(predictor, images, args.top, args.batch_size, args.threshold):
        results.append(result)
        if result.error and len(images) == 1:
            raise DataError(result.error)
        _print_result(result, width)
        if pictures and not result.error:
            pictures.write(result)
    if args.csv:
        write_predictions_csv(results, expand_path(args.csv))
    if args.json:
        write_predictions_json(results, expand_path(args.json))
    num_errors = sum(bool(result.error) for result in results)
    if num_errors:
        raise DataError(f"{num_errors} of {len(results)} images could not be read; they are named above")


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description="Print the most likely classes, or the labels, of each image.")
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="exported folder, checkpoint, folder of a run, config file, model zoo entry or architecture",
    )
    add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders, patterns, URLs, or - for an image or names of files on standard input",
    )
    add(
        "--weights",
        metavar="FILE",
        help="weights of a MODEL that is a config file, entry or architecture",
    )
    add("--classes", metavar="FILE", help="class names of a MODEL that is not an exported folder")
    add(
        "--runtime",
        metavar="NAME",
        help="runtime of an exported folder, such as openvino for ONNX files, or auto: the fastest on this machine "
        "(default: that of its format)",
    )
    add(
        "--device",
        default=AUTO_DEVICE,
        metavar="NAME",
        help="cpu, cuda or cuda:1; auto: a GPU if there is one that the network's runtime can use",
    )
    add(
        "--top",
        type=positive_int,
        metavar="N",
        help="number of classes to print per image (default: 5; all above the threshold for several labels per image)",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="with several labels per image, probability from which a label is printed (default: 0.5)",
    )
    add(
        "--tta",
        choices=TTA_VIEWS,
        default="none",
        help="test-time augmentation: average over views of each image, as EVAL.TTA does (default: none)",
    )
    add("--csv", metavar="FILE", help="table of the predictions to write")
    add("--json", metavar="FILE", help="JSON file of the predictions to write")
    add("--pictures", metavar="DIR", help="folder for pictures of the images with their classes")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="images per call of the network")
    return parser.parse_args(argv)


def _load_predictor(args: argparse.Namespace) -> ClassifierPredictor:
    if is_exported_folder(args.model):
        predictor = load(args.model, args.runtime, args.device)
        if not isinstance(predictor, ClassifierPredictor):
            raise UsageError(f"{args.model}: contains a detector; use tools/detect.py")
        if args.weights or args.classes:
            raise UsageError(
                f"{args.model}: already contains its weights and class names: omit --weights and --classes"
            )
        return predictor
    if args.runtime:
        raise UsageError(f"{args.model}: is not an exported folder, which --runtime is for")
    if is_checkpoint(args.model):
        if args.weights:
            raise UsageError(f"{args.model}: already contains its weights: omit --weights")
        net = load_classifier_from_checkpoint(args.model, classes=args.classes)
    elif Path(args.model).is_file():
        net = load_classifier_from_config(args.model, weights=args.weights, classes=args.classes)
    else:
        net = load_classifier_from_name(
            args.model, weights=args.weights or "published", classes=args.classes
        )
    return ClassifierPredictor(
        TorchRuntime(net.model, optimize=True, device=args.device),
        net.preprocessing,
        net.classes,
        net.name,
        net.multi_label,
    )


def _print_result(result: ImagePredictions, width: int) -> None:
    if result.error:
        print(result.error, file=sys.stderr)
        return
    print(result.image.name)
    for prediction in result.predictions:
        print(f"  {prediction.label:{width}} {100 * prediction.probability:6.2f}%")
    if not result.predictions:
        print(f"  {NO_LABEL}")
