#!/usr/bin/env python3
"""An exported detector beside the one it comes from: `detector_export.py --config FILE --weights FILE --exported DIR
--images DIR`. Prints how many detections are the same, and the time of an image, of both."""

import time

import numpy as np
import torch
from measure import fact

from fbnetv3 import deploy
from fbnetv3.deploy.detector_graph.detector_onnx import compared
from fbnetv3.deploy.input_images import paths_below, upright_pixels
from fbnetv3.detection.detection_config_loading import load_config
from fbnetv3.detection.export.detector_export import found_by
from fbnetv3.detection.inference.image_files import Predictor
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.utils.command_line import ArgumentParser, run_tool


def main(argv=None):
    parser = ArgumentParser(description="Compare an exported detector with the one it comes from.")
    for name in ("config", "weights", "exported", "images"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--most", type=int, default=40, help="images, spread over the folder (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    cfg = load_config(args.config, ["MODEL.DEVICE", "cpu"])
    plain, fast = (Predictor(cfg, args.weights, optimize=optimize) for optimize in (False, True))
    exported = deploy.load(args.exported)
    images = [upright_pixels(path) for path in paths_below(args.images, args.most)]
    runs = {
        "ONNX Runtime": exported.boxes,
        "optimize_for_inference": lambda image: found_by(fast, image),
        "as detectron2 runs it": lambda image: found_by(plain, image),
    }
    same = compared([exported.boxes(i) for i in images], [found_by(plain, i) for i in images])
    fact(
        f"detections that are the same, in {len(images)} images of {len({i.shape for i in images})} sizes",
        same.equal / same.detections,
        1.0,
        f"{same.equal} of {same.detections}, boxes at most {same.box_difference:.1e} pixels and scores "
        f"{same.score_difference:.1e} away",
    )
    times = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            times[name] += [timed(run, image) for image in images]
    for name, measured in times.items():
        clock, processor = np.median(measured, axis=0) * 1e3
        print(f"{name:24} {clock:7.1f} ms on the clock {processor:7.1f} ms on the processor")


def timed(run, image):
    """Seconds on the clock and on the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    run(image)
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    run_tool(main)
