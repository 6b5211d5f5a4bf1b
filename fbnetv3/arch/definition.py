"""An architecture as frozen data that validates itself: rows that read like the paper's Table 2."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES, BlockSpec
from fbnetv3.errors import FieldError, UnknownNameError
from fbnetv3.registry import Registry
from fbnetv3.utils.checks import check_choice, check_int, check_number, check_type, error_context

MAX_CHANNELS = 65_536
MAX_KERNEL = 63
MAX_REPEAT = 1_000
MAX_RESOLUTION = 8_192
EXPANSION_RANGE = (0.01, 64.0)

# Fields that every block reads
_COMMON_FIELDS = frozenset({"block", "channels", "repeat", "stride"})


class ArchError(FieldError):
    """An invalid architecture definition."""


@dataclass(frozen=True)
class Row:
    """`repeat` equal blocks in sequence: one row of Table 2.

    Attributes:
        block: registered name of the block.
        channels: output channels of each block.
        repeat: number of blocks.
        stride: stride of the first block; the others have stride 1.
        kernel: kernel size of the (depthwise) convolution, odd.
        expansion: ratio of expanded to *input* channels of each block.
        se: gate of squeeze-and-excite, or "none".
        act: activation.
        dw_padding: padding of the depthwise convolution; default kernel // 2.
        dw_group_width: channels per group of the "depthwise" convolution; default 1.
    """

    block: str
    channels: int
    repeat: int = 1
    stride: int = 1
    kernel: int | None = None
    expansion: float | None = None
    se: str = "none"
    act: str = "hswish"
    dw_padding: int | None = None
    dw_group_width: int | None = None

    def __post_init__(self) -> None:
        _check_registered(BLOCK_SPECS, self.block, "block")
        self._check_block_reads_fields()
        check_int(self.channels, "channels", 1, MAX_CHANNELS, ArchError)
        check_int(self.repeat, "repeat", 1, MAX_REPEAT, ArchError)
        check_choice(self.stride, "stride", (1, 2), ArchError)
        if self.kernel is not None:
            check_int(self.kernel, "kernel", 1, MAX_KERNEL, ArchError)
            if self.kernel % 2 == 0:
                raise ArchError(f"{self.kernel} is even; use an odd kernel size", "kernel")
        if self.expansion is not None:
            check_number(self.expansion, "expansion", *EXPANSION_RANGE, error=ArchError)
        _check_registered(SE_GATES, self.se, "se")
        _check_registered(ACTIVATIONS, self.act, "act")
        if self.dw_padding is not None:
            same_padding = (self.kernel or 1) // 2
            check_int(self.dw_padding, "dw_padding", 0, same_padding, ArchError)
            if self.dw_padding != same_padding and (self.repeat > 1 or self.stride == 1):
                raise ArchError("shrinks the map: only allowed for a single block of stride 2", "dw_padding")
        if self.dw_group_width is not None:
            check_int(self.dw_group_width, "dw_group_width", 1, MAX_CHANNELS, ArchError)

    def _check_block_reads_fields(self) -> None:
        """Require the fields that the block needs, and reject values for fields that it ignores."""
        block_fields = self.spec_class.row_fields()
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in block_fields.required and value is None:
                raise ArchError(f"missing: {self.block} needs it", f.name)
            ignored = f.name not in _COMMON_FIELDS | block_fields.required | block_fields.optional
            if ignored and value != f.default:
                raise ArchError(f"{value!r} has no effect: {self.block} does not use this field", f.name)

    @property
    def spec_class(self) -> type[BlockSpec]:
        """The registered spec class of the row's blocks."""
        return BLOCK_SPECS.get(self.block)

    def spec(self, in_channels: int, first: bool) -> BlockSpec:
        """Build the spec of the row's first block or of a later one.

        Raises:
            ArchError: fields of the row do not fit together.
        """
        required, optional = self.spec_class.row_fields()
        # Pass only the fields that are set: a user's block may have its own defaults
        arguments = {name: getattr(self, name) for name in required}
        arguments |= {name: value for name in optional if (value := getattr(self, name)) is not None}
        stride = self.stride if first else 1
        try:
            return self.spec_class.build(in_channels, self.channels, stride, **arguments)
        except FieldError as error:
            raise ArchError(error.message, error.field) from None


@dataclass(frozen=True)
class Stage:
    """Rows in sequence, usually at one resolution."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ArchError("empty: a stage needs at least one row", "rows")


@dataclass(frozen=True)
class Block:
    """One block and its position; `index` counts the blocks of a stage across its rows."""

    stage: int
    row: int
    index: int
    kind: str
    spec: BlockSpec

    @property
    def name(self) -> str:
        """Position as "stage.index", which is also the name of the block's module."""
        return f"{self.stage}.{self.index}"


@dataclass(frozen=True)
class ArchDef:
    """A network up to the classifier, as data.

    Attributes:
        name: its name in the registry.
        stages: its stages, from input to output.
        resolution: native side of the square input, in pixels.
        resize: side to which an image's short side is resized before the center crop of `resolution` pixels.
        source: a note on its origin.
    """

    name: str
    stages: tuple[Stage, ...]
    resolution: int
    resize: int
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ArchError(
                f"{self.name!r} may contain only letters, digits, '_', '-' and '.', "
                "and must start with a letter or digit",
                "name",
            )
        check_type(self.source, "source", str, "text", ArchError)
        check_int(self.resolution, "resolution", 1, MAX_RESOLUTION, ArchError)
        check_int(self.resize, "resize", self.resolution, 2 * MAX_RESOLUTION, ArchError)
        if not self.stages:
            raise ArchError("empty: a network needs at least one stage", "stages")
        self._check_maps()

    def _check_maps(self) -> None:
        """Check the feature-map size after every block."""
        blocks = self.blocks()
        size = self.resolution  # maps of the square native input are square
        for block in blocks:
            position = f"stages[{block.stage}].rows[{block.row}]"
            if block.spec.pools and block is not blocks[-1]:
                raise ArchError(f"{block.kind} ends in a 1x1 map: it must be the last block", f"{position}.block")
            _, size, _ = block.spec.cost(size, size)
            if size < 1:
                raise ArchError(f"{self.resolution} is too small: the map of {position} would be empty", "resolution")

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

    @property
    def out_channels(self) -> int:
        """Channels of the last block."""
        return self.stages[-1].rows[-1].channels


def feature_blocks(arch: ArchDef) -> list[tuple[Block, int]]:
    """Return the last block at each stride, with the stride, finest first. Pooling blocks are excluded."""
    last_blocks: dict[int, Block] = {}
    stride = 1
    for block in arch.blocks():
        if not block.spec.pools:
            stride *= block.spec.stride
            last_blocks[stride] = block
    return [(block, stride) for stride, block in last_blocks.items()]


def _check_registered(registry: Registry, name: object, field: str) -> None:
    try:
        registry.entry(name)  # without importing torch
    except UnknownNameError as error:
        raise ArchError(str(error), field) from None
