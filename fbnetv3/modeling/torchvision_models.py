"""Networks of torchvision's as architectures, so that they take the same recipes as ours (Sec. 4.1, Table 3)."""

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

logger = logging.getLogger(__name__)

PREFIX = "torchvision/"
# torchvision's DenseNet files are older than its code: what they call "norm.1" is "norm1" there.
_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


@dataclass(frozen=True)
class TorchvisionArch:
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


def build_torchvision_model(
    arch: TorchvisionArch, *, num_classes: int, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> nn.Module:
    """The network, with fresh weights, `num_classes` outputs, and the recipe's dropout and stochastic depth.

    Raises:
        UsageError: another number of channels than 3.
    """
    if in_chans != 3:
        raise UsageError(f"{arch.name} takes RGB images, not MODEL.IN_CHANS {in_chans}")
    model = torchvision.models.get_model(arch.name.removeprefix(PREFIX), weights=None, num_classes=num_classes)
    model.num_classes = num_classes
    _set_dropout(model, drop_rate)
    if not _set_stochastic_depth(model, drop_path_rate) and drop_path_rate:
        logger.warning("%s has no stochastic depth: MODEL.DROP_PATH_RATE is left out", arch.name)
    return model


def _set_dropout(model: nn.Module, rate: float) -> None:
    """The rate for the dropouts that the network has; one before its last linear layer where it has none."""
    own = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    for module in own:
        module.p = rate
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if own or not linear or not rate:
        return

    def drop(module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return F.dropout(inputs[0], rate, module.training)

    linear[-1].register_forward_pre_hook(drop)


def _set_stochastic_depth(model: nn.Module, rate: float) -> bool:
    """The rate for the deepest block, the others in proportion. Returns whether there is any."""
    found = [m for m in model.modules() if isinstance(m, StochasticDepth)]
    deepest = max((m.p for m in found), default=0.0)
    for module in found:
        module.p = rate * module.p / deepest if deepest else rate
    return bool(found)


def check_torchvision_model(model: nn.Module, arch: TorchvisionArch, resolution: int) -> None:
    """Try a network on two blank images, in training and in evaluation.

    Raises:
        UsageError: it does not take that resolution, or answers with more than logits.
    """
    trial = copy.deepcopy(model)
    for training in (True, False):
        try:
            with torch.no_grad():
                logits = trial.train(training)(torch.zeros(2, 3, resolution, resolution))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{arch.name} does not take {resolution} pixels ({reason}): set INPUT.RESOLUTION"
            ) from None
        if not isinstance(logits, Tensor):
            raise UsageError(f"{arch.name} answers with more than logits, which no objective here takes")


def count_torchvision_macs(arch: TorchvisionArch, resolution: int, num_classes: int) -> int:
    """Multiply-adds for one image, of the kinds that `fbnetv3.arch.Cost.macs` has, counted by fvcore."""
    from fvcore.nn import FlopCountAnalysis

    model = build_torchvision_model(arch, num_classes=num_classes).eval()
    counter = FlopCountAnalysis(model, torch.zeros(1, 3, resolution, resolution))
    counted = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    return int(sum(counted[kind] for kind in ("conv", "linear", "addmm", "matmul", "bmm", "adaptive_avg_pool2d")))


def load_torchvision_weights(model: nn.Module, found: Mapping[str, Tensor], name: str) -> bool:
    """Load torchvision's weights into its network. Another number of classes keeps the trunk and warns.

    Returns:
        Whether the last layer was loaded too.

    Raises:
        WeightsError: they do not fit.
    """
    wanted = model.state_dict()
    given = {_DENSENET.sub(r"\1\2", key): value for key, value in found.items()}
    heads = [key for key, value in given.items() if key in wanted and value.shape != wanted[key].shape]
    foreign = [key for key in heads if given[key].shape[1:] == wanted[key].shape[1:]]
    if heads and heads == foreign and len({given[key].shape[0] for key in heads}) == 1 and len(heads) <= 2:
        logger.warning("%s has another number of classes: all but the last layer is loaded", name)
        given |= {key: wanted[key] for key in heads}
    else:
        foreign = []
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        raise WeightsError(f"{name}: does not fit the network; {' '.join(str(error).split())[:300]}") from None
    return not foreign
