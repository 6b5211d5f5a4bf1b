"""Convert the tensor names of the released detectors to this project's, so that any checkpointer loads both."""

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
# Released names of the blocks of each part
_BLOCK = re.compile(
    r"(?P<part>(body\.)?trunk|rpn_feature\.|roi_box_conv\.)(?P<stage>\d+)\."
    r"fbnetv2_\d+_(?P<block>\d+)\.(?P<layer>.+)\.(?P<leaf>\w+)"
)
_RPN_PREDICTORS = {
    "rpn_regressor.cls_logits": "objectness_logits",
    "rpn_regressor.bbox_pred": "anchor_deltas",
}


def rename_released_tensors(state: dict[str, Any], prefix: str) -> None:
    """Rename the released tensors of a part of a detector, whose names begin with `prefix`, in place."""
    for key in [key for key in state if key.startswith(prefix)]:
        name = key.removeprefix(prefix)
        match = _BLOCK.fullmatch(name)
        if match and match["layer"] in _LAYERS:
            stages = "stages" if match["part"].endswith("trunk") else "blocks.stages"
            name = f"{stages}.{match['stage']}.{match['block']}.{_LAYERS[match['layer']]}.{match['leaf']}"
        for released_name, our_name in _RPN_PREDICTORS.items():
            name = name.replace(released_name, our_name)
        if prefix + name != key:
            state[prefix + name] = state.pop(key)


class ReleasedNamesMixin(nn.Module):
    """A part of a detector that also loads weights under their released names."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename_released_tensors(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
