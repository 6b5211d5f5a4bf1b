"""Fit the anchors of a config to the boxes of its training images, or use detectron2's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from scipy.optimize import minimize

from fbnetv3.detection.anchors.anchor_coverage import (
    LOW_IOUS,
    AnchorLevel,
    TrainingBoxes,
    best_ious,
    coverage_table,
    training_boxes,
)
from fbnetv3.errors import UsageError
from fbnetv3.utils.text import evenly_spaced

FIT_CHOICES = ("", "auto", "detectron2")
ANCHOR_KEYS = ("SIZES", "ASPECT_RATIOS")
_FIT_KEY = "MODEL.ANCHOR_GENERATOR.FIT"
_MAX_BOXES = 2000
_MAX_EVALUATIONS = 1000
_ARCHITECTURES = ("GeneralizedRCNN", "ProposalNetwork", "RetinaNet")
_SHARE_TO_MENTION = 0.05  # of boxes with a low IoU
_DETECTRON2_RATIOS = (0.5, 1.0, 2.0)
_DETECTRON2_SIZES = (32, 64, 128, 256, 512)


def add_anchor_config(cfg: CfgNode) -> None:
    """Add the key `MODEL.ANCHOR_GENERATOR.FIT` to a detectron2 config."""
    # "" keeps SIZES and ASPECT_RATIOS; "auto" fits as many to the training boxes, at the size of the training;
    # "detectron2" takes detectron2's. Their values replace these keys in the run's config.
    cfg.MODEL.ANCHOR_GENERATOR.FIT = ""


def resolve_anchors(
    cfg: CfgNode, dicts: Sequence[Mapping[str, Any]], recorded: Mapping[str, Any] | None = None
) -> tuple[CfgNode, str]:
    """Return the config with the anchors that `MODEL.ANCHOR_GENERATOR.FIT` asks for, and "" for this key.

    Also return a message for the log: a table that compares how well the anchors cover the boxes before and after, or
    if nothing changes, a line if they cover many boxes badly; "" if not.

    Args:
        cfg: detectron2's config.
        dicts: the training images.
        recorded: values by dotted key that a checkpoint records; a resumed run keeps its anchors.
    """
    section = cfg.MODEL.ANCHOR_GENERATOR
    if not section.FIT and cfg.MODEL.META_ARCHITECTURE not in _ARCHITECTURES:
        return cfg, ""  # one's own, which may have no anchors
    boxes = training_boxes(cfg, dicts)
    if section.NAME != "DefaultAnchorGenerator" or not len(boxes):
        if section.FIT:
            raise UsageError(
                f"{_FIT_KEY} {section.FIT} needs boxes to train on and MODEL.ANCHOR_GENERATOR.NAME "
                f"DefaultAnchorGenerator, not {section.NAME}"
            )
        return cfg, ""
    before = anchor_levels(cfg)
    ious = {"before": best_ious(boxes, before)}
    if not section.FIT:
        return cfg, _describe_low_coverage(ious["before"])
    values = {key: (recorded or {}).get(f"MODEL.ANCHOR_GENERATOR.{key}") for key in ANCHOR_KEYS}
    if not all(values.values()):
        fit = detectron2_anchors(cfg, before) if section.FIT == "detectron2" else fit_anchors(boxes, before)
        values = {
            "SIZES": _broadcast([list(level.sizes) for level in fit]),
            "ASPECT_RATIOS": _broadcast([list(level.aspect_ratios) for level in fit]),
        }
    resolved = cfg.clone()
    resolved.defrost()
    for key, value in values.items():
        resolved.MODEL.ANCHOR_GENERATOR[key] = value
    resolved.MODEL.ANCHOR_GENERATOR.FIT = ""
    resolved.freeze()
    ious["after"] = best_ious(boxes, anchor_levels(resolved))
    message = (
        f"{_FIT_KEY} {section.FIT}: MODEL.ANCHOR_GENERATOR.SIZES {values['SIZES']}, ASPECT_RATIOS "
        f"{values['ASPECT_RATIOS']}\n{coverage_table(boxes, ious, _positive_iou(cfg))}"
    )
    return resolved, message


def require_resolved_anchors(cfg: CfgNode, weights: str) -> None:
    """Require that a config gives the anchors of trained weights which do not record them."""
    if fit := cfg.MODEL.ANCHOR_GENERATOR.get("FIT"):
        raise UsageError(
            f"{_FIT_KEY} {fit} is for training, and {weights} does not record its anchors: set {_FIT_KEY} '' and "
            "MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS to those of the training"
        )


def anchor_levels(cfg: CfgNode) -> list[AnchorLevel]:
    """Return the anchors of a config, for each feature map that it makes proposals from."""
    section = cfg.MODEL.ANCHOR_GENERATOR
    # Only the shapes matter: nothing is initialized or loaded
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.BACKBONE.FREEZE_AT = 0
    plain.MODEL.FBNETV3.WEIGHTS = ""
    with torch.device("meta"):
        shapes = build_backbone(plain).output_shape()
    names = _part(cfg).IN_FEATURES
    if unknown := [name for name in names if name not in shapes]:
        key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "RPN"
        raise UsageError(
            f"MODEL.{key}.IN_FEATURES {', '.join(unknown)}: the backbone has the feature maps {', '.join(shapes)}"
        )
    strides = [shapes[name].stride for name in names]
    sizes, ratios = (_per_level(section[key], len(strides), key) for key in ANCHOR_KEYS)
    return [
        AnchorLevel(stride, section.OFFSET, tuple(map(float, level_sizes)), tuple(map(float, level_ratios)))
        for stride, level_sizes, level_ratios in zip(strides, sizes, ratios, strict=True)
    ]


def fit_anchors(boxes: TrainingBoxes, levels: Sequence[AnchorLevel]) -> list[AnchorLevel]:
    """Fit anchors, as many as `levels` have, to boxes: sizes in ascending order, and aspect ratios shared by all maps.

    Clusters of the sizes and of the aspect ratios (k-means, as in YOLOv2, on their logarithms) are the start of a
    search (Powell) for the largest mean IoU of a box with its best anchor on the grid.
    """
    boxes = boxes.select(np.array(evenly_spaced(range(len(boxes)), _MAX_BOXES)))
    log_sizes = np.log(boxes.sides.prod(1)) / 2
    log_ratios = np.log(boxes.sides[:, 1] / boxes.sides[:, 0])
    num_sizes = sum(len(level.sizes) for level in levels)
    start = np.concatenate(
        [_clusters(log_sizes, num_sizes), _clusters(log_ratios, len(levels[0].aspect_ratios))]
    )

    largest = float(boxes.image_sides.max())

    def build(logarithms: np.ndarray) -> list[AnchorLevel]:
        values = np.exp(logarithms[:num_sizes]).clip(1, largest)
        sizes = iter(sorted(round(float(size), 1) for size in values))
        ratios = tuple(
            sorted(max(0.01, round(float(ratio), 2)) for ratio in np.exp(logarithms[num_sizes:]))
        )
        return [
            AnchorLevel(level.stride, level.offset, tuple(next(sizes) for _ in level.sizes), ratios)
            for level in levels
        ]

    def loss(logarithms: np.ndarray) -> float:
        return 1 - best_ious(boxes, build(logarithms)).mean()

    options = {"maxfev": _MAX_EVALUATIONS, "xtol": 1e-2, "ftol": 1e-4}
    fit = build(minimize(loss, start, method="Powell", options=options).x)
    # Many anchors on several maps may already be at an optimum that the search does not reach
    return max(fit, list(levels), key=lambda anchors: best_ious(boxes, anchors).mean())


def detectron2_anchors(cfg: CfgNode, levels: Sequence[AnchorLevel]) -> list[AnchorLevel]:
    """Return detectron2's default anchors: all five sizes on a single map, else sizes in proportion to the strides."""
    anchors = []
    for level in levels:
        if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
            sizes = tuple(round(4 * level.stride * 2 ** (third / 3), 1) for third in range(3))
        elif len(levels) == 1:
            sizes = _DETECTRON2_SIZES
        else:
            sizes = (8 * level.stride,)
        anchors.append(AnchorLevel(level.stride, level.offset, sizes, _DETECTRON2_RATIOS))
    return anchors


