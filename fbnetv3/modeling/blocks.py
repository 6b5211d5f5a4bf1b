"""The building blocks as modules, registered by name; each is built from its spec in `fbnetv3.arch.block_specs`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation, StochasticDepth

from fbnetv3.arch.block_specs import ACTIVATIONS, SE_GATES, ConvSpec, MBConvSpec, MBPoolSpec
from fbnetv3.modeling.cpu.depthwise import DepthwiseConv2d
from fbnetv3.registry import Registry

BLOCKS = Registry("block module")


class Hardswish(nn.Hardswish):
    """In place only without gradients: autograd would have to copy what it overwrites."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x, self.inplace and not torch.is_grad_enabled())


BatchNorm = partial(nn.BatchNorm2d, eps=1e-5, momentum=0.1)


@BLOCKS.register(name="conv")
class Conv(Conv2dNormActivation):
    """k x k convolution with bias, BatchNorm, activation.

    The bias adds nothing in front of a BatchNorm, but the published weights have it.
    """

    def __init__(self, spec: ConvSpec, norm_layer: Callable[..., nn.Module] = BatchNorm, drop_path: float = 0.0):
        super().__init__(
            spec.in_channels,
            spec.out_channels,
            spec.kernel,
            spec.stride,
            spec.padding,
            bias=True,
            norm_layer=norm_layer,
            activation_layer=ACTIVATIONS.resolve(spec.act),
        )


@BLOCKS.register(name="mbconv")
class MBConv(nn.Module):
    """Inverted residual: 1x1 expand, k x k depthwise, squeeze-and-excite, 1x1 project, shortcut.

    Args:
        spec: channel counts, kernel, stride and so on.
        norm_layer: makes the norm of a channel count.
        drop_path: probability of stochastic depth, for each image, where there is a shortcut.
    """

    starts_as_identity = True
    """Whether the last norm's scale starts at zero where there is a shortcut."""

    def __init__(self, spec: MBConvSpec, norm_layer: Callable[..., nn.Module] = BatchNorm, drop_path: float = 0.0):
        super().__init__()
        act, mid = ACTIVATIONS.resolve(spec.act), spec.mid_channels
        unit = partial(Conv2dNormActivation, norm_layer=norm_layer, activation_layer=act)
        self.expand = unit(spec.in_channels, mid, 1) if spec.has_expand else nn.Identity()
        bare = {} if spec.dw_norm else {"norm_layer": None, "activation_layer": None}
        self.depthwise = unit(mid, mid, spec.kernel, spec.stride, spec.padding, groups=spec.groups, bias=False, **bare)
        if spec.groups == mid:
            self.depthwise[0] = DepthwiseConv2d(
                mid, mid, spec.kernel, spec.stride, spec.padding, groups=mid, bias=False
            )
        self.se = (
            SqueezeExcitation(mid, spec.se_channels, partial(act, inplace=True), SE_GATES.resolve(spec.se_gate))
            if spec.se_channels
            else nn.Identity()
        )
        self.project = Conv2dNormActivation(mid, spec.out_channels, 1, norm_layer=norm_layer, activation_layer=None)
        self.has_residual = spec.has_residual
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path and spec.has_residual else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + self.drop_path(y) if self.has_residual else y


@BLOCKS.register(name="mbconv_det")
class DetectorMBConv(MBConv):
    """Inverted residual of the released detectors: nothing follows the depthwise convolution but squeeze-and-excite."""

    starts_as_identity = False


@BLOCKS.register(name="mbpool")
class MBPool(nn.Module):
    """Efficient last stage: 1x1 expand, global average, 1x1 convolution without bias or BatchNorm, activation."""

    def __init__(self, spec: MBPoolSpec, norm_layer: Callable[..., nn.Module] = BatchNorm, drop_path: float = 0.0):
        super().__init__()
        act = ACTIVATIONS.resolve(spec.act)
        self.expand = Conv2dNormActivation(
            spec.in_channels, spec.mid_channels, 1, norm_layer=norm_layer, activation_layer=act
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Conv2d(spec.mid_channels, spec.out_channels, 1, bias=False)
        self.act = act(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) to (N, out_channels, 1, 1)."""
        return self.act(self.project(self.pool(self.expand(x))))


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """He initialisation; the last norm of a residual block starts at zero, so that the block starts as identity.

    Not in blocks of detectors, nor where the norm is frozen and could never leave zero.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    for m in module.modules():
        if isinstance(m, MBConv) and m.has_residual and m.starts_as_identity:
            scale = m.project[1].weight
            if isinstance(scale, nn.Parameter):
                nn.init.zeros_(scale)
