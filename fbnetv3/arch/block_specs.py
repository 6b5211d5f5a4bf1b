"""Building blocks as data: the layers of each block and, next to them, their cost.

A row of an architecture names a block. The spec registered under that name derives all channel counts from the row,
once; `fbnetv3.modeling.blocks` builds the module from the same spec.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from fbnetv3.arch.layer_cost import Cost, avg_pool_cost, batchnorm_cost, conv_cost, conv_output_size
from fbnetv3.errors import FieldError
from fbnetv3.registry import Registry

BLOCK_SPECS = Registry("block")

# Activations by name, as lazy entries, so that definitions need no torch. An entry is an nn.Module class.
ACTIVATIONS = Registry("activation")
ACTIVATIONS.register("torch.nn:Hardswish", name="hswish")
ACTIVATIONS.register("torch.nn:ReLU", name="relu")

# Gates of squeeze-and-excite; "none" stands for a block without one
SE_GATES = Registry("squeeze-and-excite gate")
SE_GATES.register("torch.nn:Identity", name="none")
SE_GATES.register("torch.nn:Hardsigmoid", name="hsigmoid")
SE_GATES.register("torch.nn:Sigmoid", name="sigmoid")


def round8(value: float) -> int:
    """Round to a multiple of 8, half up, to at least 8 and never below 95% of `value`.

    This is the channel rounding of the published networks: `round8(20) == 24`, `round8(36) == 40`.
    """
    rounded = max(8, 8 * math.floor(value / 8 + 0.5))
    # As in MobileNet, rounding down must not remove more than 5% of the channels
    return rounded + 8 if rounded < 0.95 * value else rounded


class BlockSpec:
    """Base class of block specs. To add a block, register a frozen dataclass that derives from it.

    The keyword-only parameters of its classmethod `build(in_channels, channels, stride, *, ...)` are the row fields
    that the block reads, such as `kernel` or `se`: required ones have no default, and a row that sets any other field
    is rejected. `build` raises `FieldError` for values that do not fit together.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    build: ClassVar[Callable[..., Any]]
    ends_in_pool: ClassVar[bool] = False  # whether the output is a 1x1 map: the block can only be the last
    in_channels: int
    out_channels: int
    stride: int

    @classmethod
    @cache
    def row_fields(cls) -> dict[str, bool]:
        """Return the row fields that `build` accepts, each with whether it is required."""
        parameters = inspect.signature(cls.build).parameters.values()
        return {p.name: p.default is p.empty for p in parameters if p.kind is p.KEYWORD_ONLY}

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        """Return the cost for a `height` x `width` input, and the height and width of the output."""
        raise NotImplementedError


