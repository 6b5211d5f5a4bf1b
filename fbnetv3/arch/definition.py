"""An architecture as frozen data that validates itself: rows that read like the paper's Table 2."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES, BlockSpec
from fbnetv3.arch.layer_cost import Cost
from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_choice, check_int, check_number, check_type, error_context

MAX_CHANNELS = 65_536
MAX_REPEAT = 1_000
MAX_RESOLUTION = 8_192

# Smallest and largest values of a row's integers
_ROW_BOUNDS = {
    "channels": (1, MAX_CHANNELS),
    "repeat": (1, MAX_REPEAT),
    "kernel": (1, 63),
    "dw_group_width": (1, MAX_CHANNELS),
}
# Fields that every block reads
_COMMON_FIELDS = ("block", "channels", "repeat", "stride")


class ArchError(FieldError):
    """An invalid architecture definition."""


@dataclass(frozen=True)
class Row:
    """`repeat` equal blocks in sequence: one row of Table 2."""

    block: str  # registered name
    channels: int  # output channels of each block
    repeat: int = 1
    stride: int = 1  # of the first block; the others have stride 1
    kernel: int | None = None  # size of the (depthwise) convolution, odd
    expansion: float | None = None  # ratio of expanded to *input* channels of each block
    se: str = "none"  # registered gate of squeeze-and-excite
    act: str = "hswish"  # registered activation
    dw_padding: int | None = None  # of the depthwise convolution; default kernel // 2
    dw_group_width: int | None = None  # channels per group of the "depthwise" convolution; default 1

    def __post_init__(self) -> None:
        for name, registry in (("block", BLOCK_SPECS), ("se", SE_GATES), ("act", ACTIVATIONS)):
            registry.check(getattr(self, name), name, ArchError)
        # Fields that the block requires must be set, and those that it does not read must not
        requires = self.spec_class.row_fields()
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None and requires.get(f.name):
                raise ArchError(f"is missing; {self.block} blocks require it", f.name)
            if value != f.default and f.name not in (*_COMMON_FIELDS, *requires):
                raise ArchError(
                    f"{value!r} has no effect: {self.block} blocks do not use this field", f.name
                )
            if f.name in _ROW_BOUNDS and (value is not None or f.default is not None):
                check_int(value, f.name, *_ROW_BOUNDS[f.name], error=ArchError)
        check_choice(self.stride, "stride", (1, 2), ArchError)
        if self.expansion is not None:
            check_number(self.expansion, "expansion", 0.01, 64.0, ArchError)
        if self.kernel is not None and self.kernel % 2 == 0:
            raise ArchError(f"{self.kernel} is even; use an odd kernel size", "kernel")
        if self.dw_padding is not None:
            same_padding = (self.kernel or 1) // 2
            check_int(self.dw_padding, "dw_padding", 0, same_padding, ArchError)
            if self.dw_padding < same_padding and (self.repeat > 1 or self.stride == 1):
                raise ArchError(
                    "shrinks the map, which is only allowed with repeat 1 and stride 2", "dw_padding"
                )

    @property
    def spec_class(self) -> type[BlockSpec]:
        """The registered spec class of the row's blocks."""
        return BLOCK_SPECS.get(self.block)

    def spec(self, in_channels: int, first: bool) -> BlockSpec:
        """Build the spec of the row's first block or of a later one."""
        # Pass only the fields that are set: a user's block may have its own defaults
        values = {name: getattr(self, name) for name in self.spec_class.row_fields()}
        arguments = {name: value for name, value in values.items() if value is not None}
        try:
            return self.spec_class.build(
                in_channels, self.channels, self.stride if first else 1, **arguments
            )
        except FieldError as error:
            raise ArchError(error.message, error.field) from None


@dataclass(frozen=True)
class Stage:
    """Rows in sequence, usually at one resolution."""

    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Block:
    """One block and its position."""

    stage: int
    row: int
    index: int  # within the stage, across its rows
    kind: str
    spec: BlockSpec

    @property
    def name(self) -> str:
        """Position as "stage.index", which is also the name of the block's module."""
        return f"{self.stage}.{self.index}"


class BlockCost(NamedTuple):
    """A block, its cost, and the height and width of its output."""

    block: Block
    cost: Cost
    height: int
    width: int


@dataclass(frozen=True)
class ArchDef:
    """A network up to the classifier, as data."""

    name: str
    stages: tuple[Stage, ...]
    resolution: int  # native side of the square input, in pixels
    resize: int  # short side of an image in pixels before the center crop of `resolution` pixels
    source: str = ""  # a note on its origin

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ArchError(
                f"{self.name!r} must start with a letter or digit and contain only letters, digits, _, . and -",
                "name",
            )
        check_type(self.source, "source", str, "text", ArchError)
        check_int(self.resolution, "resolution", 1, MAX_RESOLUTION, ArchError)
        check_int(self.resize, "resize", self.resolution, 2 * MAX_RESOLUTION, ArchError)
        if not self.stages or not all(stage.rows for stage in self.stages):
            raise ArchError("must have at least one stage, and each stage at least one row", "stages")
        costs = self.block_costs(self.resolution, self.resolution)
        *inner_blocks, _ = (block_cost.block for block_cost in costs)
        for block in inner_blocks:
            if block.spec.ends_in_pool:
                field = f"stages[{block.stage}].rows[{block.row}].block"
                raise ArchError(f"{block.kind} ends in a 1x1 map, so it must be the last block", field)

    def blocks(self, in_chans: int = 3) -> tuple[Block, ...]:
        """Return all blocks in order, for an input of `in_chans` channels."""
        blocks = []
        channels = in_chans
        for s, stage in enumerate(self.stages):
            index = 0
            for r, row in enumerate(stage.rows):
                for i in range(row.repeat):
                    with error_context(f"stages[{s}].rows[{r}]"):
                        spec = row.spec(channels, first=i == 0)
                    blocks.append(Block(s, r, index, row.block, spec))
                    channels = spec.out_channels
                    index += 1
        return tuple(blocks)

    def block_costs(self, height: int, width: int, in_chans: int = 3) -> Iterator[BlockCost]:
        """Yield the blocks in order, with their costs and output sizes for an input of `height` x `width` pixels."""
        pixels = f"{height}x{width}"
        for block in self.blocks(in_chans):
            cost, height, width = block.spec.cost(height, width)
            if min(height, width) < 1:
                raise ArchError(
                    f"{self.name}: an input of {pixels} pixels is too small: block {block.name} is empty"
                )
            yield BlockCost(block, cost, height, width)

    @property
    def out_channels(self) -> int:
        """Channels of the last block."""
        return self.stages[-1].rows[-1].channels


def feature_blocks(arch: ArchDef) -> list[tuple[Block, int]]:
    """Return the last block at each stride, with the stride, finest first. Pooling blocks are excluded."""
    last_blocks: dict[int, Block] = {}
    stride = 1
    for block in arch.blocks():
        if not block.spec.ends_in_pool:
            stride *= block.spec.stride
            last_blocks[stride] = block
    return [(block, stride) for stride, block in last_blocks.items()]
