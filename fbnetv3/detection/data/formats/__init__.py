"""Readers of annotation files, one per format; all return the same raw annotations. Importing this registers them."""

from fbnetv3.detection.data.annotations.coco_files import RawAnnotations
from fbnetv3.detection.data.formats import (  # noqa: F401 - registers the formats
    coco_format,
    csv_format,
    lvis_format,
    voc_format,
    yolo_format,
)
from fbnetv3.detection.data.formats.annotation_source import (
    ANNOTATION_FORMATS,
    AnnotationReader,
    AnnotationSource,
    find_format,
    matching_formats,
    split_sources,
)
from fbnetv3.detection.data.formats.coco_format import has_boxes

__all__ = [
    "ANNOTATION_FORMATS",
    "AnnotationReader",
    "AnnotationSource",
    "RawAnnotations",
    "find_format",
    "has_boxes",
    "matching_formats",
    "split_sources",
]
