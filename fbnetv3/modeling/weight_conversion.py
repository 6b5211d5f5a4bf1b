"""Convert state dicts from the names of mobile-vision (the authors) and timm to this project's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, cast

import torch
from torch import Tensor

from fbnetv3.arch import ArchDef
from fbnetv3.arch.block_specs import MBConvSpec
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_contents import StateDict, common_wrapper_prefix
from fbnetv3.utils.text import first_few

Naming = Literal["fbnetv3", "mobile_vision", "timm"]

# Layer names of each kind of block: mobile-vision's -> this project's
_MOBILE_VISION_NAMES = {
    "conv": {"conv": "0", "bn": "1"},
    "mbconv": {
        "pw.conv": "expand.0",
        "pw.bn": "expand.1",
        "dw.conv": "depthwise.0",
        "dw.bn": "depthwise.1",
        "se.se.0.conv": "se.fc1",
        "se.se.1": "se.fc2",
        "pwl.conv": "project.0",
        "pwl.bn": "project.1",
    },
    "mbpool": {"pw.conv": "expand.0", "pw.bn": "expand.1", "pwl.conv": "project"},
}
_TIMM_SQUEEZE = {"se.conv_reduce": "se.fc1", "se.conv_expand": "se.fc2"}
_TIMM_MBCONV = {
    "conv_pw": "expand.0",
    "bn1": "expand.1",
    "conv_dw": "depthwise.0",
    "bn2": "depthwise.1",
    "conv_pwl": "project.0",
    "bn3": "project.1",
    **_TIMM_SQUEEZE,
}
# Without an expansion, timm counts the layers from the depthwise one
_TIMM_MBCONV_WITHOUT_EXPANSION = {
    "conv_dw": "depthwise.0",
    "bn1": "depthwise.1",
    "conv_pw": "project.0",
    "bn2": "project.1",
    **_TIMM_SQUEEZE,
}
# The first part of the names of a network's tensors: this project's, mobile-vision's, timm's
NETWORK_PARTS = frozenset(
    ("backbone", "stages", "head", "conv_stem", "bn1", "blocks", "conv_head", "classifier")
)
# Names of a network's first tensors after their prefix: mobile-vision's and this project's, timm's
_FIRST_TENSOR = re.compile(
    r"(?P<prefix>(?:[^.]+\.)*?)(?:(?:backbone\.)?stages\.(?:xif0_0|0\.0)\..*|conv_stem\.weight)"
)
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")


def convert_state_dict(
    state_dict: StateDict, arch: ArchDef, source: str
) -> tuple[Naming, dict[str, Tensor]]:
    """Return the naming of a classifier's weights, and the weights under this project's names.

    Tensors of unknown layers keep their names. `source` is what errors call the weights.
    """
    weights = dict(state_dict)
    if any(key.startswith("backbone.stages.xif") for key in weights):
        return "mobile_vision", _rename(weights, mobile_vision_names(arch))
    if "conv_stem.weight" in weights:
        rows = [row for stage in arch.stages for row in stage.rows]
        if any(row.kernel and row.dw_padding not in (None, row.kernel // 2) for row in rows):
            raise WeightsError(
                f"{source}: timm's weights need depthwise padding kernel // 2, which {arch.name} does not have: "
                "use the same network with that padding (fbnetv3_b_same_padding, or `derive: {same_padding: true}`)"
            )
        # timm has a linear classifier instead of a 1x1 convolution, and no bias in the stem
        classifier = weights.get("classifier.weight")
        if classifier is not None and classifier.ndim == 2:
            weights["classifier.weight"] = classifier[:, :, None, None]
        weights.setdefault("conv_stem.bias", torch.zeros(len(weights["conv_stem.weight"])))
        return "timm", _rename(weights, timm_names(arch, weights))
    if any(key.startswith(("backbone.stages.0.", "stages.0.")) for key in weights):
        return "fbnetv3", weights
    raise WeightsError(
        f"{source}: the keys match no known naming (this project's, mobile-vision's, or timm's for FBNetV3): "
        f"{first_few(list(weights))}"
    )


def network_prefixes(names: Iterable[str]) -> set[str]:
    """Return the prefixes of networks with any known naming among the names of a state dict."""
    matches = [match for match in map(_FIRST_TENSOR.fullmatch, names) if match]
    return {match["prefix"] for match in matches} or common_wrapper_prefix(names)


def _rename(weights: StateDict, new_layers: dict[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in weights.items():
        layer, _, tensor = key.rpartition(".")
        renamed[f"{new_layers[layer]}.{tensor}" if layer in new_layers else key] = value
    return renamed


def mobile_vision_names(arch: ArchDef) -> dict[str, str]:
    """Map mobile-vision's names of a classifier's layers to this project's."""
    names = {"head.conv": "head"}
    for block in arch.blocks():
        prefix = f"backbone.stages.xif{block.stage}_{block.index}"
        for old, new in _MOBILE_VISION_NAMES.get(block.kind, {}).items():
            names[f"{prefix}.{old}"] = f"backbone.stages.{block.name}.{new}"
    return names


def timm_names(arch: ArchDef, state_dict: StateDict) -> dict[str, str]:
    """Map timm's names of a classifier's layers to this project's.

    timm keeps the stem separate and divides the stages differently, so blocks are matched by their order.
    """
    matches = [match for match in map(_TIMM_BLOCK.match, state_dict) if match]
    positions = sorted({(int(match[1]), int(match[2])) for match in matches})
    stem, *blocks = arch.blocks()
    names = {
        "classifier": "head",
        "conv_stem": f"backbone.stages.{stem.name}.0",
        "bn1": f"backbone.stages.{stem.name}.1",
    }
    for block, (stage, index) in zip(blocks, positions, strict=False):
        layers: dict[str, str] = {}
        if block.kind == "mbconv":
            has_expand = cast("MBConvSpec", block.spec).has_expand
            layers = _TIMM_MBCONV if has_expand else _TIMM_MBCONV_WITHOUT_EXPANSION
        elif block.spec.ends_in_pool:
            layers = {"conv": "expand.0", "bn1": "expand.1"}
            # timm has the last 1x1 convolution outside its blocks
            names["conv_head"] = f"backbone.stages.{block.name}.project"
        for old, new in layers.items():
            names[f"blocks.{stage}.{index}.{old}"] = f"backbone.stages.{block.name}.{new}"
    return names
