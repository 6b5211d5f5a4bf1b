"""Detect objects: `fbnetv3 detect (--model NAME | --config FILE | --weights FILE) --input SOURCE ... --output DIR`."""

from __future__ import annotations

import logging
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fbnetv3.deploy.exported_folder import is_exported_folder
from fbnetv3.errors import DataError, UnknownNameError, UsageError
from fbnetv3.model_zoo.pretrained import find_detector_weights, find_zoo_detector, is_checkpoint
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.modeling.torch_device import AUTO_DEVICE, find_device
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.utils.command_line import ArgumentParser, positive_int
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.nested_keys import parse_pairs

logger = logging.getLogger(__name__)

CONFIG_KEY = re.compile(r"(DATASETS|INPUT|MODEL|TEST)(\.[A-Z0-9_]+)+|OUTPUT_DIR")
# Options with any number of words, after which KEY VALUE pairs may follow
_LISTS = ("input", "classes", "score_threshold", "save")


def main(argv: Sequence[str] | None = None) -> None:
    """Detect objects in images and videos."""
    args = _parse_args(argv)
    keep_freed_memory()
    from fbnetv3.detection.inference.detection_inputs import (
        find_inputs,
        match_annotations,
        require_video_packages,
    )
    from fbnetv3.detection.inference.detection_run import run_detection
    from fbnetv3.detection.inference.outputs import OUTPUT_FOLDERS, OutputSettings, build_outputs
    from fbnetv3.detection.inference.score_selection import DetectionSelection, parse_score_thresholds

    # Check everything that needs no network first
    thresholds = parse_score_thresholds(args.score_threshold)
    build_predictor = _choose_predictor(args, thresholds)
    folder = expand_path(args.output)
    inputs = find_inputs(args.input, exclude=[folder / name for name in OUTPUT_FOLDERS])
    require_video_packages(inputs, args.track)
    categories = None
    if args.annotations:
        inputs, categories = match_annotations(inputs, args.annotations)

    predictor = build_predictor()
    classes = predictor.classes(categories)
    settings = OutputSettings(
        folder, classes, categories is not None, args.yolo_scores, args.codec, predictor.skeleton
    )
    selection = DetectionSelection(settings.names, thresholds, args.classes or None)
    outputs = build_outputs(settings, args.save, pictures=not args.no_pictures)
    run = run_detection(
        predictor,
        inputs,
        selection,
        outputs,
        batch_size=args.batch_size,
        every=args.every,
        track=args.track,
    )
    _print_summary(run, outputs)
    if run.errors:
        raise DataError(
            f"{len(run.errors)} of {len(inputs)} inputs could not be read; they are named above"
        )


def _print_summary(run: Any, outputs: Sequence[Any]) -> None:
    counts = [_count(run.num_images, "image")] if run.num_images or not run.num_frames else []
    counts += [_count(run.num_frames, "frame")] if run.num_frames else []
    speed = f"{run.seconds:.1f} s, {run.images_per_second:.1f} per second"
    line = f"{_count(run.num_shown, 'object')} in {' and '.join(counts)} ({speed})"
    if run.num_detections > run.num_shown:
        line += f"; {run.num_detections - run.num_shown} more with lower scores in the COCO results"
    print(line)
    for output in outputs:
        for name, path in output.paths().items():
            print(f"{name + ':':12} {path}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        description="Detect objects in images and videos; write pictures with boxes and a COCO results file."
    )
    add = parser.add_argument
    add(
        "--model",
        metavar="NAME",
        help="detector of the model zoo, folder of a run, checkpoint, or exported folder",
    )
    add(
        "--runtime",
        metavar="NAME",
        help="runtime of an exported folder, such as openvino for ONNX files, or auto: the fastest on this machine "
        "(default: that of its format)",
    )
    add(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:1, or auto: a GPU if there is one (default: MODEL.DEVICE; auto for an exported folder)",
    )
    add("--config", "--config-file", metavar="FILE", help="detection config")
    add(
        "--weights",
        metavar="FILE",
        help="file, URL or 'published' (default: those of the run in OUTPUT_DIR, or the config's MODEL.WEIGHTS); "
        "enough by themselves if they record their config, as those of a training run do",
    )
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="SOURCE",
        help="images, videos, folders, patterns, URLs, - for names of files on standard input, a camera's number, or "
        "a stream such as rtsp://...",
    )
    add("--output", required=True, metavar="DIR", help="folder for pictures, videos and results")
    add("--classes", nargs="+", default=[], metavar="CLASS", help="detect only these classes")
    add(
        "--score-threshold",
        nargs="+",
        default=[],
        metavar="SCORE",
        help="minimum score, and CLASS=SCORE for some classes (default: 0.5; the config's for COCO results)",
    )
    add(
        "--save",
        nargs="+",
        default=[],
        metavar="OUTPUT",
        help="write csv, yolo (labels) or crops, too",
    )
    add("--yolo-scores", action="store_true", help="add scores to the labels of --save yolo")
    add("--no-pictures", action="store_true", help="write no pictures and videos")
    add("--track", action="store_true", help="track objects through videos")
    add("--every", type=positive_int, default=1, metavar="N", help="use every N-th frame of videos")
    add(
        "--codec",
        default="",
        metavar="CODE",
        help="four-character code for videos, such as vp09 for browsers (default: avc1 if available, or mp4v)",
    )
    add(
        "--annotations",
        metavar="JSON",
        help="COCO-format file with image ids and categories; images that it does not list are skipped",
    )
    add("--batch-size", type=positive_int, default=1, metavar="N", help="images per forward pass")
    add(
        "overrides",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys to change, such as INPUT.MIN_SIZE_TEST 384",
    )
    args = parser.parse_intermixed_args(argv)
    for option in _LISTS:
        words, overrides = _split_overrides(getattr(args, option))
        if overrides and not words:
            raise UsageError(f"--{option.replace('_', '-')}: {overrides[0]} is a config key")
        setattr(args, option, words)
        args.overrides = overrides + args.overrides
    return args


