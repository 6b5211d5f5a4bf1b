"""Split architectures into the parts of two-stage detectors, and compute the cost of detectors.

A detection config is read without detectron2.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fbnetv3.arch.arch_registry import configs_folder, get_arch
from fbnetv3.arch.compound_scaling import with_same_padding
from fbnetv3.arch.definition import ArchDef, Row, Stage, feature_blocks
from fbnetv3.arch.layer_cost import Cost, avg_pool_cost, conv_cost
from fbnetv3.arch.network_cost import NetworkCost, compute_cost
from fbnetv3.errors import FieldError, UsageError
from fbnetv3.utils.checks import check_int, check_type, error_context
from fbnetv3.utils.yaml_files import BASE_KEY, read_mapping, read_with_bases

# Table 5 of the paper: parameters in millions and MACs in billions, by the detector's architecture
TABLE_5 = {
    "efficientnet_b0_det": (8.0, 3.6),
    "fbnetv3_a_det": (5.3, 2.9),
    "efficientnet_b1_det": (13.3, 5.6),
    "fbnetv3_e_det": (10.6, 5.3),
}
# The parts whose cost can be computed, by the config keys that choose them
_SUPPORTED_PARTS = {
    ("BACKBONE", "NAME"): "build_fbnetv3_backbone",
    ("RPN", "HEAD_NAME"): "FBNetV3RPNHead",
    ("ROI_BOX_HEAD", "NAME"): "FBNetV3BoxHead",
}


@dataclass(frozen=True)
class DetectorParts:
    """The parts of a C4 detector (Sec. 4.3), each as a separate architecture."""

    trunk: ArchDef  # all blocks before the last stride-2 block
    rpn_head: ArchDef  # a second copy of the trunk's last row, with stride 1
    box_head: ArchDef  # the last stride-2 block and all later ones, without the classifier's pooling block
    stride: int  # of the trunk's map: 16, or 8 for small images


def is_detection_variant(arch: ArchDef) -> bool:
    """Return whether an architecture consists of the released detectors' blocks and is therefore only for detectors."""
    return any(row.block == "mbconv_det" for stage in arch.stages for row in stage.rows)


def detector_parts(arch: ArchDef, rpn_blocks: int | None = None) -> DetectorParts:
    """Split an architecture into the parts of a detector.

    In all parts, depthwise convolutions pad by kernel // 2, which gives maps the sizes that detectors expect.

    Args:
        arch: any architecture with blocks at two strides or more.
        rpn_blocks: number of blocks of the RPN head; default: that of the trunk's last row.
    """
    features = feature_blocks(arch)
    if len(features) < 2:
        raise UsageError(
            f"{arch.name} has blocks at only one stride: it cannot be split into trunk and box head"
        )
    # The trunk ends with the last block of the second-coarsest stride
    last_block, stride = features[-2]
    trunk, box_head = [], []
    for s, stage in enumerate(with_same_padding(arch).stages):
        rows = [row for row in stage.rows if not row.spec_class.ends_in_pool]
        num_trunk_rows = sum((s, r) <= (last_block.stage, last_block.row) for r in range(len(rows)))
        trunk.append(rows[:num_trunk_rows])
        box_head.append(rows[num_trunk_rows:])
    last_row = trunk[last_block.stage][-1]
    rpn_row = replace(last_row, stride=1, repeat=last_row.repeat if rpn_blocks is None else rpn_blocks)

    def part(label: str, stages: list[list[Row]]) -> ArchDef:
        nonempty = tuple(Stage(tuple(rows)) for rows in stages if rows)
        return replace(arch, name=f"{arch.name}.{label}", stages=nonempty)

    return DetectorParts(
        part("trunk", trunk), part("rpn_head", [[rpn_row]]), part("box_head", box_head), stride
    )


@dataclass(frozen=True)
class DetectorCost:
    """Cost of a C4 detector for one image."""

    trunk: NetworkCost
    rpn_head: Cost
    box_head: Cost  # MACs and activations are those for one proposal
    predictor: Cost  # two linear layers; also for one proposal
    num_proposals: int

    @property
    def macs_conv(self) -> int:
        """Multiply-adds of all convolutions, as in Table 5. The predictor's linear layers are not included."""
        return self.trunk.macs_conv + self.rpn_head.macs_conv + self.num_proposals * self.box_head.macs_conv

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return sum(part.params for part in (self.trunk, self.rpn_head, self.box_head, self.predictor))