@BLOCK_SPECS.register(name="conv")
@dataclass(frozen=True)
class ConvSpec(BlockSpec):
    """k x k convolution with bias, BatchNorm, activation (Table 2, first row)."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    act: str

    @classmethod
    def build(
        cls, in_channels: int, channels: int, stride: int, *, kernel: int, act: str = "hswish"
    ) -> BlockSpec:
        """Build the spec of one block from its input channels and its row."""
        return cls(in_channels, channels, kernel, stride, act)

    @property
    def padding(self) -> int:
        """Pixels added on each side."""
        return self.kernel // 2

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        """Return the cost of the block, and the height and width of its output."""
        h, w = (conv_output_size(side, self.kernel, self.stride, self.padding) for side in (height, width))
        conv = conv_cost(h, w, self.in_channels, self.out_channels, self.kernel, bias=True)
        return conv + batchnorm_cost(self.out_channels), h, w


@BLOCK_SPECS.register(name="mbconv")
@dataclass(frozen=True)
class MBConvSpec(BlockSpec):
    """Inverted residual (Table 2, "MBConv"): 1x1 expand, k x k depthwise, squeeze-and-excite, 1x1 project."""

    # Whether the squeeze has a quarter of the input channels rather than of the expanded channels
    se_from_input: ClassVar[bool] = True
    in_channels: int
    out_channels: int
    mid_channels: int
    kernel: int
    stride: int
    padding: int
    groups: int
    se_channels: int  # of the squeeze; 0 without squeeze-and-excite
    se_gate: str
    act: str
    dw_norm: bool = True  # whether a BatchNorm and an activation follow the depthwise convolution

    @classmethod
    def build(
        cls,
        in_channels: int,
        channels: int,
        stride: int,
        *,
        kernel: int,
        expansion: float,
        se: str = "none",
        act: str = "hswish",
        dw_padding: int | None = None,
        dw_group_width: int | None = None,
    ) -> BlockSpec:
        """Build the spec of one block from its input channels and its row."""
        mid_channels = round8(in_channels * expansion)
        # The published networks truncate before they round
        squeezed = round8(int(mid_channels * 0.25 / (expansion if cls.se_from_input else 1)))
        groups = mid_channels // (dw_group_width or 1)
        if groups < 1 or mid_channels % groups:
            raise FieldError(
                f"{dw_group_width} does not divide the {mid_channels} expanded channels", "dw_group_width"
            )
        return cls(
            in_channels=in_channels,
            out_channels=channels,
            mid_channels=mid_channels,
            kernel=kernel,
            stride=stride,
            padding=kernel // 2 if dw_padding is None else dw_padding,
            groups=groups,
            se_channels=0 if se == "none" else squeezed,
            se_gate=se,
            act=act,
        )

    @property
    def has_expand(self) -> bool:
        """Whether there is a 1x1 expansion; without it, the channel count would stay the same."""
        return self.mid_channels != self.in_channels

    @property
    def has_residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        """Return the cost of the block, and the height and width of its output."""
        h, w = (conv_output_size(side, self.kernel, self.stride, self.padding) for side in (height, width))
        mid = self.mid_channels
        layers = Cost()
        # Expand, at the input's size
        if self.has_expand:
            layers += conv_cost(height, width, self.in_channels, mid) + batchnorm_cost(mid)
        # Depthwise
        layers += conv_cost(h, w, mid, mid, self.kernel, self.groups)
        if self.dw_norm:
            layers += batchnorm_cost(mid)
        # Squeeze-and-excite
        if self.se_channels:
            layers += avg_pool_cost(h, w, mid)
            layers += conv_cost(1, 1, mid, self.se_channels, bias=True)
            layers += conv_cost(1, 1, self.se_channels, mid, bias=True)
        # Project
        layers += conv_cost(h, w, mid, self.out_channels) + batchnorm_cost(self.out_channels)
        return layers, h, w


@BLOCK_SPECS.register(name="mbconv_det")
@dataclass(frozen=True)
class DetectorMBConvSpec(MBConvSpec):
    """Inverted residual of the released detectors (Sec. 4.3), with a wider squeeze."""

    se_from_input = False
    dw_norm: bool = False


@BLOCK_SPECS.register(name="mbpool")
@dataclass(frozen=True)
class MBPoolSpec(BlockSpec):
    """Efficient last stage (Table 2, "MBPool"): 1x1 expand, global average, 1x1 without bias or BatchNorm.

    Table 2 lists a kernel for it, but the released networks have no depthwise convolution here.
    """

    ends_in_pool = True
    in_channels: int
    out_channels: int
    mid_channels: int
    act: str
    stride: int = 1

    @classmethod
    def build(
        cls, in_channels: int, channels: int, stride: int, *, expansion: float, act: str = "hswish"
    ) -> BlockSpec:
        """Build the spec of one block from its input channels and its row."""
        if stride != 1:
            raise FieldError(f"{stride} must be 1: this block ends in a 1x1 map", "stride")
        return cls(in_channels, channels, round8(in_channels * expansion), act)

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        """Return the cost of the block, and the height and width of its output, which are 1."""
        mid = self.mid_channels
        # The expansion sees the full map, the last convolution one pixel
        layers = conv_cost(height, width, self.in_channels, mid) + batchnorm_cost(mid)
        layers += avg_pool_cost(height, width, mid)
        return layers + conv_cost(1, 1, mid, self.out_channels), 1, 1
