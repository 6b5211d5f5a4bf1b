"""Names of tensors in the released detectors, under ours: both kinds of checkpoints load, with any checkpointer."""

from __future__ import annotations

import re
from collections.abc import MutableMapping

from torch import Tensor

# Layers of a block by the name that they have in the released files; the stem has no unit around its layers.
_LAYERS = {
    "conv": "0",
    "bn": "1",
    "pw.conv": "expand.0",
    "pw.bn": "expand.1",
    "dw.conv": "depthwise.0",
    "pwl.conv": "project.0",
    "pwl.bn": "project.1",
    "se.se.0.conv": "se.fc1",
    "se.se.1": "se.fc2",
}
_BLOCK = r"fbnetv2_\d+_(?P<block>\d+)\.(?P<layer>.+)\.(?P<leaf>\w+)"
# A part of a detector, the pattern of its blocks' names, and the prefix of ours.
_PATTERNS = {
    "trunk": (re.compile(rf"(?:body\.)?trunk(?P<stage>\d+)\.{_BLOCK}"), "stages"),
    "rpn_head": (re.compile(rf"rpn_feature\.(?P<stage>\d+)\.{_BLOCK}"), "blocks.stages"),
    "box_head": (re.compile(rf"roi_box_conv\.(?P<stage>\d+)\.{_BLOCK}"), "blocks.stages"),
}
_PREDICTORS = {"rpn_regressor.cls_logits.": "objectness_logits.", "rpn_regressor.bbox_pred.": "anchor_deltas."}


def our_name(part: str, name: str) -> str:
    """Our name of a tensor within "trunk", "rpn_head" or "box_head"; what is no released name stays as it is."""
    pattern, prefix = _PATTERNS[part]
    found = pattern.fullmatch(name)
    if found and found["layer"] in _LAYERS:
        return f"{prefix}.{found['stage']}.{found['block']}.{_LAYERS[found['layer']]}.{found['leaf']}"
    for theirs, ours in _PREDICTORS.items():
        if part == "rpn_head" and name.startswith(theirs):
            return name.replace(theirs, ours, 1)
    return name


def rename_released(state: MutableMapping[str, Tensor], prefix: str, part: str) -> None:
    """Give the tensors below `prefix` our names, in place."""
    for key in [key for key in state if key.startswith(prefix)]:
        ours = prefix + our_name(part, key.removeprefix(prefix))
        if ours != key:
            state[ours] = state.pop(key)
