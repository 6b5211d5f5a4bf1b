"""What a detection run writes: one module per output, in a registry."""

from collections.abc import Sequence

# Importing the modules registers their outputs
from fbnetv3.detection.inference.outputs.coco_results import CocoResults
from fbnetv3.detection.inference.outputs.crops import Crops
from fbnetv3.detection.inference.outputs.csv_table import CsvTable
from fbnetv3.detection.inference.outputs.detection_outputs import (
    DETECTION_OUTPUTS,
    DetectionOutput,
    OutputSettings,
)
from fbnetv3.detection.inference.outputs.pictures import PICTURES_FOLDER, VIDEOS_FOLDER, Pictures
from fbnetv3.detection.inference.outputs.yolo_text import YoloLabels

OUTPUT_FOLDERS = (PICTURES_FOLDER, VIDEOS_FOLDER, "crops")
"""Folders with images and videos, which are no inputs."""

__all__ = [
    "DETECTION_OUTPUTS",
    "OUTPUT_FOLDERS",
    "CocoResults",
    "Crops",
    "CsvTable",
    "DetectionOutput",
    "OutputSettings",
    "Pictures",
    "YoloLabels",
    "build_outputs",
]


def build_outputs(
    settings: OutputSettings, names: Sequence[str] = (), *, pictures: bool = True
) -> list[DetectionOutput]:
    """Build COCO results, pictures and videos unless they are not wanted, and other outputs by their names.

    Raises:
        UnknownNameError: a name is not registered.
    """
    wanted = dict.fromkeys(["json", *(["pictures"] if pictures else []), *names])
    return [DETECTION_OUTPUTS.get(name)(settings) for name in wanted]
