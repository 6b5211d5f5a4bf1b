"""Check all splits of a detection dataset: files, images, duplicates and boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from detectron2.config import CfgNode

from fbnetv3.data.check.examination import examine_dataset
from fbnetv3.data.check.findings import (
    ERROR,
    NOTE,
    SEVERITIES,
    WARNING,
    DataCheck,
    Finding,
    SplitContents,
    find_problems,
)
from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations
from fbnetv3.detection.data.annotations.coco_files import CocoData, find_format_problem
from fbnetv3.detection.data.check.box_findings import find_box_problems
from fbnetv3.detection.data.check.box_statistics import box_figures, box_tables
from fbnetv3.detection.data.check.detection_images import DetectionImages
from fbnetv3.detection.data.detection_datasets import dataset_source, load_clean_annotations
from fbnetv3.detection.data.formats import AnnotationSource, RawAnnotations, split_sources
from fbnetv3.detection.data.formats.image_lookup import read_image_sizes
from fbnetv3.errors import DataError, UsageError

# What is found in classifiers' datasets by the classes of images, but matters less for boxes
_OTHER_KINDS = {"elongated", "empty classes", "few images", "imbalance"}
_CORRUPT_ADVICE = "repair them, or remove them with their annotations"


def check_detection_sources(
    sources: Mapping[str, AnnotationSource], title: str, workers: int = 0, progress: bool = True
) -> DataCheck:
    """Read all annotations and images of a dataset, and report what would stop or spoil training.

    Args:
        sources: annotations by split, the training split first.
        title: name of the dataset in the report.
        workers: number of processes that read images.
        progress: whether to show progress bars on a terminal.

    Raises:
        DataError: no split's annotations can be read.
    """
    findings: list[Finding] = []
    annotations = _read_splits(sources, findings)
    if not annotations:
        raise DataError("; ".join(finding.message for finding in findings))
    datasets = {split: _open(split, raw, findings) for split, raw in annotations.items()}
    splits = {
        split: SplitContents(dataset, examine_dataset(dataset, split, workers, progress))
        for split, dataset in datasets.items()
    }
    if len(sources) == 1:
        findings.append(
            Finding("one split", WARNING, "not divided into training and validation: hold out images")
        )
    findings += [f for f in find_problems(splits, _CORRUPT_ADVICE) if f.kind not in _OTHER_KINDS]
    findings += find_box_problems(datasets, splits)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    cleaned = {split: dataset.clean for split, dataset in datasets.items() if dataset.clean is not None}
    return DataCheck(title, splits, findings, tables=box_tables(cleaned), figures=box_figures(cleaned))


def check_detection_path(path: Path, workers: int = 0, progress: bool = True) -> DataCheck:
    """Check a file or folder of annotations with all of its splits; see `check_detection_sources`."""
    return check_detection_sources(split_sources(path), str(path), workers, progress)


def check_detection_datasets(cfg: CfgNode, workers: int = 0, progress: bool = True) -> DataCheck:
    """Check the datasets of a detector's config; see `check_detection_sources`.

    Raises:
        UsageError: a dataset has no annotation file, but is registered by a function.
    """
    names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    sources = {}
    for name in names:
        source = dataset_source(name)
        if source is None:
            raise UsageError(
                f"{name}: has no annotation file, but is registered by a function: it cannot be checked"
            )
        if not source.annotations.exists():
            load_clean_annotations(name)  # draws the dataset, or says what is missing
        split = "train" if name in cfg.DATASETS.TRAIN else "val"
        # Several datasets may be trained or evaluated on
        sources[name if split in sources else split] = source
    return check_detection_sources(sources, ", ".join(names), workers, progress)


def _read_splits(
    sources: Mapping[str, AnnotationSource], findings: list[Finding]
) -> dict[str, RawAnnotations]:
    """Read the annotations of each split; errors are findings."""
    annotations: dict[str, RawAnnotations] = {}
    for split, source in sources.items():
        try:
            raw = source.read()
            if problem := find_format_problem(raw.data):
                raise DataError(f"{raw.source}: {problem}")
        except DataError as error:
            findings.append(Finding(f"annotations of {split}", ERROR, str(error)))
            continue
        annotations[split] = raw
        findings += [Finding(f"reading {split}", NOTE, f"{split}: {note}") for note in raw.notes]
    return annotations


def _open(split: str, raw: RawAnnotations, findings: list[Finding]) -> DetectionImages:
    """Clean the annotations of a split; if they cannot be cleaned, its images are checked without them."""
    try:
        data = _without_unreadable_images(raw)
        return DetectionImages(raw, clean_annotations(data, raw.image_root, raw.source))
    except DataError as error:
        findings.append(Finding(f"annotations of {split}", ERROR, str(error)))
        return DetectionImages(raw, None)


def _without_unreadable_images(raw: RawAnnotations) -> CocoData:
    """Return the annotations of images whose sizes are stated or can be read; the examination reports the others."""
    missing = [image for image in raw.data["images"] if not {"width", "height"} <= image.keys()]
    paths = [Path(raw.image_root, image["file_name"]) for image in missing]
    sizes = read_image_sizes(paths)
    unreadable = {str(image["id"]) for image, size in zip(missing, sizes, strict=True) if size is None}
    images = [image for image in raw.data["images"] if str(image["id"]) not in unreadable]
    if not images:
        raise DataError(f"{raw.source}: none of its {len(missing)} images can be read")
    annotations = [
        annotation
        for annotation in raw.data["annotations"]
        if str(annotation.get("image_id")) not in unreadable
    ]
    return {**raw.data, "images": images, "annotations": annotations}