def _split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words after an option into its own and the KEY VALUE pairs that may follow them."""
    is_key = [CONFIG_KEY.fullmatch(word) is not None and not Path(word).exists() for word in words]
    end = is_key.index(True) if any(is_key) else len(words)
    return list(words[:end]), list(words[end:])


def _choose_predictor(args: Namespace, thresholds: Any) -> Callable[[], Any]:
    """Return a function that builds the requested detector, so that inputs are checked before weights are loaded."""
    if args.model and args.config:
        raise UsageError("pass either --model or --config")
    if args.model and is_exported_folder(args.model):
        if args.weights or args.overrides:
            raise UsageError(
                f"{args.model}: already contains its weights and settings: omit --weights and KEY VALUE pairs"
            )
        device = args.device or AUTO_DEVICE
        return partial(_open_exported, args.model, thresholds, args.runtime, device)
    if args.runtime:
        raise UsageError("--runtime needs --model, an exported folder")
    from fbnetv3.detection.inference.array_predictors import (
        ConfigPredictor,
        score_threshold,
        set_score_threshold,
    )

    cfg, weights = _find_detector(args)
    cfg = cfg.clone()
    cfg.defrost()
    if args.device:
        cfg.MODEL.DEVICE = str(find_device(args.device))
    set_score_threshold(cfg, thresholds.for_detector(score_threshold(cfg), keep_low=args.track))
    return partial(ConfigPredictor, cfg, weights)


def _open_exported(folder: str, thresholds: Any, runtime: str | None, device: str) -> Any:
    """Open an exported detector; warn if it has dropped detections that the thresholds ask for."""
    from fbnetv3.detection.inference.array_predictors import ExportedPredictor

    predictor = ExportedPredictor(folder, runtime=runtime, device=device)
    lowest = thresholds.for_detector(predictor.min_score)
    if lowest < predictor.min_score:
        logger.warning(
            "%s: detects nothing with a score below %g, so --score-threshold %g has no effect: export it again with a "
            "lower MODEL.ROI_HEADS.SCORE_THRESH_TEST (RetinaNet: MODEL.RETINANET.SCORE_THRESH_TEST)",
            folder,
            predictor.min_score,
            lowest,
        )
    return predictor


def _find_detector(args: Namespace) -> tuple[Any, str]:
    """Return the config and the weights of a detector: a checkpoint's own, or those of a config or zoo entry."""
    from fbnetv3.detection.detection_config import load_detection_config
    from fbnetv3.detection.recorded_detectors import config_from_checkpoint, use_recorded_detector

    checkpoint = args.model if args.model and is_checkpoint(args.model) else ""
    if checkpoint and args.weights:
        raise UsageError(f"{args.model}: already contains its weights: omit --weights")
    if not args.model and not args.config:
        checkpoint = args.weights
        if not checkpoint:
            raise UsageError(
                "pass --model, a detector of the model zoo, a run, a checkpoint or an exported folder, or --config, "
                "or --weights of a checkpoint that records its config"
            )
    if checkpoint:
        cfg = config_from_checkpoint(checkpoint, args.overrides)
        return cfg, cfg.MODEL.WEIGHTS
    config, weights = args.config, args.weights
    if args.model:
        try:
            config, weights = find_zoo_detector(args.model, weights)
        except UnknownNameError as error:
            raise UnknownNameError(
                f"{args.model}: no such run, checkpoint or exported folder, and {error}"
            ) from None
    cfg = load_detection_config(config, args.overrides)
    pairs = parse_pairs(args.overrides)
    weights = find_detector_weights(config, cfg, weights, pairs)
    return use_recorded_detector(cfg, read_detector_record(weights), weights, pairs), weights
