"""Inference of the smallest detector against torchvision's mobile detectors: same image, threads and run.

fbnetv3's side is `faster_rcnn_fbnetv3_a_C4` as `fbnetv3 detect` runs it, and as it is exported to ONNX. The peers are
torchvision's `fasterrcnn_mobilenet_v3_large_320_fpn`, as it comes (150 proposals) and with 75 proposals like ours
(Table 5), and its `ssdlite320_mobilenet_v3_large`. Each side has its own process; they take turns. Weights are
random; the class weights are scaled so that all detect objects.

`fbnetv3 detect` keeps freed memory (`keep_freed_memory`). Compared sides do so both or neither. The CPU time next to
the wall time excludes other programs on the machine.

With `--device cuda` the detectors run on a GPU; there is then no CPU time, and the clock is read once the GPU has
finished its work. Goals are those of a CPU.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from measure import SideProcess, report_comparison, serve_calls, summarize

from fbnetv3.deploy.latency.timing import read_clock
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.modeling.torch_device import find_device

PIXELS = 320
PROPOSALS = 75
PEER_PROPOSALS = 150  # torchvision's default
MIN_SCORE = 0.05
MAX_DETECTIONS = 100
GOAL_EAGER = 1.5
GOAL_EXPORTED = 4.0  # against the peer's eager mode, with equal numbers of proposals
LOGIT_DEVIATION = 2.0  # standard deviation of the class logits, so that some scores are high

KEEPING = ", keeping memory"
OURS, EAGER, EXPORTED = "fbnetv3", "fbnetv3, not optimized", "fbnetv3, exported"
PEER, PEER_75, SSDLITE = "torchvision", "torchvision, 75 proposals", "torchvision, ssdlite"
SIDES = (
    OURS,
    PEER,
    *(f"{side}{KEEPING}" for side in (OURS, EAGER, EXPORTED, PEER, PEER_75, SSDLITE)),
)
# Name, side of fbnetv3, peer, goal
COMPARISONS = (
    ("as they come", OURS, PEER, GOAL_EAGER),
    ("as they come, both keeping memory", OURS + KEEPING, PEER + KEEPING, GOAL_EAGER),
    ("equal proposals, both keeping memory", OURS + KEEPING, PEER_75 + KEEPING, None),
    ("not optimized, equal proposals, both keeping memory", EAGER + KEEPING, PEER_75 + KEEPING, None),
    ("against ssdlite, both keeping memory", OURS + KEEPING, SSDLITE + KEEPING, None),
    ("exported, against eager with equal proposals", EXPORTED + KEEPING, PEER_75 + KEEPING, GOAL_EXPORTED),
    ("exported, against ssdlite", EXPORTED + KEEPING, SSDLITE + KEEPING, None),
    ("exported, against fbnetv3 not optimized", EXPORTED + KEEPING, EAGER + KEEPING, None),
)
CLOCKS = ("wall time", "CPU time")
DETAILED_SIDES = (OURS + KEEPING, EAGER + KEEPING, PEER_75 + KEEPING)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto")
    parser.add_argument("--side", choices=SIDES, help="serve calls to the comparing process")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = find_device(args.device)
    if args.side:
        serve_calls(timed(*build_detector(args.side, device), device))
        return
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    print(f"one image of {PIXELS} x {PIXELS} pixels, {device}, {threads}, torch {torch.__version__}")
    shared = ("--threads", args.threads, "--device", device)
    sides = {name: SideProcess("--side", name, *shared) for name in SIDES}
    for side in sides.values():
        side()  # warm up
    rounds = [{name: json.loads(side()) for name, side in sides.items()} for _ in range(args.rounds)]
    for side in sides.values():
        side.close()
    for name, side, peer, goal in COMPARISONS:
        for clock in CLOCKS if device.type == "cpu" else CLOCKS[:1]:
            seconds = {
                "fbnetv3": [measured[side][clock] for measured in rounds],
                "peer": [measured[peer][clock] for measured in rounds],
            }
            peer_name = "fbnetv3" if peer.startswith(OURS) else "torchvision"
            wanted = goal if clock == "CPU time" else None
            report_comparison(f"{name}, {clock}", summarize(seconds), wanted, peer_name)
    for side in DETAILED_SIDES:
        print_parts(side, [measured[side] for measured in rounds], CLOCKS[device.type == "cpu"])


def print_parts(side, measurements, clock):
    """Print the median time of each part of a detector."""
    last = measurements[-1]
    parts = {part: statistics.median(m["parts"][part] for m in measurements) for part in last["parts"]}
    print(
        f"{side}: {last['proposals']} proposals through the box head, {last['detections']} detections; {clock}:"
    )
    print("   ", ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in parts.items()))


def build_detector(side, device):
    """Return a function that detects objects in an image and counts them, and the methods of its parts, by name."""
    torch.manual_seed(0)
    image = torch.rand(3, PIXELS, PIXELS).to(device)
    name = side.removesuffix(KEEPING)
    if name != side:
        keep_freed_memory()
    if name == EXPORTED:
        return build_exported_detector(image), {}
    if name == SSDLITE:
        model, inputs, parts = build_ssdlite(image)
    elif name in (PEER, PEER_75):
        model, inputs, parts = build_torchvision_detector(
            image, PEER_PROPOSALS if name == PEER else PROPOSALS
        )
    else:
        model, inputs, parts = build_fbnetv3_detector(image, optimized=name != EAGER)

    @torch.inference_mode()
    def detect():
        (detections,) = model(inputs)
        return len(detections["boxes"] if name.startswith(PEER) else detections["instances"])

    return detect, parts


def build_exported_detector(image):
    from fbnetv3 import deploy
    from fbnetv3.detection.export.detector_export import export_detector

    device = image.device
    image = image.cpu()
    model, _, _ = build_fbnetv3_detector(image, optimized=False)
    pixels = (255 * image).permute(1, 2, 0).to(torch.uint8).contiguous().numpy()
    cfg = detector_config("cpu")
    cfg.INPUT.MIN_SIZE_TEST = cfg.INPUT.MAX_SIZE_TEST = PIXELS
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "model.pth"
        torch.save({"model": model.state_dict()}, weights)
        done = export_detector(cfg, weights, Path(folder) / "exported", images=[pixels])
        predictor = deploy.load(done.folder, device=str(device))
    return lambda: len(predictor.detect(pixels))


def build_ssdlite(image):
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, score_thresh=MIN_SCORE
    ).eval()
    model.to(image.device)
    return model, [image], {"trunk": (model.backbone, "forward"), "head": (model.head, "forward")}


def detector_config(device):
    from fbnetv3.detection import get_config

    cfg = get_config("faster_rcnn_fbnetv3_a_C4")
    cfg.MODEL.DEVICE = str(device)
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == PROPOSALS
    assert (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (
        MIN_SCORE,
        MAX_DETECTIONS,
    )
    return cfg


def build_fbnetv3_detector(image, optimized):
    from detectron2.modeling import build_model

    from fbnetv3.detection import optimize_for_inference

    cfg = detector_config(image.device)
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


def build_torchvision_detector(image, proposals):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        rpn_post_nms_top_n_test=proposals,
        box_score_thresh=MIN_SCORE,
        box_detections_per_img=MAX_DETECTIONS,
    ).eval()
    model.to(image.device)
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


def timed(detect, parts, device):
    """Return a function that detects objects and returns, as JSON, the times of the call and of its parts."""
    read_part_clock = time.process_time
    part_seconds = {}
    counts = {}

    def wrap(name, function):
        def wrapper(*args, **kwargs):
            start = read_part_clock()
            result = function(*args, **kwargs)
            part_seconds[name] = read_part_clock() - start
            if name == "box head":
                counts["proposals"] = len(result)
            return result

        return wrapper

    for name, (owner, method) in parts.items():
        object.__setattr__(owner, method, wrap(name, getattr(owner, method)))

    def run(part_clock):
        nonlocal read_part_clock
        read_part_clock = part_clock
        wall_start = read_clock(device)
        cpu_start = time.process_time()
        counts["detections"] = detect()
        return read_clock(device) - wall_start, time.process_time() - cpu_start

    def measure():
        wall_seconds, cpu_seconds = run(time.process_time)
        total = cpu_seconds
        if device.type != "cpu":  # the parts in a call of their own, which waiting for each slows down
            total, _ = run(partial(read_clock, device))
        measured_parts = {**part_seconds, "rest": total - sum(part_seconds.values())}
        return json.dumps(
            {**counts, "wall time": wall_seconds, "CPU time": cpu_seconds, "parts": measured_parts}
        )

    return measure


if __name__ == "__main__":
    main()
