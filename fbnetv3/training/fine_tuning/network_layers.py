"""Divide a classifier by depth: the stages and blocks of its trunk, and its head."""

from __future__ import annotations

from itertools import groupby

from torch import nn

Modules = list[nn.Module]


def find_head(model: nn.Module) -> nn.Module:
    """Return the layer that has one output per class: the last linear layer or convolution."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return layers[-1]


def trunk_stages(model: nn.Module) -> list[Modules]:
    """Return the modules of each stage of a classifier's trunk; the first stage is the stem.

    In this project's networks, a stage is one of the architecture's. In torchvision's, it is a child of `features`, or
    without that (as in ResNets) a child of the network; children before, between and after its sequential ones, such as
    `conv1` and `bn1`, form stages of their own.
    """
    container = getattr(getattr(model, "backbone", model), "stages", getattr(model, "features", model))
    head = find_head(model)
    children = [
        child
        for child in container.children()
        if any(True for _ in child.parameters()) and head not in child.modules()
    ]
    if isinstance(container, nn.Sequential):
        return [[child] for child in children]
    # Only neighbors that are single layers belong together
    runs = groupby(enumerate(children), lambda item: item[0] if isinstance(item[1], nn.Sequential) else -1)
    return [[child for _, child in run] for _, run in runs]


def trunk_blocks(model: nn.Module) -> list[Modules]:
    """Return the modules of each block of a trunk, by depth: those of a plain sequence are blocks of their own."""
    blocks: list[Modules] = []
    for stage in trunk_stages(model):
        if len(stage) == 1 and type(stage[0]) is nn.Sequential:
            blocks += [[block] for block in stage[0]]
        else:
            blocks.append(stage)
    return blocks


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Map the name of every parameter to its depth: 0 for the stem, one more per block, then the head.

    Parameters outside the blocks, such as those of a hidden layer of the classifier, have the head's depth.
    """
    blocks = trunk_blocks(model)
    depth_of = {
        id(parameter): depth
        for depth, block in enumerate(blocks)
        for module in block
        for parameter in module.parameters()
    }
    return {name: depth_of.get(id(parameter), len(blocks)) for name, parameter in model.named_parameters()}
