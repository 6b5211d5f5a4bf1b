"""Tensor names of the released detectors, converted to this project's, so any checkpointer loads both."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# Layers of a block: released name -> our name
_LAYERS = {
    "conv": "0",  # in the stem
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
# Parts of a detector: pattern of the released names of their blocks, and prefix of ours
_PATTERNS = {
    "trunk": (re.compile(rf"(?:body\.)?trunk(?P<stage>\d+)\.{_BLOCK}"), "stages"),
    "rpn_head": (re.compile(rf"rpn_feature\.(?P<stage>\d+)\.{_BLOCK}"), "blocks.stages"),
    "box_head": (re.compile(rf"roi_box_conv\.(?P<stage>\d+)\.{_BLOCK}"), "blocks.stages"),
}
_RPN_PREDICTORS = {"rpn_regressor.cls_logits.": "objectness_logits.", "rpn_regressor.bbox_pred.": "anchor_deltas."}


def convert_released_name(part: str, name: str) -> str:
    """Return our name of a released tensor; `part` is a key of `_PATTERNS`. Any other name is returned unchanged."""
    pattern, prefix = _PATTERNS[part]
    match = pattern.fullmatch(name)
    if match and match["layer"] in _LAYERS:
        return f"{prefix}.{match['stage']}.{match['block']}.{_LAYERS[match['layer']]}.{match['leaf']}"
    if part == "rpn_head":
        for released_prefix, our_prefix in _RPN_PREDICTORS.items():
            name = name.replace(released_prefix, our_prefix)
    return name


class ReleasedNames(nn.Module):
    """A part of a detector, by its name in `_PATTERNS`, whose weights load with the released names too."""

    released_part: str

    def rename_released_tensors(self, state: dict[str, Any], prefix: str) -> None:
        """Rename the tensors whose names begin with the part's prefix in place."""
        for key in [key for key in state if key.startswith(prefix)]:
            new_key = prefix + convert_released_name(self.released_part, key.removeprefix(prefix))
            if new_key != key:
                state[new_key] = state.pop(key)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.rename_released_tensors(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