def detector_cost(
    arch: ArchDef,
    height: int = 384,
    width: int = 640,
    *,
    num_proposals: int = 75,
    num_classes: int = 80,
    num_anchors: int = 15,
    pooler_resolution: int = 6,
    rpn_blocks: int | None = None,
) -> DetectorCost:
    """Compute the cost of an architecture's Faster R-CNN C4 detector; the defaults are those of Table 5.

    Args:
        arch: the architecture.
        height: height of the image in pixels.
        width: width of the image in pixels.
        num_proposals: regions of an image that the box head processes.
        num_classes: classes, without the background.
        num_anchors: anchors per cell of the map.
        pooler_resolution: side of a proposal's pooled map, in cells.
        rpn_blocks: blocks of the RPN head; default: the number in the trunk's last row.

    Raises:
        UsageError: the network cannot be split into a detector, or the image is too small.
    """
    parts = detector_parts(arch, rpn_blocks)
    trunk = compute_cost(parts.trunk, (height, width), num_classes=0)
    end = trunk.blocks[-1]
    channels = end.block.spec.out_channels
    # The RPN head predicts objectness and four box deltas for each anchor
    rpn_head = compute_cost(parts.rpn_head, (end.height, end.width), num_classes=0, in_chans=channels)
    hidden = parts.rpn_head.out_channels
    objectness = conv_cost(end.height, end.width, hidden, num_anchors, bias=True)
    deltas = conv_cost(end.height, end.width, hidden, 4 * num_anchors, bias=True)
    # The box head pools its map; the predictor scores classes and background, and four box deltas for each class
    box_head = compute_cost(
        parts.box_head, (pooler_resolution, pooler_resolution), num_classes=0, in_chans=channels
    )
    box_end = box_head.blocks[-1]
    features = parts.box_head.out_channels
    scores = conv_cost(1, 1, features, num_classes + 1, bias=True)
    boxes = conv_cost(1, 1, features, 4 * num_classes, bias=True)
    return DetectorCost(
        trunk=trunk,
        rpn_head=rpn_head + objectness + deltas,
        box_head=box_head + avg_pool_cost(box_end.height, box_end.width, features),
        predictor=scores + boxes,
        num_proposals=num_proposals,
    )


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
    """Return the files of the detection configs that ship with the package by name, without mere `_BASE_` files."""
    files = sorted((configs_folder() / "coco").glob("*.yaml"))
    return {file.stem: file for file in files if not file.stem.startswith("base_")}


def find_detector_config(name: str | os.PathLike) -> Path | None:
    """Return the file of a detection config: a shipped one, with or without "coco/" and ".yaml", or the path of any.

    Return None for anything else, such as the file of an architecture.
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
        arguments = _cost_arguments(model)  # first, as it rejects detectors with other architectures
        arch = _config_value(model, "FBNETV3", "ARCH", "fbnetv3_a_det")
        check_type(arch, "MODEL.FBNETV3.ARCH", str, "the name of an architecture", FieldError)
        return DetectorSettings(file.stem, get_arch(arch), arguments, bool(model.get("MASK_ON", False)))


def _config_value(model: Mapping[str, Any], section: str, key: str, default: Any) -> Any:
    values = model.get(section, {})
    check_type(values, f"MODEL.{section}", dict, "a section", FieldError)
    value = values.get(key, default)
    if isinstance(default, int):
        check_int(value, f"MODEL.{section}.{key}", 0)
    return value


def _cost_arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    for (section, key), supported in _SUPPORTED_PARTS.items():
        part = _config_value(model, section, key, "(detectron2's default)")
        if part != supported:
            message = (
                f"{part} must be {supported}: only the cost of C4 detectors with FBNetV3 parts is known"
            )
            raise FieldError(message, f"MODEL.{section}.{key}")
    anchors = 1
    for key, default in (("SIZES", [[32, 64, 128, 256, 512]]), ("ASPECT_RATIOS", [[0.5, 1.0, 2.0]])):
        lists = _config_value(model, "ANCHOR_GENERATOR", key, default)
        if not (isinstance(lists, list) and lists and isinstance(lists[0], list)):
            raise FieldError(f"{lists!r} must be a list of lists", f"MODEL.ANCHOR_GENERATOR.{key}")
        anchors *= len(lists[0])
    return {
        "num_proposals": _config_value(model, "RPN", "POST_NMS_TOPK_TEST", 1000),
        "num_classes": _config_value(model, "ROI_HEADS", "NUM_CLASSES", 80),
        "num_anchors": anchors,
        "pooler_resolution": _config_value(model, "ROI_BOX_HEAD", "POOLER_RESOLUTION", 14),
        "rpn_blocks": _config_value(model, "FBNETV3", "RPN_BLOCKS", 0) or None,
    }
