"""Inference of the smallest detector against torchvision's mobile detector: same image, threads and run.

fbnetv3's side is `faster_rcnn_fbnetv3_a_C4` as tools/detect.py runs it. The peer is torchvision's
`fasterrcnn_mobilenet_v3_large_320_fpn`, with 75 proposals instead of 150, like fbnetv3's detector (Table 5). Each
side has its own process; they take turns. Weights are random; the class weights are scaled so that both detect
objects. Goal: at least 1.3 times as many images per second.

tools/detect.py keeps freed memory (`keep_freed_memory`). To show its effect, both sides are measured with and without.
The CPU time next to the wall time excludes other programs on the machine.
"""

import argparse
import json
import statistics
import time

import torch
from measure import SideProcess, report_comparison, serve_calls, summarize

from fbnetv3.modeling.cpu.malloc import keep_freed_memory

PIXELS = 320
PROPOSALS = 75
MIN_SCORE = 0.05
MAX_DETECTIONS = 100
GOAL = 1.3
LOGIT_DEVIATION = 2.0  # standard deviation of the class logits, so that some scores are high

SIDES = (
    "fbnetv3",
    "fbnetv3, without keeping memory",
    "fbnetv3, not optimized",
    "torchvision",
    "torchvision, keeping memory",
)
KEEPING_MEMORY = ("fbnetv3", "torchvision, keeping memory")
# Name, side of fbnetv3, peer
COMPARISONS = (
    ("tools/detect.py against torchvision's default", "fbnetv3", "torchvision"),
    ("both keeping memory", "fbnetv3", "torchvision, keeping memory"),
    ("neither keeping memory", "fbnetv3, without keeping memory", "torchvision"),
    ("detectron2's default against torchvision's", "fbnetv3, not optimized", "torchvision"),
)
DETAILED_SIDES = ("fbnetv3", "fbnetv3, not optimized", "torchvision")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--side", choices=SIDES, help="serve calls to the comparing process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        serve_calls(timed(*build_detector(args.side)))
        return
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    print(f"one image of {PIXELS} x {PIXELS} pixels, {threads}, torch {torch.__version__}")
    sides = {name: SideProcess("--side", name, "--threads", args.threads) for name in SIDES}
    for side in sides.values():
        side()  # warm up
    rounds = [{name: json.loads(side()) for name, side in sides.items()} for _ in range(args.rounds)]
    for side in sides.values():
        side.close()
    for name, side, peer in COMPARISONS:
        for clock in ("wall time", "CPU time"):
            seconds = {
                "fbnetv3": [measured[side][clock] for measured in rounds],
                "peer": [measured[peer][clock] for measured in rounds],
            }
            goal = GOAL if name == COMPARISONS[0][0] else None
            report_comparison(f"{name}, {clock}", summarize(seconds), goal, "torchvision")
    for side in DETAILED_SIDES:
        print_parts(side, [measured[side] for measured in rounds])


def print_parts(side, measurements):
    """Print the median CPU time of each part of a detector."""
    last = measurements[-1]
    parts = {part: statistics.median(m["parts"][part] for m in measurements) for part in last["parts"]}
    print(
        f"{side}: {last['proposals']} proposals through the box head, {last['detections']} detections; CPU time:"
    )
    print("   ", ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in parts.items()))


def build_detector(side):
    """Return a function that detects objects in an image and counts them, and the methods of its parts, by name."""
    torch.manual_seed(0)
    image = torch.rand(3, PIXELS, PIXELS)
    if side in KEEPING_MEMORY:
        keep_freed_memory()
    is_peer = side.startswith("torchvision")
    if is_peer:
        model, inputs, parts = build_torchvision_detector(image)
    else:
        model, inputs, parts = build_fbnetv3_detector(image, optimized=side != "fbnetv3, not optimized")

    @torch.inference_mode()
    def detect():
        (detections,) = model(inputs)
        return len(detections["boxes"] if is_peer else detections["instances"])

    return detect, parts


def build_fbnetv3_detector(image, optimized):
    from detectron2.modeling import build_model

    from fbnetv3.detection import get_config, optimize_for_inference

    cfg = get_config("faster_rcnn_fbnetv3_a_C4")
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == PROPOSALS
    assert (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (
        MIN_SCORE,
        MAX_DETECTIONS,
    )
    inputs = [{"image": 255 * image, "height": PIXELS, "width": PIXELS}]
    model = build_model(cfg).eval()
    spread_scores(model.roi_heads.box_predictor, lambda: model(inputs))
    if optimized:
        model = optimize_for_inference(model)
    rpn = model.proposal_generator
    roi_heads = model.roi_heads
    parts = {
        "trunk": (model.backbone, "forward"),
        "RPN head": (rpn.rpn_head, "forward"),
        "proposals": (rpn, "predict_proposals"),
        "RoIAlign": (roi_heads.box_pooler, "forward"),
        "box head": (roi_heads.box_head, "forward"),
        "predictor": (roi_heads.box_predictor, "forward"),
        "detections": (roi_heads.box_predictor, "inference"),
    }
    return model, inputs, parts


def build_torchvision_detector(image):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_score_thresh=MIN_SCORE,
        box_detections_per_img=MAX_DETECTIONS,
    ).eval()
    inputs = [image]
    spread_scores(model.roi_heads.box_predictor, lambda: model(inputs))
    roi_heads = model.roi_heads
    parts = {
        "trunk": (model.backbone, "forward"),
        "RPN head": (model.rpn.head, "forward"),
        "proposals": (model.rpn, "filter_proposals"),
        "RoIAlign": (roi_heads.box_roi_pool, "forward"),
        "box head": (roi_heads.box_head, "forward"),
        "predictor": (roi_heads.box_predictor, "forward"),
        "detections": (roi_heads, "postprocess_detections"),
    }
    return model, inputs, parts


@torch.no_grad()
def spread_scores(predictor, run):
    """Scale the class weights of a box predictor so that the logits have the standard deviation LOGIT_DEVIATION."""
    outputs = []
    handle = predictor.cls_score.register_forward_hook(
        lambda module, inputs, logits: outputs.append(logits)
    )
    predictor.cls_score.bias.zero_()
    run()
    handle.remove()
    predictor.cls_score.weight.mul_(LOGIT_DEVIATION / outputs[0].std())


def timed(detect, parts):
    """Return a function that detects objects and returns, as JSON, the times of the call and of its parts."""
    part_seconds = {}
    counts = {}

    def wrap(name, function):
        def wrapper(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            part_seconds[name] = time.process_time() - start
            if name == "box head":
                counts["proposals"] = len(result)
            return result

        return wrapper

    for name, (owner, method) in parts.items():
        object.__setattr__(owner, method, wrap(name, getattr(owner, method)))

    def measure():
        wall_start = time.perf_counter()
        cpu_start = time.process_time()
        counts["detections"] = detect()
        wall_seconds = time.perf_counter() - wall_start
        cpu_seconds = time.process_time() - cpu_start
        measured_parts = {**part_seconds, "rest": cpu_seconds - sum(part_seconds.values())}
        return json.dumps(
            {**counts, "wall time": wall_seconds, "CPU time": cpu_seconds, "parts": measured_parts}
        )

    return measure


if __name__ == "__main__":
    main()
