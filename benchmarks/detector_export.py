#!/usr/bin/env python3
"""Compare an exported detector with its original: how many detections agree, and the time per image of each.

benchmarks/detector_export.py --config FILE --weights FILE --exported FOLDER --images FOLDER
"""

import time

import numpy as np
import torch
from measure import report_value

from fbnetv3 import deploy
from fbnetv3.deploy.detector_graph.detection_agreement import compare_detections
from fbnetv3.deploy.input_images import load_rgb_array, sample_image_files
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.export.detector_export import detect_boxes
from fbnetv3.detection.inference.array_predictors import ConfigPredictor
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv=None):
    parser = ArgumentParser(description="Compare an exported detector with its original.")
    for name in ("config", "weights", "exported", "images"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--max-images", type=int, default=40, help="evenly spaced (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()

    cfg = load_detection_config(args.config, ["MODEL.DEVICE", "cpu"])
    original = ConfigPredictor(cfg, args.weights, optimize=False)
    optimized = ConfigPredictor(cfg, args.weights, optimize=True)
    exported = deploy.load(args.exported)
    images = [load_rgb_array(path) for path in sample_image_files(args.images, args.max_images)]
    report_agreement(exported, original, images)
    detectors = {
        "ONNX Runtime": exported.detect,
        "optimize_for_inference": lambda image: detect_boxes(optimized, image),
        "detectron2's default": lambda image: detect_boxes(original, image),
    }
    times = {name: [] for name in detectors}
    for _ in range(args.rounds):
        for name, detect in detectors.items():
            times[name] += [measure(detect, image) for image in images]
    medians = {name: 1e3 * np.median(measured, axis=0) for name, measured in times.items()}
    for name, (wall_time, cpu_time) in medians.items():
        ratio = cpu_time / medians["ONNX Runtime"][1]
        print(
            f"{name:24} {wall_time:7.1f} ms wall time {cpu_time:7.1f} ms CPU time {ratio:6.2f} x ONNX Runtime's"
        )


def report_agreement(exported, original, images):
    """Report the share of the original's detections that the exported detector reproduces."""
    agreement = compare_detections(
        [exported.detect(image) for image in images], [detect_boxes(original, image) for image in images]
    )
    num_sizes = len({image.shape for image in images})
    report_value(
        f"detections that agree, in {len(images)} images of {num_sizes} sizes",
        agreement.equal / agreement.detections,
        1.0,
        f"{agreement.equal} of {agreement.detections}; boxes differ by at most "
        f"{agreement.largest_box_difference:.1e} pixels and scores by {agreement.largest_score_difference:.1e}",
    )


def measure(detect, image):
    """Return seconds of wall time and of CPU time."""
    wall_start = time.perf_counter()
    cpu_start = time.process_time()
    detect(image)
    return time.perf_counter() - wall_start, time.process_time() - cpu_start


if __name__ == "__main__":
    run_tool(main)
