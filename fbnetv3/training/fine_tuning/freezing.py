"""Freeze parts of a network: their parameters get no gradient, and they stay in evaluation mode during training."""

from __future__ import annotations

from torch import nn

from fbnetv3.errors import UsageError, suggest
from fbnetv3.training.fine_tuning.network_layers import Modules, find_head, trunk_stages

PARTS = ("none", "stem", "trunk")


def freeze(model: nn.Module, part: str = "none", *, norms: bool = False) -> Modules:
    """Freeze a part of a classifier and return its modules, which `Trainer` keeps in evaluation mode.

    In evaluation mode, BatchNorm normalizes with its running statistics and does not update them; dropout and
    stochastic depth are off.

    Args:
        model: classifier of this project or of torchvision.
        part: "none", "stem", "trunk" (everything but the head), or the number of stages, such as "3": the stem and the
            stages after it.
        norms: whether to freeze all BatchNorm layers, too: statistics, scales and shifts.

    Raises:
        UsageError: there is no such part, or fewer stages.
    """
    modules = _find_part(model, part)
    if norms:
        modules += [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for module in modules:
        module.eval().requires_grad_(False)
    if part == "trunk":  # also parameters of modules that have submodules, such as a class token
        head = find_head(model)
        model.requires_grad_(False)
        head.requires_grad_(True)
    return modules


def _find_part(model: nn.Module, part: str) -> Modules:
    if part == "none":
        return []
    if part == "trunk":
        head = find_head(model)
        layers = [m for m in model.modules() if m is not head and not any(True for _ in m.children())]
        # Dropout before the head stays on
        layers_with_weights = [layer for layer in layers if layer.state_dict()]
        return [module for stage in trunk_stages(model) for module in stage] + layers_with_weights
    # A number of stages; the stem is the first
    if part != "stem" and not part.isdecimal():
        raise UsageError(
            f"MODEL.FREEZE {part!r} must be a part or a number of stages: {suggest(part, PARTS)}"
        )
    num_stages = 1 if part == "stem" else int(part)
    stages = trunk_stages(model)
    if num_stages > len(stages):
        raise UsageError(f"MODEL.FREEZE {part}: the network has {len(stages)} stages, the stem included")
    return [module for stage in stages[:num_stages] for module in stage]
