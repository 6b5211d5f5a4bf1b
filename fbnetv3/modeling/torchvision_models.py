"""torchvision's networks as architectures, to train them with the same recipes (Sec. 4.1, Table 3)."""

from __future__ import annotations

import copy
import logging
import re
from dataclasses import dataclass
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.modeling.checkpoint_contents import StateDict, prefixes_of
from fbnetv3.modeling.weights import WeightsSource, load_best, read_candidates
from fbnetv3.utils.text import one_line

logger = logging.getLogger(__name__)

TORCHVISION_PREFIX = "torchvision/"

# torchvision's DenseNet files are older than its code: "norm.1" in a file is "norm1" in the network
_DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

# The operators whose multiply-adds `fbnetv3.arch.Cost.macs` counts
_COUNTED_OPERATORS = ("conv", "linear", "addmm", "matmul", "bmm", "adaptive_avg_pool2d")


@dataclass(frozen=True)
class TorchvisionArch:
    """A network of torchvision, such as "torchvision/resnet50", with the side of its input as in Table 3.

    `resize` is the short side before the center crop, in pixels.
    """

    name: str
    resolution: int = 224
    resize: int = 256

    def __post_init__(self) -> None:
        models = torchvision.models.list_models(module=torchvision.models)
        names = [f"{TORCHVISION_PREFIX}{name}" for name in models]
        if self.name not in names:
            raise UnknownNameError(f"unknown network '{self.name}': {suggest(self.name, names)}")


def build_torchvision_model(
    arch: TorchvisionArch,
    *,
    num_classes: int,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """Build a randomly initialized network with a recipe's dropout and stochastic depth."""
    if in_chans != 3:
        raise UsageError(f"{arch.name} needs RGB images, not MODEL.IN_CHANS {in_chans}")
    name = arch.name.removeprefix(TORCHVISION_PREFIX)
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    model.num_classes = num_classes
    # Set the dropout; a network without one gets it before its last linear layer
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for dropout in dropouts:
        dropout.p = drop_rate
    linear_layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if drop_rate and linear_layers and not dropouts:
        linear_layers[-1].register_forward_pre_hook(
            lambda module, inputs: F.dropout(inputs[0], drop_rate, module.training)
        )
    if drop_rate and not linear_layers and not dropouts:
        logger.warning("%s has neither dropout nor a linear layer: MODEL.DROP_RATE is ignored", arch.name)
    # Give the deepest block the full rate and scale the others in proportion
    layers = [m for m in model.modules() if isinstance(m, StochasticDepth)]
    max_rate = max((layer.p for layer in layers), default=0.0)
    for layer in layers:
        layer.p = drop_path_rate * layer.p / max_rate if max_rate else drop_path_rate
    if drop_path_rate and not layers:
        logger.warning("%s has no stochastic depth: MODEL.DROP_PATH_RATE is ignored", arch.name)
    return model


def check_torchvision_model(model: nn.Module, arch: TorchvisionArch, resolution: int) -> None:
    """Run a network on blank images in both modes. Raise UsageError unless it takes them and returns plain logits."""
    model = copy.deepcopy(model)
    images = torch.zeros(2, 3, resolution, resolution)
    try:
        with torch.no_grad():
            outputs = [model.train()(images), model.eval()(images)]
    except (RuntimeError, ValueError, AssertionError) as error:
        problem = f"{arch.name} does not accept {resolution} pixels ({one_line(error, 200)})"
        raise UsageError(f"{problem}: set INPUT.RESOLUTION") from None
    if not all(isinstance(logits, Tensor) for logits in outputs):
        raise UsageError(
            f"{arch.name} returns auxiliary outputs in addition to logits, which no loss supports"
        )


def count_torchvision_macs(arch: TorchvisionArch, resolution: int, num_classes: int) -> int:
    """Count a network's multiply-adds for one image with fvcore, of the operators in `fbnetv3.arch.Cost.macs`."""
    from fvcore.nn import FlopCountAnalysis

    model = build_torchvision_model(arch, num_classes=num_classes).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, resolution, resolution))
    analysis.unsupported_ops_warnings(False)
    analysis.uncalled_modules_warnings(False)
    macs = analysis.by_operator()
    return int(sum(macs[operator] for operator in _COUNTED_OPERATORS))


def load_torchvision_weights(model: nn.Module, source: WeightsSource) -> bool:
    """Load torchvision's weights into its network; return whether the head was loaded. See `load_weights`."""

    def rename(state_dict: StateDict) -> StateDict:
        return {_DENSENET_NAME.sub(r"\1\2", key): value for key, value in state_dict.items()}

    candidates = read_candidates(source, partial(prefixes_of, next(iter(model.state_dict()))))
    return not load_best(model, candidates, "the network", rename).has_other_classes
