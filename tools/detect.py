#!/usr/bin/env python3
"""Find objects in images: `detect.py (--model NAME | --config FILE --weights FILE) --input PATH ... --output DIR`."""

import re
from functools import partial
from pathlib import Path

from fbnetv3.errors import DataError, UsageError
from fbnetv3.model_zoo.pretrained import detector_from_name
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.utils.command_line import ArgumentParser, run_tool

KEY = re.compile(r"(DATASETS|INPUT|MODEL|TEST)(\.[A-Z0-9_]+)+")


def main(argv=None):
    parser = ArgumentParser(description="Draw the objects that a detector finds, and write them as COCO's results are.")
    parser.add_argument("--model", metavar="NAME", help="a detector of the model zoo, or an exported folder")
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
    inputs, overrides = split(args.input)
    detector = detector_of(args, overrides + args.overrides)
    from fbnetv3.detection.inference import image_files

    drawn_from = image_files.DRAWN_FROM if args.score_threshold is None else args.score_threshold
    output = Path(args.output)
    files, categories = image_files.find_images(inputs, args.annotations, leave_out=output / image_files.PICTURES)
    found = image_files.detect_files(
        detector(),
        files,
        output,
        categories=categories,
        batch_size=args.batch_size,
        drawn_from=None if args.no_pictures else drawn_from,
    )
    print(f"{len(found.results)} objects in {len(found.images)} images")
    print(f"{'results:':12} {output / image_files.RESULTS}")
    if not args.no_pictures:
        print(f"{'pictures:':12} {output / image_files.PICTURES}")
    if found.damaged:
        raise DataError(f"{len(found.damaged)} of {len(files)} images could not be read; they are named above")


def split(words):
    """Paths, and the KEY VALUE pairs that may follow them."""
    is_key = [KEY.fullmatch(word) is not None and not Path(word).exists() for word in words]
    end = is_key.index(True) if any(is_key) else len(words)
    return words[:end], words[end:]


def detector_of(args, overrides):
    """What makes the detector that is named, once the images are found."""
    if bool(args.model) == bool(args.config):
        raise UsageError(
            "name either --model, an entry of the model zoo or an exported folder, or --config with --weights"
        )
    if args.model and Path(args.model).is_dir():
        if args.weights or overrides:
            raise UsageError(
                f"{args.model}: is exported with its weights and keys: neither --weights nor keys go with it"
            )
        from fbnetv3.detection.inference.exported_predictor import ExportedPredictor

        return partial(ExportedPredictor, args.model, args.score_threshold or 0.0)
    config, weights = (args.config, args.weights) if args.config else detector_from_name(args.model, args.weights)
    from fbnetv3.detection import detection_config_loading
    from fbnetv3.detection.inference import image_files

    cfg = detection_config_loading.load_config(config, overrides).clone()
    cfg.defrost()
    if not (weights := weights or cfg.MODEL.WEIGHTS):
        raise UsageError(f"{config} names no weights: add --weights and a checkpoint")
    if args.score_threshold is not None:
        image_files.set_score_threshold(cfg, args.score_threshold)
    return partial(image_files.Predictor, cfg, weights)


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
