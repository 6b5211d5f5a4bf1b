"""Train or evaluate a network: `fbnetv3 train --config FILE [--eval-only] [--resume] [KEY VALUE ...]`.

The config decides between a classifier and a detector; detectors have detectron2 configs. A checkpoint is evaluated
without a config: `fbnetv3 eval FILE`.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fbnetv3.commands.cli import COMMANDS
from fbnetv3.config import is_detection_config, load_config
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.training import evaluate_classifier, train_classifier
from fbnetv3.training.processes.launch import launch
from fbnetv3.training.recorded_networks import load_recorded_config
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.training_hooks import ACCURACY_LABELS
from fbnetv3.utils.command_line import ArgumentParser, positive_int
from fbnetv3.utils.nested_keys import parse_pairs


def main(argv: Sequence[str] | None = None) -> None:
    """Train or evaluate a network."""
    parser = ArgumentParser(description="Train or evaluate a classifier or a detector.")
    parser.add_argument(
        "--config",
        "--config-file",
        metavar="FILE",
        help="training or detection config, see configs/ (default with --eval-only: the one in MODEL.WEIGHTS)",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate MODEL.WEIGHTS, or the result of the run in OUTPUT_DIR",
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the newest checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--num-gpus",
        type=positive_int,
        default=1,
        metavar="N",
        help="number of processes to start on this machine, one per GPU",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config overrides, such as SOLVER.LR 0.1"
    )
    args = parser.parse_intermixed_args(argv)
    if args.eval_only and args.resume:
        parser.error("--eval-only does not train: omit --resume")
    if not args.config and not args.eval_only:
        parser.error("training needs --config FILE")
    run = partial(_run_detector if _is_detector(args) else _run_classifier, args)
    launch(run, args.num_gpus, after_interrupt=COMMANDS["train"].after_interrupt)


def _is_detector(args: argparse.Namespace) -> bool:
    """Return whether the config, or without one the weights to evaluate, are those of a detector."""
    if args.config:
        return is_detection_config(args.config)
    pairs = parse_pairs(args.overrides)
    if weights := pairs.get("MODEL.WEIGHTS"):
        return read_detector_record(weights) is not None
    run_config = RunFolder(pairs["OUTPUT_DIR"]).config if "OUTPUT_DIR" in pairs else None
    return bool(run_config and run_config.is_file() and is_detection_config(run_config))


def _run_classifier(args: argparse.Namespace) -> None:
    if args.eval_only:
        cfg = (
            load_config(args.config, args.overrides)
            if args.config
            else load_recorded_config(args.overrides)
        )
        _print_metrics(evaluate_classifier(cfg, keep=parse_pairs(args.overrides)))
        return
    cfg = load_config(args.config, args.overrides)
    keep_freed_memory()
    result = train_classifier(cfg, resume=args.resume)
    _print_metrics(result.metrics)
    tensorboard = ("tensorboard",) if "tensorboard" in cfg.LOG.TRACKERS else ()
    _print_paths(
        result.run_folder, "weights", "best", "checkpoints", "metrics", "curve", "log", *tensorboard
    )


def _run_detector(args: argparse.Namespace) -> None:
    from fbnetv3.detection.detection_config import load_detection_config
    from fbnetv3.detection.recorded_detectors import config_from_checkpoint
    from fbnetv3.detection.training.detector_evaluation import evaluate_detector
    from fbnetv3.detection.training.detector_training import train_detector

    pairs = parse_pairs(args.overrides)
    if args.config:
        cfg = load_detection_config(args.config, args.overrides)
    else:
        cfg = config_from_checkpoint(pairs.get("MODEL.WEIGHTS") or pairs["OUTPUT_DIR"], args.overrides)
    keep_freed_memory()
    if args.eval_only:
        results = evaluate_detector(cfg, keep=pairs)
        _print_results(results, RunFolder(cfg.OUTPUT_DIR))
        return
    result = train_detector(cfg, resume=args.resume)
    evaluated: Sequence[str] = ()
    if result.results:
        _print_results(result.results, result.run_folder)
        print(f"{'examples:':12} {result.examples}")
        evaluated = ("best", "curve")
    _print_paths(result.run_folder, "weights", "checkpoints", "metrics", *evaluated, "log", "tensorboard")


def _print_results(results: Any, run_folder: RunFolder) -> None:
    """Print a detector's average precision by class and in total; only rank 0 has results."""
    from fbnetv3.detection.training.evaluation_tables import class_tables, detection_table

    if not results:
        return
    if tables := class_tables(results):
        print(f"{tables}\n")
    print(detection_table(results))
    _print_paths(run_folder, "detections")


def _print_metrics(metrics: Mapping[str, float]) -> None:
    accuracies = [
        f"{label} {metrics[key]:.2f}%" for key, label in ACCURACY_LABELS.items() if key in metrics
    ]
    print(f"{', '.join(accuracies)}, loss {metrics['loss']:.4f} on {metrics['images']} images")


def _print_paths(run_folder: RunFolder, *names: str) -> None:
    for name in names:
        print(f"{name + ':':12} {getattr(run_folder, name)}")
