#!/usr/bin/env python3
"""Export a classifier: `export_net.py --model fbnetv3_b --format onnx --output exported/b`."""

import shlex
import sys

from fbnetv3.cli import ArgumentParser, run_tool
from fbnetv3.deploy import FORMATS, export_classifier
from fbnetv3.deploy.images import images_below
from fbnetv3.trained import from_config, from_name


def main(argv=None):
    parser = ArgumentParser(description="Export a classifier, once its answers are found to be the network's own.")
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
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="config keys to change")
    args = parser.parse_intermixed_args(argv)
    if args.model and args.overrides:
        parser.error("KEY VALUE pairs need --config")
    images = images_below(args.images) if args.images else None
    chosen = {"weights": args.weights} if args.weights else {}
    if args.config:
        net = from_config(args.config, args.overrides, classes=args.classes, **chosen)
    else:
        net = from_name(args.model, classes=args.classes, **chosen)
    done = export_classifier(
        net.model,
        net.preprocessing,
        net.classes,
        args.output,
        format=args.format,
        any_size=args.any_size,
        images=images,
        name=net.name,
        command=shlex.join(["export_net.py", *(sys.argv[1:] if argv is None else argv)]),
    )
    check, size = done.manifest.verification, done.manifest.files[done.model.name]["bytes"]
    print(
        f"{done.model}: {net.name}, {size / 1e6:.1f} MB; {check['runtime']} differs from the network by at most "
        f"{check['largest_relative_difference']:.1e} of the largest logit on {check['images']} images"
    )


if __name__ == "__main__":
    run_tool(main, after_interrupt="nothing was exported", sigterm=True)
