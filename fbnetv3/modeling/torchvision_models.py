"""torchvision's networks as architectures, to train them with the same recipes (Sec. 4.1, Table 3)."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from fbnetv3.errors import UnknownNameError, UsageError, WeightsError, suggest
from fbnetv3.utils.text import one_line

logger = logging.getLogger(__name__)

TORCHVISION_PREFIX = "torchvision/"

# torchvision's DenseNet files are older than its code: "norm.1" in a file is "norm1" in the network
_DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

# The operators whose multiply-adds `fbnetv3.arch.Cost.macs` counts
_COUNTED_OPERATORS = ("conv", "linear", "addmm", "matmul", "bmm", "adaptive_avg_pool2d")


@dataclass(frozen=True)
class TorchvisionArch:
    """A network of torchvision by name.

    Raises:
        UnknownNameError: torchvision has no such network.
    """

    name: str
    """"torchvision/" and torchvision's name, such as "torchvision/resnet50"."""
    resolution: int = 224
    """Side of the input in pixels, as in Table 3."""
    resize: int = 256
    """Short side before the center crop in pixels."""

    def __post_init__(self) -> None:
        models = torchvision.models.list_models(module=torchvision.models)
        names = [f"{TORCHVISION_PREFIX}{name}" for name in models]
        if self.name not in names:
            raise UnknownNameError(f"unknown network '{self.name}': {suggest(self.name, names)}")


def build_torchvision_model(
    arch: TorchvisionArch, *, num_classes: int, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> nn.Module:
    """Build a randomly initialized network with a recipe's dropout and stochastic depth.

    Raises:
        UsageError: `in_chans` is not 3.
    """
    if in_chans != 3:
        raise UsageError(f"{arch.name} needs RGB images, not MODEL.IN_CHANS {in_chans}")
    model = torchvision.models.get_model(
        arch.name.removeprefix(TORCHVISION_PREFIX), weights=None, num_classes=num_classes
    )
    model.num_classes = num_classes
    _set_dropout(model, drop_rate)
    has_stochastic_depth = _set_stochastic_depth(model, drop_path_rate)
    if drop_path_rate and not has_stochastic_depth:
        logger.warning("%s has no stochastic depth: MODEL.DROP_PATH_RATE is ignored", arch.name)
    return model


def _set_dropout(model: nn.Module, rate: float) -> None:
    """Set the rate of the network's dropout layers, or add one before its last linear layer if it has none."""
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for dropout in dropouts:
        dropout.p = rate
    # A network without dropout gets one before its classifier
    linear_layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if dropouts or not linear_layers or not rate:
        return

    def drop(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return F.dropout(inputs[0], rate, module.training)

    linear_layers[-1].register_forward_pre_hook(drop)


def _set_stochastic_depth(model: nn.Module, rate: float) -> bool:
    """Set the rate of the deepest block, and of the others in proportion. Return whether the network has any."""
    layers = [m for m in model.modules() if isinstance(m, StochasticDepth)]
    max_rate = max((layer.p for layer in layers), default=0.0)
    for layer in layers:
        layer.p = rate * layer.p / max_rate if max_rate else rate
    return bool(layers)


def check_torchvision_model(model: nn.Module, arch: TorchvisionArch, resolution: int) -> None:
    """Run a network on two blank images, in training and in eval mode.

    Raises:
        UsageError: it does not accept the resolution, or does not return plain logits.
    """
    model = copy.deepcopy(model)
    images = torch.zeros(2, 3, resolution, resolution)
    for training in (True, False):
        try:
            with torch.no_grad():
                logits = model.train(training)(images)
        except (RuntimeError, ValueError, AssertionError) as error:
            problem = f"{arch.name} does not accept {resolution} pixels ({one_line(error, 200)})"
            raise UsageError(f"{problem}: set INPUT.RESOLUTION") from None
        if not isinstance(logits, Tensor):
            raise UsageError(f"{arch.name} returns auxiliary outputs in addition to logits, which no loss supports")


def count_torchvision_macs(arch: TorchvisionArch, resolution: int, num_classes: int) -> int:
    """Count a network's multiply-adds for one image with fvcore, of the operators in `fbnetv3.arch.Cost.macs`."""
    from fvcore.nn import FlopCountAnalysis

    model = build_torchvision_model(arch, num_classes=num_classes).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, resolution, resolution))
    analysis = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    macs_by_operator = analysis.by_operator()
    return int(sum(macs_by_operator[operator] for operator in _COUNTED_OPERATORS))


def load_torchvision_weights(model: nn.Module, state_dict: Mapping[str, Tensor], name: str) -> bool:
    """Load torchvision's weights into its network.

    If the number of classes differs, all weights but the last layer's are loaded, with a warning.

    Args:
        model: from `build_torchvision_model`.
        state_dict: the weights.
        name: their name in messages.

    Returns:
        Whether the last layer was loaded too.

    Raises:
        WeightsError: the weights do not fit.
    """
    # Rename DenseNet's tensors, then keep the network's own head if the classes differ
    expected = model.state_dict()
    weights = {_DENSENET_NAME.sub(r"\1\2", key): value for key, value in state_dict.items()}
    head = _head_of_other_classes(weights, expected)
    if head:
        logger.warning("%s has a different number of classes: all layers but the last are loaded", name)
        weights |= {key: expected[key] for key in head}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise WeightsError(f"{name} does not fit the network: {one_line(error)}") from None
    return not head


def _head_of_other_classes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the last layer's tensors if they differ from the network's only in the number of classes."""
    # Only the first dimension, the classes, of one layer's weight and bias may differ
    shapes = {key: value.shape for key, value in weights.items()}
    different = [key for key in weights if key in expected and shapes[key] != expected[key].shape]
    only_classes_differ = all(shapes[key][1:] == expected[key].shape[1:] for key in different)
    class_counts = {shapes[key][0] for key in different if shapes[key]}
    is_one_layer = len(different) <= 2 and len(class_counts) == 1
    return different if only_classes_differ and is_one_layer else []
