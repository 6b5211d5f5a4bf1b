"""Settings that determine a detector's cost, read from its config without detectron2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A C4 detector: its architecture, and what else determines its cost."""

    name: str
    arch: ArchDef
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of `detector_cost`
    has_masks: bool = False  # whether there is also a mask head, whose cost is not included

    def cost(self, height: int = 384, width: int = 640) -> DetectorCost:
        """Compute the cost for an image of this size in pixels."""
        return detector_cost(self.arch, height, width, **self.arguments)


def list_detector_configs() -> dict[str, Path]:
    """Return the detection configs that ship with the package: files by name."""
    return {file.stem: file for file in sorted((configs_folder() / "coco").glob("*.yaml"))}


def find_detector_config(name: str | os.PathLike) -> Path | None:
    """Return the file of a detection config, or None for anything else, such as the file of an architecture.

    Args:
        name: a shipped config, with or without "coco/" and ".yaml", or the path of a file.
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
    """Read the settings of a C4 detector; keys that the config does not set have detectron2's defaults."""
    with error_context(file=str(file)):
        model = read_with_bases(file, ("MODEL.FBNETV3.ARCH",)).get("MODEL") or {}
        check_type(model, "MODEL", dict, "a section", FieldError)
        arch = _value(model, "FBNETV3", "ARCH", "fbnetv3_a_det")
        check_type(arch, "MODEL.FBNETV3.ARCH", str, "the name of an architecture", FieldError)
        return DetectorSettings(file.stem, get_arch(arch), _cost_arguments(model), bool(model.get("MASK_ON", False)))


def _value(model: Mapping[str, Any], section: str, key: str, default: Any) -> Any:
    values = model.get(section, {})
    check_type(values, f"MODEL.{section}", dict, "a section", FieldError)
    value = values.get(key, default)
    if isinstance(default, int):
        check_int(value, f"MODEL.{section}.{key}", 0)
    return value


def _cost_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    for (section, key), supported in _SUPPORTED_PARTS.items():
        part = _value(model, section, key, "detectron2's default")
        if part != supported:
            message = f"{part} must be {supported}: cost can only be computed for C4 detectors with FBNetV3 parts"
            raise FieldError(message, f"MODEL.{section}.{key}")
    anchors = 1
    for key, default in (("SIZES", [[32, 64, 128, 256, 512]]), ("ASPECT_RATIOS", [[0.5, 1.0, 2.0]])):
        lists = _value(model, "ANCHOR_GENERATOR", key, default)
        if not (isinstance(lists, list) and lists and isinstance(lists[0], list)):
            raise FieldError(f"{lists!r} must be a list of lists", f"MODEL.ANCHOR_GENERATOR.{key}")
        anchors *= len(lists[0])
    return {
        "proposals": _value(model, "RPN", "POST_NMS_TOPK_TEST", 1000),
        "num_classes": _value(model, "ROI_HEADS", "NUM_CLASSES", 80),
        "anchors": anchors,
        "pooled": _value(model, "ROI_BOX_HEAD", "POOLER_RESOLUTION", 14),
        "rpn_blocks": _value(model, "FBNETV3", "RPN_BLOCKS", 0) or None,
    }
