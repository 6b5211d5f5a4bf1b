"""Exported networks in every runtime and precision, against timm's networks in torch: CPU time of one thread.

All sides run in one process and take turns, so that background load affects all alike. The weights are random, with
BatchNorm statistics of the images; agreement is the share of images for which a side chooses the class of float32.
--mask runs OpenVINO without the processor's newer instructions. Needs timm, openvino and nncf.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from inference import PIXELS, arch_name
from measure import report_comparison, report_value, summarize
from torch import nn

NETWORKS = ("fbnetv3_b", "fbnetv3_g")
BATCHES = (1, 16)
# Export format, runtime of `load`, and precision
SIDES = {
    "onnxruntime": ("onnx", "onnxruntime", "float32"),
    "openvino": ("openvino", "openvino", "float32"),
    "openvino bfloat16": ("openvino", "openvino", "bfloat16"),
    "onnxruntime int8": ("onnx", "onnxruntime", "int8"),
    "openvino int8": ("openvino", "openvino", "int8"),
}
AUTO = "auto"
GOALS = {"auto": 3.3, "openvino bfloat16": 5.0}  # over timm
GFLOPS_GOALS = {1: 0.65, 16: 0.75}  # share of the peak, by batch size
MAX_CALIBRATION = 32
# Untrained networks with statistics of few photos enlarge rounding errors: differences are printed, not limited
TOLERANCE = float("inf")
# Value of ONEDNN_MAX_CPU_ISA by what it leaves out
MASKS = {"without bfloat16": "AVX512_CORE_VNNI", "without VNNI": "AVX512_CORE", "without AVX-512": "AVX2"}
MASK_VARIABLE = "ONEDNN_MAX_CPU_ISA"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", help="folder of photos (default: scikit-learn's)")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--mask", action="store_true", help="OpenVINO with fewer instructions, too")
    parser.add_argument("--masked", nargs=2, metavar=("NAME", "DIR"), help="run the masked process")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.masked:
        measure_masked(*args.masked, args.batches, args.rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            model = build_calibrated(network, args.images)
            predictors = export_sides(network, model, args.images, Path(folder))
            print_agreement(network, predictors, args.images)
            for batch in args.batches:
                compare_sides(network, model, predictors, batch, args.rounds)
            for name in MASKS if args.mask else ():
                run_masked(name, Path(folder) / network, args.batches, args.rounds)


def sample_images(images):
    from fbnetv3.deploy.input_images import sample_classifier_images, sample_image_files

    return sample_image_files(images, 1000) if images else sample_classifier_images(3)


def preprocessed(images):
    from fbnetv3.data import Preprocessing
    from fbnetv3.deploy import ClassifierPredictor

    predictor = ClassifierPredictor(None, Preprocessing(PIXELS, PIXELS), [])
    return np.concatenate(list(predictor.batches(images, 16)))


def build_calibrated(network, images):
    """Build timm's network with random weights, and BatchNorm statistics of up to 32 images."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(network)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # average over all batches
            module.reset_running_stats()
    batches = torch.from_numpy(preprocessed(sample_images(images)[:MAX_CALIBRATION])).split(16)
    with torch.no_grad():
        for batch in batches:
            model.train()(batch)
    return model.eval()


