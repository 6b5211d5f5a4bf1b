"""What a detector's config says about its cost, read without detectron2."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fbnetv3.arch.arch_registry import configs_folder, get_arch
from fbnetv3.arch.definition import ArchDef
from fbnetv3.arch.detector_cost import DetectorCost, detector_cost
from fbnetv3.errors import FieldError, UsageError
from fbnetv3.utils.yaml_files import read_mapping, read_with_bases

# The parts that `detector_cost` knows, by their keys.
_COUNTED = {
    ("BACKBONE", "NAME"): "build_fbnetv3_backbone",
    ("RPN", "HEAD_NAME"): "FBNetV3RPNHead",
    ("ROI_BOX_HEAD", "NAME"): "FBNetV3BoxHead",
}
_BASE_KEY = "_BASE_"


@dataclass(frozen=True)
class DetectorSettings:
    """What the cost of a detector of the C4 kind hangs on.

    Attributes:
        name: what to call it.
        arch: the architecture of trunk, RPN head and box head.
        proposals, num_classes, anchors, pooled, rpn_blocks: as for `fbnetv3.arch.detector_cost.detector_cost`.
        has_masks: whether there is a mask head besides, whose cost is not counted.
    """

    name: str
    arch: ArchDef
    proposals: int = 75
    num_classes: int = 80
    anchors: int = 15
    pooled: int = 6
    rpn_blocks: int | None = None
    has_masks: bool = False

    def with_classes(self, num_classes: int) -> DetectorSettings:
        """The same with another number of classes."""
        return replace(self, num_classes=num_classes)

    def cost(self, height: int = 384, width: int = 640) -> DetectorCost:
        """Cost for an image of so many pixels.

        Raises:
            UsageError: the network cannot be cut into a detector, or the image is too small.
        """
        return detector_cost(
            self.arch,
            height,
            width,
            proposals=self.proposals,
            num_classes=self.num_classes,
            anchors=self.anchors,
            pooled=self.pooled,
            rpn_blocks=self.rpn_blocks,
        )


def list_detector_configs() -> dict[str, Path]:
    """The detectors' configs that come along: their files by name."""
    return {file.stem: file for file in sorted((configs_folder() / "coco").glob("*.yaml"))}


def find_detector_config(name: str | os.PathLike) -> Path | None:
    """The file of a detector's config: by the name of one that comes along, with or without "coco/" and ".yaml", or by
    its path. None for what is no detector's config, an architecture's file among it.

    Raises:
        FieldError: the path leads to a file that is no YAML or cannot be read.
    """
    name = os.fspath(name)
    stem = name.removeprefix("coco/").removesuffix(".yaml")
    if stem in (files := list_detector_configs()):
        return files[stem]
    if not name.endswith((".yaml", ".yml")):
        return None
    keys = read_mapping(name, FieldError, ("MODEL",)).keys()
    # an architecture may have a _BASE_ too, and has a name
    return Path(name) if "MODEL" in keys or (_BASE_KEY in keys and "name" not in keys) else None


def read_detector_config(file: Path) -> DetectorSettings:
    """What a config says about a detector's cost; where it says nothing, detectron2's defaults hold.

    Raises:
        UsageError: it is no detector of the C4 kind with parts of ours, or is no YAML.
        UnknownNameError: its architecture is not registered.
        ArchError: its architecture's file describes no network.
    """
    model = read_with_bases(str(file), ("MODEL.FBNETV3.ARCH",)).get("MODEL") or {}

    def value(part: str, key: str, default: Any) -> Any:
        section = model.get(part) if isinstance(model, dict) else model
        if not isinstance(section or {}, dict):
            raise UsageError(f"{file}: MODEL.{part} is a section, not {section!r}")
        found = (section or {}).get(key, default)
        if isinstance(default, int) and (type(found) is not int or found < 0):
            raise UsageError(f"{file}: MODEL.{part}.{key} {found!r} is not a whole number of at least 0")
        return found

    for (part, key), wanted in _COUNTED.items():
        if (found := value(part, key, "detectron2's default")) != wanted:
            raise UsageError(
                f"{file}: cost is counted for detectors of the C4 kind with parts of ours alone: MODEL.{part}.{key} is "
                f"{found}, not {wanted}"
            )
    sizes = value("ANCHOR_GENERATOR", "SIZES", [[32, 64, 128, 256, 512]])
    ratios = value("ANCHOR_GENERATOR", "ASPECT_RATIOS", [[0.5, 1.0, 2.0]])
    for key, lists in (("SIZES", sizes), ("ASPECT_RATIOS", ratios)):
        if not isinstance(lists, list) or not lists or not isinstance(lists[0], list):
            raise UsageError(f"{file}: MODEL.ANCHOR_GENERATOR.{key} {lists!r} is not a list of lists")
    arch = value("FBNETV3", "ARCH", "fbnetv3_a_det")
    if not isinstance(arch, str):
        raise UsageError(f"{file}: MODEL.FBNETV3.ARCH {arch!r} is not the name of an architecture")
    return DetectorSettings(
        name=file.stem,
        arch=get_arch(arch),
        proposals=value("RPN", "POST_NMS_TOPK_TEST", 1000),
        num_classes=value("ROI_HEADS", "NUM_CLASSES", 80),
        anchors=len(sizes[0]) * len(ratios[0]),
        pooled=value("ROI_BOX_HEAD", "POOLER_RESOLUTION", 14),
        rpn_blocks=value("FBNETV3", "RPN_BLOCKS", 0) or None,
        has_masks=bool(model.get("MASK_ON", False)),
    )
