"""Networks of torchvision's as architectures, so that they take the same recipes as ours (Sec. 4.1, Table 3)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.errors import UnknownNameError, UsageError, suggest

logger = logging.getLogger(__name__)

PREFIX = "torchvision/"


@dataclass(frozen=True)
class ExternalArch:
    """A network that another library builds.

    Attributes:
        name: "torchvision/" and the name there, such as "torchvision/resnet50".
        resolution: side of its input in pixels, as in Table 3.
        resize: short side before the centre crop.
    """

    name: str
    resolution: int = 224
    resize: int = 256

    def __post_init__(self) -> None:
        known = torchvision.models.list_models(module=torchvision.models)
        if self.name.removeprefix(PREFIX) not in known:
            raise UnknownNameError(f"unknown network '{self.name}': {suggest(self.name, (PREFIX + n for n in known))}")


def build_external(
    arch: ExternalArch, *, num_classes: int, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> nn.Module:
    """The network, with fresh weights, `num_classes` outputs and dropout before its last layer.

    Raises:
        UsageError: another number of channels than 3.
    """
    if in_chans != 3:
        raise UsageError(f"{arch.name} takes RGB images, not MODEL.IN_CHANS {in_chans}")
    model = torchvision.models.get_model(arch.name.removeprefix(PREFIX), weights=None, num_classes=num_classes)
    model.num_classes = num_classes
    if drop_rate:
        _drop_before_last_linear(model, drop_rate)
    if drop_path_rate:
        logger.warning("%s has no stochastic depth to set: MODEL.DROP_PATH_RATE is left out", arch.name)
    return model


def _drop_before_last_linear(model: nn.Module, rate: float) -> None:
    """Dropout on the input of the last linear layer; a dropout that is there already gives way to it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    *_, last = (m for m in model.modules() if isinstance(m, nn.Linear))

    def drop(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return F.dropout(inputs[0], rate, module.training)

    last.register_forward_pre_hook(drop)
