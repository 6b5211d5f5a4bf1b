"""The building blocks as modules, registered by name; each is built from its spec in `fbnetv3.arch.block_specs`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation, StochasticDepth

from fbnetv3.arch.block_specs import ACTIVATIONS, SE_GATES, ConvSpec, MBConvSpec, MBPoolSpec
from fbnetv3.modeling.cpu.depthwise import DepthwiseConv2d
from fbnetv3.registry import Registry

BLOCKS = Registry("block module")
"""nn.Module classes, called with a spec and the keywords `norm_layer` and `drop_path`."""

DEFAULT_NORM = partial(nn.BatchNorm2d, eps=1e-5, momentum=0.1)

NormLayer = Callable[..., nn.Module]
"""Builds a norm layer, given the number of channels."""


def activation_layer(name: str) -> Callable[[], nn.Module]:
    """Return the constructor of a registered activation.

    It does not work in place: hooks may keep the outputs of layers, and a trace must not depend on gradients.
    """
    return ACTIVATIONS.get(name)


# A bias-free convolution followed by norm and activation
_conv_unit = partial(Conv2dNormActivation, bias=False, inplace=None)


@BLOCKS.register(name="conv")
class Conv(Conv2dNormActivation):
    """k x k convolution with bias, BatchNorm, activation. The bias has no effect, but the published weights have it.

    `drop_path` is ignored here and in `MBPool`, which have no shortcut.
    """

    def __init__(
        self, spec: ConvSpec, norm_layer: NormLayer = DEFAULT_NORM, drop_path: float = 0.0
    ) -> None:
        conv_args = (spec.in_channels, spec.out_channels, spec.kernel, spec.stride, spec.padding)
        act = activation_layer(spec.act)
        super().__init__(*conv_args, bias=True, norm_layer=norm_layer, activation_layer=act, inplace=None)


@BLOCKS.register(name="mbconv")
class MBConv(nn.Module):
    """Inverted residual: 1x1 expand, k x k depthwise, squeeze-and-excite, 1x1 project, shortcut.

    `drop_path` is the probability of stochastic depth, per image, if there is a shortcut.
    """

    starts_as_identity = True  # by a zero scale in the last norm, if there is a shortcut

    def __init__(
        self, spec: MBConvSpec, norm_layer: NormLayer = DEFAULT_NORM, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        mid = spec.mid_channels
        act = activation_layer(spec.act)
        # 1x1 expand
        self.expand: nn.Module = nn.Identity()
        if spec.has_expand:
            self.expand = _conv_unit(spec.in_channels, mid, 1, norm_layer=norm_layer, activation_layer=act)
        # k x k depthwise, with a fast gradient on CPUs
        conv_args = (mid, mid, spec.kernel, spec.stride, spec.padding)
        self.depthwise = _conv_unit(
            *conv_args,
            groups=spec.groups,
            norm_layer=norm_layer if spec.dw_norm else None,
            activation_layer=act if spec.dw_norm else None,
        )
        if spec.groups == mid:
            self.depthwise[0] = DepthwiseConv2d(*conv_args, groups=mid, bias=False)
        # Squeeze-and-excite
        self.se: nn.Module = nn.Identity()
        if spec.se_channels:
            gate = SE_GATES.get(spec.se_gate)
            self.se = SqueezeExcitation(mid, spec.se_channels, act, gate)
        # 1x1 project and shortcut
        self.project = _conv_unit(mid, spec.out_channels, 1, norm_layer=norm_layer, activation_layer=None)
        self.has_residual = spec.has_residual
        has_drop_path = drop_path and spec.has_residual
        self.drop_path = StochasticDepth(drop_path, "row") if has_drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W')."""
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + self.drop_path(y) if self.has_residual else y


@BLOCKS.register(name="mbconv_det")
class DetectorMBConv(MBConv):
    """Inverted residual of the released detectors, without norm and activation after the depthwise convolution."""

    starts_as_identity = False


@BLOCKS.register(name="mbpool")
class MBPool(nn.Module):
    """Efficient last stage: 1x1 expand, global average, 1x1 convolution without bias or BatchNorm, activation."""

    def __init__(
        self, spec: MBPoolSpec, norm_layer: NormLayer = DEFAULT_NORM, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        mid = spec.mid_channels
        act = activation_layer(spec.act)
        self.expand = _conv_unit(spec.in_channels, mid, 1, norm_layer=norm_layer, activation_layer=act)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.project = nn.Conv2d(mid, spec.out_channels, 1, bias=False)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, 1, 1)."""
        return self.pool_and_project(self.expand(x))

    def pool_and_project(self, x: Tensor) -> Tensor:
        """Map the expanded (N, mid_channels, H, W) to (N, out_channels, 1, 1)."""
        return self.act(self.project(self.pool(x)))


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """Initialize convolutions as He et al. do, and make residual blocks start as the identity.

    They do so by a zero scale in their last norm. The scale is not zeroed in blocks of detectors, nor in frozen norms,
    which could never leave zero.
    """
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    # After the norms inside the blocks
    for m in module.modules():
        if isinstance(m, MBConv) and m.has_residual and m.starts_as_identity:
            scale = m.project[1].weight
            if isinstance(scale, nn.Parameter):
                nn.init.zeros_(scale)
