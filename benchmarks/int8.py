"""An exported network in int8 against float32, in ONNX Runtime and ExecuTorch: same weights, input and threads.

Weights are random, which does not affect the time.
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import compare, report_comparison, report_value

from fbnetv3.deploy import PrecisionSettings, export_classifier, load
from fbnetv3.deploy.formats.export_format import formats_supporting
from fbnetv3.deploy.input_images import sample_classifier_images
from fbnetv3.model_zoo.pretrained import load_classifier_from_name


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fbnetv3_b", help="architecture (default: %(default)s)")
    parser.add_argument(
        "--resolution", type=int, default=224, help="side of the input (default: %(default)s)"
    )
    formats = [name for name in formats_supporting("int8") if name != "web"]  # which has the file of onnx
    parser.add_argument("--formats", nargs="+", default=formats, choices=formats)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--folder", help="folder that keeps the exports for later runs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    print(f"{args.model} at {args.resolution} pixels, one image, {threads}; CPU {vnni()} VNNI", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for export_format in args.formats:
            compare_format(export_format, args, Path(args.folder or temporary))


def compare_format(export_format, args, folder):
    """Export a network in int8 and float32 unless the exports exist, and compare their time and size."""
    folders = [
        folder / f"{args.model}_{args.resolution}_{export_format}_{kind}" for kind in ("int8", "float32")
    ]
    for exported, quantize in zip(folders, (True, False), strict=True):
        if not exported.exists():
            export(export_format, args, exported, quantize)
    predictors = [load(exported) for exported in folders]
    image = np.random.default_rng(0).standard_normal((1, 3, args.resolution, args.resolution), np.float32)
    result = compare(
        *(partial(predictor.runtime.run, image) for predictor in predictors), rounds=args.rounds
    )
    int8_bytes, float_bytes = (next(exported.glob("model.*")).stat().st_size for exported in folders)
    name = f"{args.model} at {args.resolution}, one image, {predictors[0].runtime.name}, int8"
    report_comparison(name, result, peer_name="float32")
    report_value(
        f"{name}: size over that of float32", int8_bytes / float_bytes, details=f"{int8_bytes / 1e6:.1f} MB"
    )


def export(export_format, args, folder, quantize):
    torch.manual_seed(0)
    network = load_classifier_from_name(args.model, weights="random")
    preprocessing = replace(network.preprocessing, resolution=args.resolution, resize=args.resolution)
    images = sample_classifier_images(3)  # in color
    precision = None
    if quantize:
        precision = PrecisionSettings("int8", images[4:], calibration=images[:4], min_agreement=0)
    export_classifier(
        network.model,
        preprocessing,
        network.classes,
        folder,
        format=export_format,
        name=network.name,
        precision=precision,
    )


def vnni():
    """Return "with" or "without": whether the CPU has instructions for int8 dot products."""
    try:
        return "with" if "vnni" in Path("/proc/cpuinfo").read_text() else "without"
    except OSError:
        return "with or without"


if __name__ == "__main__":
    main()
