"""The building blocks as data: what each one's layers look like, and beside it what they cost.

A row of an architecture names a block; the spec registered under that name works out every channel count
from the row, once. `fbnetv3.modeling.blocks` builds the module from the very same spec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from fbnetv3.arch.complexity import Cost, avg_pool, batchnorm, conv, conv_out
from fbnetv3.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Self

    from fbnetv3.arch.definition import Row

BLOCK_SPECS = Registry("block")

ACTIVATIONS = ("hswish", "relu")
SE_GATES = ("none", "hsigmoid", "sigmoid")
SE_RATIO = 0.25


def round8(value: float) -> int:
    """`value` rounded to a multiple of 8, half up, at least 8 and never below 95 % of `value`.

    The channel rounding of the published networks: `round8(20) == 24`, `round8(36) == 40`.
    """
    rounded = max(8, 8 * math.floor(value / 8 + 0.5))
    return rounded + 8 if rounded < 0.95 * value else rounded


class BlockSpec(Protocol):
    """What a block says of itself. A new block registers a dataclass like this in `BLOCK_SPECS`.

    `REQUIRED` and `OPTIONAL` name the row's fields that the block reads besides `channels`, `repeat` and
    `stride`; a row that lacks a required one or sets one that the block does not read is an error.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    REQUIRED: frozenset[str]
    OPTIONAL: frozenset[str]
    in_channels: int
    out_channels: int
    stride: int

    @classmethod
    def from_row(cls, row: Row, in_channels: int, stride: int) -> BlockSpec:
        """The spec of one block of the row, given its input channels and its own stride."""
        ...

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        """Cost for a `height` x `width` input, and the height and width of the output."""
        ...


@BLOCK_SPECS.register(name="conv")
@dataclass(frozen=True)
class ConvSpec:
    """k x k convolution with bias, BatchNorm, activation (Table 2, first row)."""

    REQUIRED = frozenset({"kernel"})
    OPTIONAL = frozenset({"act"})

    in_channels: int
    out_channels: int
    kernel: int
    stride: int
    act: str

    @classmethod
    def from_row(cls, row: Row, in_channels: int, stride: int) -> ConvSpec:
        assert row.kernel is not None  # it is REQUIRED
        return cls(in_channels, row.channels, row.kernel, stride, row.act)

    @property
    def padding(self) -> int:
        return self.kernel // 2

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        h = conv_out(height, self.kernel, self.stride, self.padding)
        w = conv_out(width, self.kernel, self.stride, self.padding)
        layers = conv(h, w, self.in_channels, self.out_channels, self.kernel, bias=True) + batchnorm(self.out_channels)
        return layers, h, w


@BLOCK_SPECS.register(name="mbconv")
@dataclass(frozen=True)
class MBConvSpec:
    """Inverted residual (Table 2, "MBConv"): 1x1 expand, k x k depthwise, squeeze-and-excite, 1x1 project."""

    REQUIRED = frozenset({"kernel", "expansion"})
    OPTIONAL = frozenset({"act", "se", "dw_padding", "dw_group_width"})

    in_channels: int
    out_channels: int
    mid_channels: int
    kernel: int
    stride: int
    padding: int
    groups: int
    se_channels: int
    """Channels of the squeeze; 0 where there is no squeeze-and-excite."""
    se_gate: str
    act: str
    dw_norm: bool = True
    """Whether a BatchNorm and an activation follow the depthwise convolution."""

    @classmethod
    def from_row(cls, row: Row, in_channels: int, stride: int) -> Self:
        assert row.kernel is not None and row.expansion is not None  # they are REQUIRED
        mid = round8(in_channels * row.expansion)
        return cls(
            in_channels=in_channels,
            out_channels=row.channels,
            mid_channels=mid,
            kernel=row.kernel,
            stride=stride,
            padding=row.kernel // 2 if row.dw_padding is None else row.dw_padding,
            groups=mid if row.dw_group_width is None else mid // row.dw_group_width,
            se_channels=0 if row.se == "none" else round8(int(mid * SE_RATIO / row.expansion)),
            se_gate=row.se,
            act=row.act,
        )

    @property
    def has_expand(self) -> bool:
        """Whether there is a 1x1 expansion: not where it would keep the channel count."""
        return self.mid_channels != self.in_channels

    @property
    def has_residual(self) -> bool:
        """Whether the input is added to the output."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        h = conv_out(height, self.kernel, self.stride, self.padding)
        w = conv_out(width, self.kernel, self.stride, self.padding)
        mid = self.mid_channels
        layers = conv(h, w, mid, mid, self.kernel, self.groups)
        if self.dw_norm:
            layers += batchnorm(mid)
        if self.has_expand:
            layers += conv(height, width, self.in_channels, mid) + batchnorm(mid)
        if self.se_channels:
            layers += avg_pool(h, w, mid)
            layers += conv(1, 1, mid, self.se_channels, bias=True) + conv(1, 1, self.se_channels, mid, bias=True)
        layers += conv(h, w, mid, self.out_channels) + batchnorm(self.out_channels)
        return layers, h, w


@BLOCK_SPECS.register(name="mbconv_det")
@dataclass(frozen=True)
class DetectorMBConvSpec(MBConvSpec):
    """Inverted residual of the released detectors (Sec. 4.3): neither BatchNorm nor activation after the depthwise.

    Its squeeze has a quarter of the expanded channels, whatever the expansion.
    """

    @classmethod
    def from_row(cls, row: Row, in_channels: int, stride: int) -> Self:
        spec = super().from_row(row, in_channels, stride)
        squeeze = round8(int(spec.mid_channels * SE_RATIO)) if spec.se_channels else 0
        return replace(spec, se_channels=squeeze, dw_norm=False)


@BLOCK_SPECS.register(name="mbpool")
@dataclass(frozen=True)
class MBPoolSpec:
    """Efficient last stage (Table 2, "MBPool"): 1x1 expand, global average, 1x1 without bias or BatchNorm.

    Table 2 lists a kernel for it; the released networks have no depthwise convolution here, so there is none.
    """

    REQUIRED = frozenset({"expansion"})
    OPTIONAL = frozenset({"act"})

    in_channels: int
    out_channels: int
    mid_channels: int
    act: str
    stride: int = 1

    @classmethod
    def from_row(cls, row: Row, in_channels: int, stride: int) -> MBPoolSpec:
        assert row.expansion is not None  # it is REQUIRED
        return cls(in_channels, row.channels, round8(in_channels * row.expansion), row.act)

    def cost(self, height: int, width: int) -> tuple[Cost, int, int]:
        mid = self.mid_channels
        layers = conv(height, width, self.in_channels, mid) + batchnorm(mid) + avg_pool(height, width, mid)
        return layers + conv(1, 1, mid, self.out_channels), 1, 1