def export_sides(network, model, images, folder):
    """Export the network for every side whose packages are installed, and return the predictors by name."""
    import fbnetv3
    from fbnetv3.data import Preprocessing
    from fbnetv3.deploy import PrecisionSettings, export_classifier, load
    from fbnetv3.deploy.collection_index import Variant
    from fbnetv3.deploy.exported_folder import INDEX_FILE
    from fbnetv3.errors import MissingPackageError

    ours = fbnetv3.create_model(arch_name(network))
    fbnetv3.load_weights(ours, model.state_dict())
    photos = sample_images(images)
    half = photos[: len(photos) // 2][:MAX_CALIBRATION]
    others = photos[len(photos) // 2 :][:16]
    variants = {
        name: Variant(export_format, precision) for name, (export_format, _, precision) in SIDES.items()
    }
    for name, (export_format, _, precision) in SIDES.items():
        settings = None
        if precision != "float32":
            calibration = half if precision == "int8" else ()
            # Random weights lose any margin: agreement is reported, not required
            settings = PrecisionSettings(precision, others, calibration=calibration, min_agreement=0)
        try:
            export_classifier(
                ours.eval(),
                Preprocessing(PIXELS, PIXELS),
                [str(index) for index in range(1000)],
                folder / network / variants[name].folder,
                format=export_format,
                precision=settings,
                tolerance=TOLERANCE,
            )
        except MissingPackageError as error:
            print(f"{network}, {name}: left out: {error}")
    exported = {name: v for name, v in variants.items() if (folder / network / v.folder).exists()}
    # A collection of what --mask affects
    index = [vars(variant) for variant in exported.values() if variant.format == "openvino"]
    (folder / network / INDEX_FILE).write_text(json.dumps({"device": "", "variants": index}))
    predictors = {
        name: load(folder / network / variant.folder, SIDES[name][1]) for name, variant in exported.items()
    }
    predictors[AUTO] = load(folder / network / "onnx", AUTO)
    return predictors


def print_agreement(network, predictors, images):
    photos = sample_images(images)
    photos = photos[len(photos) // 2 :]
    logits = {name: predictor.logits(photos, 16) for name, predictor in predictors.items()}
    expected = logits["onnxruntime"]
    classes = expected.argmax(1)
    for name, values in logits.items():
        agreement = 100 * np.mean(values.argmax(1) == classes)
        difference = np.abs(values - expected).max() / np.abs(expected).max()
        print(
            f"{network}, {name}: {agreement:.1f}% of {len(photos)} images agree, largest difference {difference:.1e}"
        )


def compare_sides(network, model, predictors, batch, rounds):
    """Compare all sides with timm, and float32 with OpenVINO and with the peak of matrix products."""
    from fbnetv3 import cost

    images = np.random.default_rng(0).standard_normal((batch, 3, PIXELS, PIXELS), np.float32)
    calls = {name: lambda p=predictor: p.runtime.run(images) for name, predictor in predictors.items()}
    tensor = torch.from_numpy(images)
    calls["timm"] = torch.inference_mode()(lambda: model(tensor))
    matrix = torch.randn(1024, 1024)
    calls["matrix"] = lambda: matrix @ matrix
    seconds = take_turns(calls, rounds)
    title = f"{network} at {PIXELS}, batch {batch}, 1 thread"
    for name in predictors:
        report = summarize({"fbnetv3": seconds[name], "peer": seconds["timm"]})
        label = f"{name} ({predictors[AUTO].runtime.name})" if name == AUTO else name
        report_comparison(f"{title}, {label}", report, GOALS.get(name), "timm")
    report = summarize({"fbnetv3": seconds[AUTO], "peer": seconds["openvino"]})
    report_comparison(f"{title}, auto", report, 1.0, "openvino")
    peak = 2 * 1024**3 / min(seconds["matrix"]) / 1e9
    gflops = 2 * batch * cost(arch_name(network), PIXELS).macs_conv / 1e9
    rate = gflops / np.median(seconds[AUTO])
    details = f"{rate:.0f} of {peak:.0f} GFLOP/s"
    report_value(f"{title}, auto: share of the peak", rate / peak, GFLOPS_GOALS.get(batch), details)


def take_turns(calls, rounds):
    """Return the CPU seconds of calls by name; the first turn warms up."""
    seconds = defaultdict(list)
    for turn in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - start)
    return seconds


def run_masked(name, folder, batches, rounds):
    command = [sys.executable, __file__, "--masked", name, str(folder), "--rounds", str(rounds)]
    command += ["--batches", *map(str, batches)]
    subprocess.run(command, check=True, env={**os.environ, MASK_VARIABLE: MASKS[name]})


def measure_masked(name, folder, batches, rounds):
    """Compare every precision with float32, and what `load` chooses among all of them."""
    from fbnetv3.deploy import load
    from fbnetv3.deploy.collection_index import read_index
    from fbnetv3.errors import ExportError

    folder = Path(folder)
    predictors = {variant.precision: load(folder / variant.folder) for variant in read_index(folder)}
    chosen = load(folder).runtime
    for batch in batches:
        images = np.random.default_rng(0).standard_normal((batch, 3, PIXELS, PIXELS), np.float32)
        calls = {}
        for precision, predictor in predictors.items():
            with contextlib.suppress(ExportError):  # the processor cannot compute in bfloat16
                predictor.runtime.run(images)
                calls[precision] = partial(predictor.runtime.run, images)
        calls[AUTO] = partial(chosen.run, images)
        seconds = take_turns(calls, rounds)
        for precision in calls:
            report = summarize({"fbnetv3": seconds[precision], "peer": seconds["float32"]})
            title = f"{folder.name} at {PIXELS}, batch {batch}, OpenVINO {name}, {precision}"
            report_comparison(title, report, 1.0 if precision == AUTO else None, "float32")


if __name__ == "__main__":
    main()
