"""int8 against float32 of an exported network, in ONNX Runtime and ExecuTorch: same weights, input, threads and run.

Weights are random: they make no difference to how long a network takes.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import compare, fact, report

from fbnetv3.deploy import Int8, export_classifier, load
from fbnetv3.deploy.formats.int8 import QUANTIZED
from fbnetv3.deploy.input_images import sample_images
from fbnetv3.model_zoo.pretrained import load_classifier_from_name


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fbnetv3_b", help="architecture (default: %(default)s)")
    parser.add_argument("--resolution", type=int, default=224, help="side of the input (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", default=QUANTIZED, choices=QUANTIZED)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--folder", help="where to leave the exports, and to find those of the last time")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.model} at {args.resolution} pixels, one image, {args.threads} threads; CPU {vnni()} VNNI", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for format in args.formats:
            measure(format, args, Path(args.folder or temporary))


def measure(format, args, folder):
    """Export both forms, unless they are there; print how long each takes, by turns, and the size of each."""
    folders = [folder / f"{args.model}_{args.resolution}_{format}_{kind}" for kind in ("int8", "float32")]
    for place in folders:
        if not place.exists():
            export(format, args, place)
    predictors = [load(place) for place in folders]
    image = np.random.default_rng(0).standard_normal((1, 3, args.resolution, args.resolution), np.float32)
    found = compare(*(partial(predictor.runtime.run, image) for predictor in predictors), rounds=args.rounds)
    sizes = [next(place.glob("model.*")).stat().st_size for place in folders]
    name = f"{args.model} at {args.resolution}, one image, {predictors[0].runtime.name}, int8"
    report(name, found, peer="float32")
    fact(f"{name}: share of float32's size", sizes[0] / sizes[1], about=f"{sizes[0] / 1e6:.1f} MB")


def export(format, args, folder):
    torch.manual_seed(0)
    net = load_classifier_from_name(args.model, weights="random")
    preprocessing = replace(net.preprocessing, resolution=args.resolution, resize=args.resolution)
    photos = sample_images(3)
    int8 = Int8(photos[:4], photos[4:], min_agreement=0) if folder.name.endswith("int8") else None
    export_classifier(net.model, preprocessing, net.classes, folder, format=format, name=net.name, int8=int8)


def vnni():
    """Whether the CPU multiplies bytes in one instruction, without saturation."""
    try:
        return "with" if "vnni" in Path("/proc/cpuinfo").read_text() else "without"
    except OSError:
        return "perhaps with"


if __name__ == "__main__":
    main()