def _clusters(values: np.ndarray, count: int) -> np.ndarray:
    """Return the centers of clusters, ascending; quantiles if there are fewer distinct values."""
    from sklearn.cluster import KMeans

    if len(np.unique(values.round(4))) <= count:
        return np.quantile(values, (np.arange(count) + 0.5) / count)
    return np.sort(KMeans(count, n_init=4, random_state=0).fit(values[:, None]).cluster_centers_[:, 0])


def _describe_low_coverage(ious: np.ndarray) -> str:
    share = (ious < LOW_IOUS[0]).mean()
    if share < _SHARE_TO_MENTION:
        return ""
    return (
        f"{100 * share:.0f}% of {len(ious)} boxes have an IoU below {LOW_IOUS[0]} with every anchor: {_FIT_KEY} auto "
        "would fit the anchors to them"
    )


def _positive_iou(cfg: CfgNode) -> float:
    """Return the IoU from which anchors are trained to detect a box."""
    return _part(cfg).IOU_THRESHOLDS[1]


def _part(cfg: CfgNode) -> CfgNode:
    return cfg.MODEL.RETINANET if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else cfg.MODEL.RPN


def _per_level(values: Sequence[Any], num_levels: int, key: str) -> list[Sequence[float]]:
    """Return the values of each map, as detectron2 reads them: one list may stand for all maps."""
    nested = [values] if not isinstance(values[0], Sequence) else list(values)
    if len(nested) == 1:
        return nested * num_levels
    if len(nested) != num_levels:
        raise UsageError(
            f"MODEL.ANCHOR_GENERATOR.{key} has {len(nested)} lists for {num_levels} feature maps: give one list for "
            "all, or one for each"
        )
    return nested


def _broadcast(values: list[list[float]]) -> list[list[float]]:
    """Return one list if all maps have the same values."""
    return values[:1] if all(value == values[0] for value in values) else values
