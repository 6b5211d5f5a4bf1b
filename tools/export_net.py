#!/usr/bin/env python3
"""Export a classifier or a detector: `export_net.py --model fbnetv3_b --format onnx --output exported/b`."""

import shlex
import sys
from pathlib import Path

from tabulate import tabulate

from fbnetv3.config import is_detection_config
from fbnetv3.deploy import FORMATS, Int8, classifier_export
from fbnetv3.deploy.formats.int8 import folder_split
from fbnetv3.deploy.input_images import images_below, paths_below
from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo.pretrained import (
    detector_from_name,
    detector_weights,
    from_config,
    from_name,
    read_classes,
)
from fbnetv3.utils.command_line import ArgumentParser, run_tool

CALIBRATED = 256  # images that int8 is calibrated on, at most


def main(argv=None):
    parser = ArgumentParser(description="Export a network, once its answers are found to be the network's own.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="training config")
    source.add_argument(
        "--model", metavar="NAME", help="architecture, or model zoo entry such as digits/fbnetv3_digits"
    )
    parser.add_argument("--weights", metavar="FILE", help="file, URL, 'published' or 'random' (see docs/deploy.md)")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one a line or a JSON list")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write: %(choices)s")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--any-size", action="store_true", help="leave height and width open, not only the batch")
    parser.add_argument("--images", metavar="DIR", help="folder of images to compare on (default: scikit-learn's)")
    add_int8_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_intermixed_args(argv)
    if args.model and args.overrides:
        parser.error("KEY VALUE pairs need --config")
    if (args.calibration or args.reduce_range) and not args.int8:
        parser.error(f"--{'calibration' if args.calibration else 'reduce-range'} needs --int8")
    if args.val_images < 1:
        parser.error(f"--val-images {args.val_images}: at least one is compared")
    command = shlex.join(["export_net.py", *(sys.argv[1:] if argv is None else argv)])
    if args.model.startswith("coco/") if args.model else is_detection_config(args.config):
        export_detector(args, command)
    else:
        export_network(args, command)


def export_network(args, command):
    images = images_below(args.images) if args.images else None
    chosen = {"weights": args.weights} if args.weights else {}
    if args.config:
        net = from_config(args.config, args.overrides, classes=args.classes, **chosen)
    else:
        net = from_name(args.model, classes=args.classes, **chosen)
    done = classifier_export(
        net.model,
        net.preprocessing,
        net.classes,
        args.output,
        format=args.format,
        any_size=args.any_size,
        images=images,
        name=net.name,
        int8=int8_of(net, args) if args.int8 else None,
        command=command,
    )
    check, size = done.manifest.verification, done.manifest.files[done.model.name]["bytes"]
    what = f"{check['runtime']} before int8" if args.int8 else check["runtime"]
    print(
        f"{done.model}: {net.name}, {size / 1e6:.1f} MB; {what} differs from the network by at most "
        f"{check['largest_relative_difference']:.1e} of the largest logit on {check['images']} images"
    )
    if args.int8:
        print(int8_table(check["int8"]))


def export_detector(args, command):
    if args.format != "onnx" or args.int8:
        raise UsageError(f"detectors are exported to onnx, not to {'int8' if args.int8 else args.format}")
    from fbnetv3.detection import detection_config_loading
    from fbnetv3.detection.export.detector_export import export_detector

    config, weights = detector_from_name(args.model, args.weights) if args.model else (args.config, args.weights)
    cfg = detection_config_loading.load_config(config, args.overrides)
    done = export_detector.export_detector(
        cfg,
        weights if args.model else detector_weights(config, cfg.OUTPUT_DIR, weights or cfg.MODEL.WEIGHTS),
        args.output,
        images=paths_below(args.images) if args.images else None,
        classes=read_classes(args.classes) if args.classes else None,
        name=Path(config).stem,
        command=command,
    )
    check, size = done.manifest.verification, done.manifest.files[done.model.name]["bytes"]
    print(
        f"{done.model}: {done.manifest.network}, {size / 1e6:.1f} MB; {check['runtime']} finds {check['equal']} of "
        f"{check['detections']} detections in {check['images']} images as detectron2 does, boxes at most "
        f"{check['largest_box_difference']:.1e} pixels and scores {check['largest_score_difference']:.1e} away"
    )


def add_int8_arguments(parser):
    add = parser.add_argument_group("int8").add_argument
    add("--int8", action="store_true", help="quantise, for onnx and executorch")
    add("--calibration", metavar="DIR", help="images to calibrate on (default: the config's training images)")
    add(
        "--val-images",
        type=int,
        default=1000,
        metavar="N",
        help="compare with float32 on at most so many (default: %(default)s)",
    )
    add("--max-drop", type=float, default=1.0, metavar="POINTS", help="of top-1 (default: %(default)s)")
    add(
        "--min-agreement",
        type=float,
        metavar="PERCENT",
        help="of images for which the answer stays the same (default: 98 without labels, any with them)",
    )
    add("--reduce-range", action="store_true", help="7-bit weights, for x86 without VNNI (onnx)")


def int8_of(net, args):
    """The dataset's validation images to compare on; where it is not there, others of the calibration folder."""
    judged = {"max_drop": args.max_drop, "min_agreement": args.min_agreement, "reduce_range": args.reduce_range}
    try:
        images, targets = net.labelled("val", args.val_images)
    except (DataError, UsageError) as error:
        if not args.calibration:
            raise
        print(f"no labels, so agreement with float32 decides ({error})", file=sys.stderr)
        return Int8(*folder_split(args.calibration, CALIBRATED, args.val_images), **judged)
    own = images_below(args.calibration, CALIBRATED) if args.calibration else net.labelled("train", CALIBRATED)[0]
    return Int8(own, images, targets, **judged)


def int8_table(found):
    """Before and after, in lines; top-1 only where there were labels."""
    before, after = found["bytes_float32"], found["bytes_int8"]
    rows = {"float32": ["", megabytes(before), ""], "int8": [f"{found['agreement']:.2f} %", megabytes(after)]}
    rows["int8"].append(f"{100 * after / before:.1f} %")
    headers = ["agreement", "size", "of float32"]
    if "top1_int8" in found:
        headers.insert(0, "top-1")
        for kind, row in rows.items():
            row.insert(0, f"{found[f'top1_{kind}']:.2f} %")
    lines = [[kind, *row] for kind, row in rows.items()]
    align = ["left", *("right" for _ in headers)]
    return tabulate(
        lines, [f"on {found['images']} images", *headers], tablefmt="plain", colalign=align, disable_numparse=True
    )


def megabytes(count):
    return f"{count / 1e6:.2f} MB"


if __name__ == "__main__":
    run_tool(main, after_interrupt="nothing was exported", sigterm=True)
