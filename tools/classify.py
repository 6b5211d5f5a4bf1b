#!/usr/bin/env python3
"""Classify images: `classify.py MODEL_OR_EXPORT IMAGE ...`."""

from pathlib import Path

from fbnetv3.deploy import Predictor, TorchRuntime, load
from fbnetv3.errors import UsageError
from fbnetv3.model_zoo.pretrained import from_config, from_name
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv=None):
    parser = ArgumentParser(description="Print what a network takes images for, likeliest first.")
    parser.add_argument("model", metavar="MODEL", help="exported folder, model zoo entry, architecture or config file")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--weights", metavar="FILE", help="for what is not exported; default: the zoo's or the run's")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, for what is not exported")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes an image (default: %(default)s)")
    args = parser.parse_args(argv)
    predict = predictor(args)
    width = max(map(len, predict.classes))
    for image in args.images:
        print(image)
        for found in predict(image, top=args.top):
            print(f"  {found.label:{width}} {100 * found.probability:6.2f} %")


def predictor(args):
    if Path(args.model).is_dir():
        if not isinstance(found := load(args.model), Predictor):
            raise UsageError(f"{args.model}: holds a detector: tools/detect.py takes it")
        return found
    chosen = {"classes": args.classes} | ({"weights": args.weights} if args.weights else {})
    find = from_config if Path(args.model).is_file() else from_name
    net = find(args.model, **chosen)
    return Predictor(TorchRuntime(net.model, optimize=True), net.preprocessing, net.classes, net.name)


if __name__ == "__main__":
    run_tool(main)
