"""Check a dataset before training: `fbnetv3 check-data PATH`, or `fbnetv3 check-data --config FILE`.

Datasets with boxes are checked with them: a YOLO data.yaml, a COCO JSON file and so on.

The exit code is 1 if something would stop or spoil training, such as corrupt images or equal images in both splits.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from fbnetv3.config import is_detection_config, load_config
from fbnetv3.data.check.check_dataset import check_dataset, check_path
from fbnetv3.data.check.check_page import write_check_page
from fbnetv3.data.check.check_summary import check_text, check_to_data
from fbnetv3.data.check.findings import ERROR, DataCheck
from fbnetv3.errors import DataError, FieldError, MissingPackageError
from fbnetv3.utils.checks import check_keys
from fbnetv3.utils.command_line import ArgumentParser, positive_int
from fbnetv3.utils.files import expand_path, write_json
from fbnetv3.utils.nested_keys import parse_pairs

DEFAULT_PAGE = "data_check.html"
_ANY_DETECTOR = "configs/coco/faster_rcnn_fbnetv3_a_C4.yaml"  # whose config keys are those of all detectors


def main(argv: Sequence[str] | None = None) -> None:
    """Check a dataset, and raise a DataError if something would stop or spoil training."""
    args = _parse_args(argv)
    check = _run_check(args)
    print(check_text(check))
    # The page has all pictures inside; the JSON file lists all images
    if args.json:
        write_json(Path(args.json), check_to_data(check))
        print(f"\n{'data:':12} {args.json}")
    if args.html:
        write_check_page(check, Path(args.html))
        print(f"{'page:':12} {args.html}")
    if check.has_errors:
        count = sum(finding.severity == ERROR for finding in check.findings)
        raise DataError(
            f"{check.source}: {count} {'problem' if count == 1 else 'problems'} to solve before training"
        )


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Read every image of a dataset, and report what would stop or spoil training."
    )
    parser.add_argument(
        "dataset",
        nargs="*",
        metavar="PATH | KEY VALUE",
        help="a folder of images or tar files, a subset file (JSON), or annotations of boxes; or config keys, such as "
        "DATA.NAME and DATA.ROOT, or DATASETS.CUSTOM.DATA for boxes",
    )
    parser.add_argument("--config", metavar="FILE", help="training config whose dataset to check")
    parser.add_argument(
        "--html", default=DEFAULT_PAGE, metavar="FILE", help='page with pictures to write; "" for none'
    )
    parser.add_argument(
        "--json", default="", metavar="FILE", help="file to write with all findings and images"
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of processes that read images",
    )
    args = parser.parse_intermixed_args(argv)
    if not args.config and not args.dataset:
        parser.error("name a PATH, a --config FILE, or DATA.NAME and DATA.ROOT")
    return args


def _run_check(args: argparse.Namespace) -> DataCheck:
    if args.config:
        if is_detection_config(args.config):
            return _check_detection_config(args.config, args.dataset, args.workers)
        cfg = load_config(args.config, args.dataset)
        return check_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, args.workers)
    if len(args.dataset) == 1:
        path = expand_path(args.dataset[0])
        if _has_boxes(path):
            from fbnetv3.detection.data.check.check_detection import check_detection_path

            return check_detection_path(path, args.workers)
        return check_path(path, args.workers)
    keys = parse_pairs(args.dataset)
    if any(key.startswith("DATASETS.") for key in keys):
        return _check_detection_config(_ANY_DETECTOR, args.dataset, args.workers)
    check_keys(keys, FieldError, ("DATA.NAME", "DATA.ROOT"), required=("DATA.NAME",))
    return check_dataset(keys["DATA.NAME"], keys.get("DATA.ROOT", ""), args.workers)


def _check_detection_config(config: str, overrides: Sequence[str], workers: int) -> DataCheck:
    """Check the datasets that a detector's config names."""
    from fbnetv3.detection.data.check.check_detection import check_detection_datasets
    from fbnetv3.detection.detection_config import load_detection_config

    cfg = load_detection_config(config, ["MODEL.DEVICE", "cpu", *overrides])
    return check_detection_datasets(cfg, workers)


def _has_boxes(path: Path) -> bool:
    """Return whether a file or folder has annotations of boxes; without detectron2, they are not looked for."""
    try:
        from fbnetv3.detection.data.formats import has_boxes
    except MissingPackageError:
        return False
    return path.exists() and has_boxes(path)
