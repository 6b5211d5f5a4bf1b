"""Convert annotations of boxes: `fbnetv3 convert-annotations SOURCE --output FILE_OR_FOLDER`.

SOURCE has any format that training reads: YOLO, Pascal VOC, CSV, LVIS or COCO. The result has COCO's or YOLO's.
"""

import argparse
import logging
from collections.abc import Sequence

from fbnetv3.errors import UsageError
from fbnetv3.utils.command_line import ArgumentParser
from fbnetv3.utils.files import expand_path

logger = logging.getLogger(__name__)

_TARGETS = ("coco", "yolo")


def main(argv: Sequence[str] | None = None) -> None:
    """Convert all splits of a source, or one of them."""
    args = _parse_args(argv)
    from fbnetv3.detection.data.annotation_writers import write_coco, write_yolo
    from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations
    from fbnetv3.detection.data.formats import split_sources

    # Which splits, and where to
    images = expand_path(args.images) if args.images else None
    sources = split_sources(expand_path(args.source), images, args.format)
    if args.split:
        if args.split not in sources:
            raise UsageError(f"--split {args.split}: {args.source} has {', '.join(sources)}")
        sources = {args.split: sources[args.split]}
    output = expand_path(args.output)
    is_file = output.suffix.lower() == ".json"
    if is_file and args.to == "yolo":
        raise UsageError(
            f"--output {output}: name a folder, which --to yolo fills with data.yaml and labels"
        )
    if is_file and len(sources) > 1:
        raise UsageError(
            f"--output {output}: name a folder for the splits {', '.join(sources)}, or choose one with --split"
        )

    # Convert
    splits = {}
    for split, source in sources.items():
        raw = source.read()
        splits[split] = clean_annotations(raw.data, raw.image_root, raw.source)
        for note in raw.notes:
            logger.info("%s: %s", split, note)
    if args.to == "yolo":
        print(f"{'yolo:':12} {write_yolo(splits, output)}")
        return
    for split, clean in splits.items():
        file = output if is_file else output / f"{split}.json"
        write_coco(clean, file)
        summary = clean.summary
        counts = f"{summary.images} images, {summary.boxes} boxes, {len(clean.classes)} classes"
        print(f"{'coco:':12} {file} ({counts}; images in {clean.image_root})")


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description="Convert annotations of boxes to COCO's format, or to YOLO's.")
    parser.add_argument(
        "source", metavar="SOURCE", help="a YOLO data.yaml, a folder, or a file of annotations"
    )
    parser.add_argument(
        "--output",
        required=True,
        metavar="PATH",
        help="a .json file, or a folder with a file per split; with --to yolo, a folder",
    )
    parser.add_argument("--to", choices=_TARGETS, default="coco", help="format to write")
    parser.add_argument("--split", default="", metavar="NAME", help="train, val or test (default: all)")
    parser.add_argument(
        "--images", default="", metavar="DIR", help="folder of the images (default: near the annotations)"
    )
    parser.add_argument(
        "--format",
        default="auto",
        metavar="NAME",
        help="format of the source: coco, lvis, yolo, voc or csv; auto determines it from the files",
    )
    return parser.parse_args(argv)
