#!/usr/bin/env python3
"""Train or evaluate a network: `train_net.py --config FILE [--eval-only] [--resume] [KEY VALUE ...]`.

A classifier or a detector, as the config says; a detector's is one of detectron2's kind.
"""

from functools import partial

from fbnetv3.config import is_detection_config, load_config
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.training import run_evaluation, run_training
from fbnetv3.training.processes.launch import launch
from fbnetv3.utils.command_line import ArgumentParser, run_tool

AFTER_INTERRUPT = "add --resume to go on from the last checkpoint"


def main(argv=None):
    parser = ArgumentParser(description="Train a classifier or a detector, or evaluate one.")
    parser.add_argument("--config", "--config-file", required=True, metavar="FILE", help="YAML file, see configs/")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or the run in OUTPUT_DIR")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in OUTPUT_DIR")
    parser.add_argument(
        "--num-gpus", type=int, default=1, metavar="N", help="processes on this machine, one for each GPU"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config keys to change, such as SOLVER.LR 0.1"
    )
    args = parser.parse_intermixed_args(argv)
    run = partial(run_detector if is_detection_config(args.config) else run_classifier, args)
    launch(run, args.num_gpus, after_interrupt=AFTER_INTERRUPT)


def run_classifier(args):
    cfg = load_config(args.config, args.overrides)
    if args.eval_only:
        print_metrics(run_evaluation(cfg))
        return
    keep_freed_memory()
    result = run_training(cfg, resume=args.resume)
    print_metrics(result.metrics)
    print_files(result.files, "weights", "best", "checkpoints", "metrics", "curve", "log", "tensorboard")


def run_detector(args):
    from fbnetv3.detection import detection_config_loading
    from fbnetv3.detection.training import detection_evaluation, detector_training

    cfg = detection_config_loading.load_config(args.config, args.overrides)
    keep_freed_memory()
    if args.eval_only:
        print(detection_evaluation.as_table(detector_training.run_evaluation(cfg)))
        return
    result = detector_training.run_training(cfg, resume=args.resume)
    if result.results:
        print(detection_evaluation.as_table(result.results))
        print(f"{'detections:':12} {result.detections}\n{'examples:':12} {result.examples}")
    curve = ("curve",) if result.results else ()
    print_files(result.files, "weights", "checkpoints", "metrics", *curve, "log", "tensorboard")


def print_metrics(metrics):
    names = {"top1": "top1", "top5": "top5", "ema_top1": "EMA's top1", "ema_top5": "EMA's top5"}
    shown = [f"{words} {metrics[name]:.2f} %" for name, words in names.items() if name in metrics]
    print(f"{', '.join(shown)}, loss {metrics['loss']:.4f} on {metrics['images']} images")


def print_files(files, *names):
    for what in names:
        print(f"{what + ':':12} {getattr(files, what)}")


if __name__ == "__main__":
    run_tool(main, after_interrupt=AFTER_INTERRUPT)
