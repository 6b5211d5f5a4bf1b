"""Inference of our smallest detector against torchvision's for phones: the same image, threads and run.

Ours is `faster_rcnn_fbnetv3_a_C4` as tools/detect.py runs it, theirs `fasterrcnn_mobilenet_v3_large_320_fpn` as it
comes, but for its 150 proposals, which are our 75 (Table 5). Each side has a process of its own; they take turns.
Weights are random, the predictors' scaled so that both find objects. Goal: at least 1.3 times as many images a second.
tools/detect.py keeps freed memory (`keep_freed_memory`); so that its part can be seen, both sides are measured with and
without.
Beside the time on the clock stands that on the processor, in which other programs on the machine do not count.
"""

import argparse
import json
import statistics
import time

import torch
from measure import Side, report, serve, summary

from fbnetv3.modeling.cpu.malloc import keep_freed_memory

PIXELS, PROPOSALS, SCORE, DETECTIONS = 320, 75, 0.05, 100
GOAL = 1.3
SPREAD = 2.0  # standard deviation of the classes' logits, so that some scores are high
KEEPING = ("ours", "theirs, keeping memory")
SIDES = (*KEEPING, "ours, not keeping memory", "plain", "theirs")
COMPARED = (
    ("ours as tools/detect.py runs it, theirs as it comes", "ours", "theirs"),
    ("both keeping memory", *KEEPING),
    ("neither keeping memory", "ours, not keeping memory", "theirs"),
    ("ours as detectron2 runs it, theirs as it comes", "plain", "theirs"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--side", choices=SIDES, help="serve to the process that compares")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        serve(timed(*detector_of(args.side)))
        return
    print(f"one image of {PIXELS} x {PIXELS} pixels, {args.threads} threads, torch {torch.__version__}")
    sides = {name: Side("--side", name, "--threads", args.threads) for name in SIDES}
    for side in sides.values():
        side()
    answers = [{name: json.loads(side()) for name, side in sides.items()} for _ in range(args.rounds)]
    for side in sides.values():
        side.close()
    for what, ours, theirs in COMPARED:
        for kind in ("clock", "processor"):
            seconds = {"ours": [a[ours][kind] for a in answers], "theirs": [a[theirs][kind] for a in answers]}
            goal = GOAL if (ours, theirs) == ("ours", "theirs") else None
            report(f"{what}, {kind}", summary(seconds), goal, peer="torchvision")
    for name in ("ours", "plain", "theirs"):
        last = answers[-1][name]
        parts = {part: statistics.median(a[name]["parts"][part] for a in answers) for part in last["parts"]}
        print(
            f"{name}: {last['proposals']} proposals through the box head, {last['detections']} detections; processor:"
        )
        print("   ", ", ".join(f"{part} {1e3 * seconds:.1f} ms" for part, seconds in parts.items()))


def detector_of(side):
    """What detects objects in an image, and the parts of it that are timed."""
    torch.manual_seed(0)
    image = torch.rand(3, PIXELS, PIXELS)
    if side in KEEPING:
        keep_freed_memory()
    is_theirs = side.startswith("theirs")
    model, inputs, parts = theirs(image) if is_theirs else ours(image, optimized=side != "plain")

    @torch.inference_mode()
    def call():
        (found,) = model(inputs)
        return len(found["boxes"] if is_theirs else found["instances"])

    return call, parts


def ours(image, optimized):
    from detectron2.modeling import build_model

    from fbnetv3.detection import get_config, optimize_for_inference

    cfg = get_config("faster_rcnn_fbnetv3_a_C4")
    cfg.MODEL.DEVICE = "cpu"
    assert cfg.MODEL.RPN.POST_NMS_TOPK_TEST == PROPOSALS
    assert (cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE) == (SCORE, DETECTIONS)
    inputs = [{"image": 255 * image, "height": PIXELS, "width": PIXELS}]
    model = build_model(cfg).eval()
    spread_scores(model.roi_heads.box_predictor, lambda: model(inputs))
    if optimized:
        model = optimize_for_inference(model)
    rpn, roi = model.proposal_generator, model.roi_heads
    parts = {
        "trunk": (model.backbone, "forward"),
        "RPN head": (rpn.rpn_head, "forward"),
        "proposals": (rpn, "predict_proposals"),
        "ROI align": (roi.box_pooler, "forward"),
        "box head": (roi.box_head, "forward"),
        "predictor": (roi.box_predictor, "forward"),
        "detections": (roi.box_predictor, "inference"),
    }
    return model, inputs, parts


def theirs(image):
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_score_thresh=SCORE,
        box_detections_per_img=DETECTIONS,
    ).eval()
    inputs = [image]
    spread_scores(model.roi_heads.box_predictor, lambda: model(inputs))
    roi = model.roi_heads
    parts = {
        "trunk": (model.backbone, "forward"),
        "RPN head": (model.rpn.head, "forward"),
        "proposals": (model.rpn, "filter_proposals"),
        "ROI align": (roi.box_roi_pool, "forward"),
        "box head": (roi.box_head, "forward"),
        "predictor": (roi.box_predictor, "forward"),
        "detections": (roi, "postprocess_detections"),
    }
    return model, inputs, parts


@torch.no_grad()
def spread_scores(predictor, run):
    """Scale the weights of a predictor's classes so that their logits differ by `SPREAD`."""
    found = []
    handle = predictor.cls_score.register_forward_hook(lambda module, inputs, logits: found.append(logits))
    predictor.cls_score.bias.zero_()
    run()
    handle.remove()
    predictor.cls_score.weight.mul_(SPREAD / found[0].std())


def timed(call, parts):
    """A call whose answer is what it took, and each part of it, and how many boxes there were."""
    times, seen = {}, {}

    def watched(name, function):
        def wrapped(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            times[name] = time.process_time() - start
            if name == "box head":
                seen["proposals"] = len(result)
            return result

        return wrapped

    for name, (owner, method) in parts.items():
        object.__setattr__(owner, method, watched(name, getattr(owner, method)))

    def answer():
        clock, processor = time.perf_counter(), time.process_time()
        detections = call()
        clock, processor = time.perf_counter() - clock, time.process_time() - processor
        rest = processor - sum(times.values())
        parts = {**times, "the rest": rest}
        return json.dumps({**seen, "detections": detections, "clock": clock, "processor": processor, "parts": parts})

    return answer


if __name__ == "__main__":
    main()
