"""Detect objects in images: `fbnetv3 detect (--model NAME | --config FILE) --input PATH ... --output DIR`."""

from __future__ import annotations

import math
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo.pretrained import find_detector_weights, find_zoo_detector
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.utils.command_line import ArgumentParser, positive_int
from fbnetv3.utils.nested_keys import parse_pairs

CONFIG_KEY = re.compile(r"(DATASETS|INPUT|MODEL|TEST)(\.[A-Z0-9_]+)+|OUTPUT_DIR")


def main(argv: Sequence[str] | None = None) -> None:
    """Detect objects in images."""
    args = _parse_args(argv)
    keep_freed_memory()
    inputs, overrides = _split_overrides(args.input)
    build_predictor = _choose_predictor(args, overrides + args.overrides)
    from fbnetv3.detection.inference import detect_images

    output = Path(args.output)
    draw_threshold = detect_images.DRAW_THRESHOLD if args.score_threshold is None else args.score_threshold
    files, categories = detect_images.find_input_images(
        inputs, args.annotations, exclude=output / detect_images.PICTURES_FOLDER
    )
    run = detect_images.detect_files(
        build_predictor(),
        files,
        output,
        categories=categories,
        batch_size=args.batch_size,
        draw_threshold=None if args.no_pictures else draw_threshold,
    )
    print(f"{len(run.results)} objects in {len(run.images)} images")
    print(f"{'results:':12} {output / detect_images.RESULTS_FILE}")
    if not args.no_pictures:
        print(f"{'pictures:':12} {output / detect_images.PICTURES_FOLDER}")
    if run.corrupt:
        raise DataError(
            f"{len(run.corrupt)} of {len(files)} images could not be read; they are named above"
        )


def _parse_args(argv: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(
        description="Detect objects in images; write pictures with boxes and a COCO results file."
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="detector of the model zoo, or exported folder")
    add("--config", "--config-file", metavar="FILE", help="detection config")
    add(
        "--weights",
        metavar="FILE",
        help="file, URL or 'published' (default: those of the run in OUTPUT_DIR, or the config's MODEL.WEIGHTS)",
    )
    add("--input", nargs="+", required=True, metavar="PATH", help="images, and folders of images")
    add("--output", required=True, metavar="DIR", help="folder for pictures and results")
    add(
        "--annotations",
        metavar="JSON",
        help="COCO-format file with image ids and categories; images that it does not list are skipped",
    )
    add(
        "--score-threshold",
        type=_parse_score,
        metavar="SCORE",
        help="minimum score (default: 0.5 for pictures, the config's threshold for results)",
    )
    add("--batch-size", type=positive_int, default=1, metavar="N", help="images per forward pass")
    add("--no-pictures", action="store_true", help="write results only")
    add(
        "overrides",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys to change, such as INPUT.MIN_SIZE_TEST 384",
    )
    return parser.parse_intermixed_args(argv)


def _split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the words after --input into paths and the KEY VALUE pairs that may follow them."""
    is_key = [CONFIG_KEY.fullmatch(word) is not None and not Path(word).exists() for word in words]
    end = is_key.index(True) if any(is_key) else len(words)
    return list(words[:end]), list(words[end:])


def _choose_predictor(args: Namespace, overrides: list[str]) -> Callable[[], Any]:
    """Return a function that builds the requested detector, so that inputs are checked before weights are loaded."""
    if bool(args.model) == bool(args.config):
        raise UsageError(
            "pass either --model, a detector of the model zoo or an exported folder, or --config"
        )
    if args.model and Path(args.model).is_dir():
        if args.weights or overrides:
            raise UsageError(
                f"{args.model}: already contains its weights and settings: omit --weights and KEY VALUE pairs"
            )
        from fbnetv3.detection.inference.detect_images import ExportedPredictor

        return partial(ExportedPredictor, args.model, args.score_threshold or 0.0)
    config, weights = args.config, args.weights
    if args.model:
        config, weights = find_zoo_detector(args.model, weights)
    from fbnetv3.detection.detection_config import load_detection_config
    from fbnetv3.detection.inference.detect_images import ConfigPredictor, set_score_threshold

    cfg = load_detection_config(config, overrides).clone()
    cfg.defrost()
    weights = find_detector_weights(config, cfg, weights, parse_pairs(overrides))
    if args.score_threshold is not None:
        set_score_threshold(cfg, args.score_threshold)
    return partial(ConfigPredictor, cfg, weights)


def _parse_score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ArgumentTypeError(f"{text} must be a number in [0, 1]")
    return value
