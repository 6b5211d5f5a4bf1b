#!/usr/bin/env python3
"""Find objects in images: `detect.py (--model ENTRY | --config FILE --weights FILE) --input PATH ... --output DIR`."""

import re
from pathlib import Path

from fbnetv3.cli import ArgumentParser, run_tool
from fbnetv3.engine.memory import keep_freed_memory
from fbnetv3.errors import DataError, UsageError
from fbnetv3.trained import detector_from_name

KEY = re.compile(r"(DATASETS|INPUT|MODEL|TEST)(\.[A-Z0-9_]+)+")


def main(argv=None):
    parser = ArgumentParser(description="Draw the objects that a detector finds, and write them as COCO's results are.")
    parser.add_argument("--model", metavar="ENTRY", help="a detector of the model zoo, with its weights")
    parser.add_argument("--config", "--config-file", metavar="FILE", help="a detector's config, with --weights")
    parser.add_argument("--weights", metavar="FILE", help="a checkpoint (default: the config's MODEL.WEIGHTS)")
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="images, and folders of images")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and results")
    parser.add_argument(
        "--annotations", metavar="JSON", help="COCO-format file with the images' ids and the categories"
    )
    parser.add_argument(
        "--score-threshold",
        type=share,
        metavar="SCORE",
        help="of what is found (default: drawn from 0.5 on, written as the config says)",
    )
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--no-pictures", action="store_true", help="results alone")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="the detector's config keys")
    args = parser.parse_intermixed_args(argv)
    keep_freed_memory()
    config, weights = source_of(args)
    from fbnetv3.detection import loading, predict

    inputs, overrides = split(args.input)
    cfg = loading.load_config(config, overrides + args.overrides).clone()
    cfg.defrost()
    if not (weights := weights or cfg.MODEL.WEIGHTS):
        raise UsageError(f"{config} names no weights: add --weights and a checkpoint")
    drawn_from = predict.DRAWN_FROM
    if args.score_threshold is not None:
        drawn_from = args.score_threshold
        predict.set_score_threshold(cfg, drawn_from)
    output = Path(args.output)
    files, categories = predict.find_images(inputs, args.annotations, leave_out=output / predict.PICTURES)
    found = predict.detect_files(
        predict.Predictor(cfg, weights),
        files,
        output,
        categories=categories,
        batch_size=args.batch_size,
        drawn_from=None if args.no_pictures else drawn_from,
    )
    print(f"{len(found.results)} objects in {len(found.images)} images")
    print(f"{'results:':12} {output / predict.RESULTS}")
    if not args.no_pictures:
        print(f"{'pictures:':12} {output / predict.PICTURES}")
    if found.damaged:
        raise DataError(f"{len(found.damaged)} of {len(files)} images could not be read; they are named above")


def split(words):
    """Paths, and the KEY VALUE pairs that may follow them."""
    is_key = [KEY.fullmatch(word) is not None for word in words]
    end = is_key.index(True) if any(is_key) else len(words)
    return words[:end], words[end:]


def source_of(args):
    """The detector's config file and its weights."""
    if bool(args.model) == bool(args.config):
        raise UsageError("name either --model, an entry of the model zoo, or --config with --weights")
    if args.config:
        return args.config, args.weights
    return detector_from_name(args.model, args.weights)


def share(text):
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    run_tool(main, after_interrupt="the output folder holds what was found so far", sigterm=True)
