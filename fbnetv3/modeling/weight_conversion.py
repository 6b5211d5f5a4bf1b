"""Convert state dicts from the layouts of mobile-vision (the authors) and timm to this project's."""

from __future__ import annotations

import re
from typing import Literal, cast

import torch
from torch import Tensor

from fbnetv3.arch import ArchDef
from fbnetv3.arch.block_specs import MBConvSpec
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_files import StateDict
from fbnetv3.utils.text import first_few

Layout = Literal["fbnetv3", "mobile_vision", "timm"]

_BATCHNORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")


def detect_layout(state_dict: StateDict, source: str) -> Layout:
    """Return the layout of a state dict.

    Raises:
        WeightsError: the layout is unknown.
    """
    if any(key.startswith("backbone.stages.xif") for key in state_dict):
        return "mobile_vision"
    if "conv_stem.weight" in state_dict:
        return "timm"
    if any(key.startswith(("backbone.stages.0.", "stages.0.")) for key in state_dict):
        return "fbnetv3"
    raise WeightsError(
        f"{source}: unknown layout of weights, not this project's, mobile-vision's or timm's FBNetV3; its keys are "
        f"{first_few(list(state_dict))}"
    )


def convert_state_dict(state_dict: StateDict, arch: ArchDef, layout: Layout, source: str) -> dict[str, Tensor]:
    """Rename the tensors of a classifier to this project's layout. Unknown tensors keep their names.

    Args:
        state_dict: the classifier's weights.
        arch: architecture of the classifier.
        layout: layout of the weights.
        source: name of the weights in error messages.

    Raises:
        WeightsError: timm's networks pad their depthwise convolutions differently from `arch`.
    """
    if layout == "fbnetv3":
        return dict(state_dict)
    if layout == "timm":
        _check_padding(arch, source)
        state_dict = _adapt_timm_shapes(state_dict)
        new_names = timm_names(arch, state_dict)
    else:
        new_names = mobile_vision_names(arch)
    return {new_names.get(key, key): value for key, value in state_dict.items()}


def _check_padding(arch: ArchDef, source: str) -> None:
    for stage in arch.stages:
        for row in stage.rows:
            if row.kernel and row.dw_padding not in (None, row.kernel // 2):
                raise WeightsError(
                    f"{source}: timm's weights need depthwise padding kernel // 2, which {arch.name} does not have: "
                    "use the same network with that padding (fbnetv3_b_same_padding, or "
                    "`derive: {same_padding: true}`)"
                )


def _adapt_timm_shapes(state_dict: StateDict) -> StateDict:
    """Make timm's linear classifier a 1x1 convolution, and add the bias that timm's stem lacks."""
    adapted = dict(state_dict)
    classifier = adapted.get("classifier.weight")
    if classifier is not None and classifier.ndim == 2:
        adapted["classifier.weight"] = classifier[:, :, None, None]
    adapted.setdefault("conv_stem.bias", torch.zeros(len(state_dict["conv_stem.weight"])))
    return adapted


def mobile_vision_names(arch: ArchDef) -> dict[str, str]:
    """Map mobile-vision's names of a classifier's tensors to this project's."""
    names = {"head.conv.weight": "head.weight", "head.conv.bias": "head.bias"}
    for block in arch.blocks():
        old = f"backbone.stages.xif{block.stage}_{block.index}"
        new = f"backbone.stages.{block.name}"
        # The stem, inverted residuals, and the pooling block
        if block.kind == "conv":
            names |= _unit_names(f"{old}.conv", f"{old}.bn", new, bias=True)
        elif block.kind == "mbconv":
            for old_unit, new_unit in (("pw", "expand"), ("dw", "depthwise"), ("pwl", "project")):
                unit = f"{old}.{old_unit}"
                names |= _unit_names(f"{unit}.conv", f"{unit}.bn", f"{new}.{new_unit}")
            names |= _conv_names(f"{old}.se.se.0.conv", f"{new}.se.fc1")
            names |= _conv_names(f"{old}.se.se.1", f"{new}.se.fc2")
        elif block.spec.pools:
            names |= _unit_names(f"{old}.pw.conv", f"{old}.pw.bn", f"{new}.expand")
            names[f"{old}.pwl.conv.weight"] = f"{new}.project.weight"
    return names


def timm_names(arch: ArchDef, state_dict: StateDict) -> dict[str, str]:
    """Map timm's names of a classifier's tensors to this project's.

    timm keeps the stem apart and divides the stages differently, so blocks are matched by their order.
    """
    names = {"classifier.weight": "head.weight", "classifier.bias": "head.bias"}
    # Stage and index of each blocks.S.I; the stem is not among them
    matches = [match for match in map(_TIMM_BLOCK.match, state_dict) if match]
    positions = sorted({(int(match[1]), int(match[2])) for match in matches})
    stem = ""
    old_blocks = [stem, *(f"blocks.{stage}.{index}" for stage, index in positions)]
    for block, old in zip(arch.blocks(), old_blocks, strict=False):
        new = f"backbone.stages.{block.name}"
        if block.kind == "conv":
            names |= _unit_names("conv_stem", "bn1", new, bias=True)
        elif block.kind == "mbconv":
            # Without an expansion, timm counts its layers from the depthwise one
            if cast("MBConvSpec", block.spec).has_expand:
                names |= _unit_names(f"{old}.conv_pw", f"{old}.bn1", f"{new}.expand")
                names |= _unit_names(f"{old}.conv_dw", f"{old}.bn2", f"{new}.depthwise")
                names |= _unit_names(f"{old}.conv_pwl", f"{old}.bn3", f"{new}.project")
            else:
                names |= _unit_names(f"{old}.conv_dw", f"{old}.bn1", f"{new}.depthwise")
                names |= _unit_names(f"{old}.conv_pw", f"{old}.bn2", f"{new}.project")
            names |= _conv_names(f"{old}.se.conv_reduce", f"{new}.se.fc1")
            names |= _conv_names(f"{old}.se.conv_expand", f"{new}.se.fc2")
        elif block.spec.pools:
            names |= _unit_names(f"{old}.conv", f"{old}.bn1", f"{new}.expand")
            # timm has the last 1x1 convolution outside its blocks
            names["conv_head.weight"] = f"{new}.project.weight"
    return names


def _unit_names(old_conv: str, old_norm: str, new: str, bias: bool = False) -> dict[str, str]:
    """Map the names of a convolution and its BatchNorm to those of a unit, whose items 0 and 1 they are."""
    names = {f"{old_conv}.weight": f"{new}.0.weight"}
    if bias:
        names[f"{old_conv}.bias"] = f"{new}.0.bias"
    return names | {f"{old_norm}.{tensor}": f"{new}.1.{tensor}" for tensor in _BATCHNORM_TENSORS}


def _conv_names(old: str, new: str) -> dict[str, str]:
    return {f"{old}.{tensor}": f"{new}.{tensor}" for tensor in ("weight", "bias")}
