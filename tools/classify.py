#!/usr/bin/env python3
"""Classify images: `classify.py MODEL IMAGE ...`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fbnetv3.deploy import ClassifierPredictor, TorchRuntime, load
from fbnetv3.deploy.exported_folder import is_exported_folder
from fbnetv3.errors import UsageError
from fbnetv3.model_zoo.pretrained import (
    is_checkpoint,
    load_classifier_from_checkpoint,
    load_classifier_from_config,
    load_classifier_from_name,
)
from fbnetv3.utils.command_line import ArgumentParser, positive_int, run_tool


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description="Print the most likely classes of each image.")
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="exported folder, checkpoint, folder of a run, config file, model zoo entry or architecture",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files to classify")
    parser.add_argument(
        "--weights", metavar="FILE", help="weights of a MODEL that is a config file, entry or architecture"
    )
    parser.add_argument(
        "--classes", metavar="FILE", help="class names of a MODEL that is not an exported folder"
    )
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="number of classes to print per image"
    )
    args = parser.parse_args(argv)
    predictor = load_predictor(args)
    width = max(map(len, predictor.classes))
    for image in args.images:
        print(image)
        predictions: Any = predictor(image, top=args.top)
        for prediction in predictions:
            print(f"  {prediction.label:{width}} {100 * prediction.probability:6.2f}%")


def load_predictor(args: argparse.Namespace) -> ClassifierPredictor:
    if is_exported_folder(args.model):
        predictor = load(args.model)
        if not isinstance(predictor, ClassifierPredictor):
            raise UsageError(f"{args.model}: contains a detector; use tools/detect.py")
        if args.weights or args.classes:
            raise UsageError(
                f"{args.model}: already contains its weights and class names: omit --weights and --classes"
            )
        return predictor
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
        TorchRuntime(net.model, optimize=True), net.preprocessing, net.classes, net.name
    )


if __name__ == "__main__":
    run_tool(main)
