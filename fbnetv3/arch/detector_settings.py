"""Settings that determine a detector's cost, read from its config without detectron2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbnetv3.arch.arch_registry import configs_folder, get_arch
from fbnetv3.arch.definition import ArchDef
from fbnetv3.arch.detector_cost import DetectorCost, detector_cost
from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_int, check_type, error_context
from fbnetv3.utils.yaml_files import BASE_KEY, read_mapping, read_with_bases

# The parts whose cost can be computed, by the config keys that choose them
_SUPPORTED_PARTS = {
    ("BACKBONE", "NAME"): "build_fbnetv3_backbone",
    ("RPN", "HEAD_NAME"): "FBNetV3RPNHead",
    ("ROI_BOX_HEAD", "NAME"): "FBNetV3BoxHead",
}


@dataclass(frozen=True)
class DetectorSettings:
    """Config values that determine the cost of a C4 detector.

    Attributes:
        name: name of the config.
        arch: architecture of trunk, RPN head and box head.
        proposals, num_classes, anchors, pooled, rpn_blocks: see `fbnetv3.arch.detector_cost.detector_cost`.
        has_masks: whether there is also a mask head, whose cost is not included.
    """

    name: str
    arch: ArchDef
    proposals: int = 75
    num_classes: int = 80
    anchors: int = 15
    pooled: int = 6
    rpn_blocks: int | None = None
    has_masks: bool = False

    def cost(self, height: int = 384, width: int = 640) -> DetectorCost:
        """Compute the cost for an image of this size in pixels.

        Raises:
            UsageError: the network cannot be split into a detector, or the image is too small.
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
    """Return the detection configs that ship with the package: files by name."""
    return {file.stem: file for file in sorted((configs_folder() / "coco").glob("*.yaml"))}


def find_detector_config(name: str | os.PathLike) -> Path | None:
    """Return the file of a detection config, or None for anything else, such as the file of an architecture.

    Args:
        name: a shipped config, with or without "coco/" and ".yaml", or the path of a file.

    Raises:
        FieldError: the file is not YAML or cannot be read.
    """
    name = os.fspath(name)
    stem = name.removeprefix("coco/").removesuffix(".yaml")
    shipped = list_detector_configs()
    if stem in shipped:
        return shipped[stem]
    if not name.endswith((".yaml", ".yml")):
        return None
    keys = read_mapping(name, FieldError).keys()
    # An architecture may also have a _BASE_, but always has a name
    is_config = "MODEL" in keys or (BASE_KEY in keys and "name" not in keys)
    return Path(name) if is_config else None


def read_detector_config(file: Path) -> DetectorSettings:
    """Read the settings from a detection config; keys that it does not set have detectron2's defaults.

    Raises:
        UsageError: not a C4 detector with this package's parts, or an invalid value.
        UnknownNameError: its architecture is not registered.
        ArchError: its architecture's file is invalid.
    """
    with error_context(file=str(file)):
        settings = _parse_model(read_with_bases(file, ("MODEL.FBNETV3.ARCH",)).get("MODEL") or {})
    return DetectorSettings(name=file.stem, **settings)


def _parse_model(model: Mapping[str, Any]) -> dict[str, Any]:
    def get(section: str, key: str, default: Any) -> Any:
        values = model.get(section, {})
        check_type(values, f"MODEL.{section}", dict, "a section", FieldError)
        value = values.get(key, default)
        if isinstance(default, int):
            check_int(value, f"MODEL.{section}.{key}", 0)
        return value

    check_type(model, "MODEL", dict, "a section", FieldError)
    for (section, key), supported in _SUPPORTED_PARTS.items():
        part = get(section, key, "detectron2's default")
        if part != supported:
            raise FieldError(
                "cost can only be computed for C4 detectors with FBNetV3 parts: "
                f"MODEL.{section}.{key} is {part}, not {supported}"
            )
    sizes = get("ANCHOR_GENERATOR", "SIZES", [[32, 64, 128, 256, 512]])
    ratios = get("ANCHOR_GENERATOR", "ASPECT_RATIOS", [[0.5, 1.0, 2.0]])
    for key, lists in (("SIZES", sizes), ("ASPECT_RATIOS", ratios)):
        if not isinstance(lists, list) or not lists or not isinstance(lists[0], list):
            raise FieldError(f"{lists!r} must be a list of lists", f"MODEL.ANCHOR_GENERATOR.{key}")
    arch = get("FBNETV3", "ARCH", "fbnetv3_a_det")
    check_type(arch, "MODEL.FBNETV3.ARCH", str, "the name of an architecture", FieldError)
    return {
        "arch": get_arch(arch),
        "proposals": get("RPN", "POST_NMS_TOPK_TEST", 1000),
        "num_classes": get("ROI_HEADS", "NUM_CLASSES", 80),
        "anchors": len(sizes[0]) * len(ratios[0]),
        "pooled": get("ROI_BOX_HEAD", "POOLER_RESOLUTION", 14),
        "rpn_blocks": get("FBNETV3", "RPN_BLOCKS", 0) or None,
        "has_masks": bool(model.get("MASK_ON", False)),
    }
