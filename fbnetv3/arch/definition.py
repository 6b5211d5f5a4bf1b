"""An architecture as frozen data that validates itself: rows that read like the paper's Table 2."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, SE_GATES, BlockSpec
from fbnetv3.errors import FieldError, UnknownNameError

MAX_CHANNELS = 65_536
MIN_EXPANSION = 0.01
MAX_REPEAT = 1_000
MAX_BLOCKS = 10_000
MAX_RESOLUTION = 8_192


class ArchError(FieldError):
    """A definition that makes no sense."""


@dataclass(frozen=True)
class Row:
    """`repeat` equal blocks in sequence: one row of Table 2.

    Attributes:
        block: the block's registered name.
        channels: output channels of each block.
        repeat: how many blocks.
        stride: stride of the first block; the others have 1.
        kernel: kernel size of the (depthwise) convolution, odd.
        expansion: multiplies a block's *input* channels.
        se: gate of the squeeze-and-excite, or "none".
        act: activation.
        dw_padding: padding of the depthwise convolution; default kernel // 2.
        dw_group_width: channels a group of the "depthwise" convolution; default 1.
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
        spec = self._spec_class()
        _check_int("channels", self.channels, 1, MAX_CHANNELS)
        _check_int("repeat", self.repeat, 1, MAX_REPEAT)
        if self.stride not in (1, 2) or isinstance(self.stride, bool):
            raise ArchError(f"{self.stride!r} is not 1 or 2", "stride")
        self._check_use(spec)
        if self.kernel is not None:
            _check_int("kernel", self.kernel, 1, 63)
            if self.kernel % 2 == 0:
                raise ArchError(f"{self.kernel} is even", "kernel")
        if self.expansion is not None:
            if isinstance(self.expansion, bool) or not isinstance(self.expansion, (int, float)):
                raise ArchError(f"{self.expansion!r} is not a number", "expansion")
            if not MIN_EXPANSION <= self.expansion <= 64:
                raise ArchError(f"{self.expansion} is not in [{MIN_EXPANSION}, 64]", "expansion")
        _check_choice("se", self.se, SE_GATES)
        _check_choice("act", self.act, ACTIVATIONS)
        if self.dw_padding is not None:
            _check_int("dw_padding", self.dw_padding, 0, (self.kernel or 1) // 2)
            if self.dw_padding != (self.kernel or 1) // 2 and (self.repeat > 1 or self.stride == 1):
                raise ArchError("shrinks the map: only for a single block of stride 2", "dw_padding")
        if self.dw_group_width is not None:
            _check_int("dw_group_width", self.dw_group_width, 1, MAX_CHANNELS)

    def _spec_class(self) -> type[BlockSpec]:
        try:
            return BLOCK_SPECS.get(self.block)
        except (UnknownNameError, TypeError) as error:
            raise ArchError(str(error), "block") from None

    def _check_use(self, spec: type[BlockSpec]) -> None:
        always = {"block", "channels", "repeat", "stride"}
        for f in fields(self):
            value, read = getattr(self, f.name), f.name in spec.REQUIRED | spec.OPTIONAL
            if f.name in spec.REQUIRED and value is None:
                raise ArchError(f"missing: a {self.block} needs it", f.name)
            if not read and f.name not in always and value != f.default:
                raise ArchError(f"{value!r} has no meaning for a {self.block}", f.name)

    def spec(self, in_channels: int, first: bool) -> BlockSpec:
        """The spec of the row's first block or of a later one, for its input channels."""
        return self._spec_class().from_row(self, in_channels, self.stride if first else 1)


@dataclass(frozen=True)
class Stage:
    """Rows that follow each other at, by custom, one resolution."""

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.rows, tuple) or not all(isinstance(row, Row) for row in self.rows):
            raise ArchError("is not a tuple of rows", "rows")
        if not self.rows:
            raise ArchError("empty: a stage needs at least one row", "rows")


@dataclass(frozen=True)
class Block:
    """One block where it stands: `index` counts on through the rows of a stage."""

    stage: int
    row: int
    index: int
    kind: str
    spec: BlockSpec

    @property
    def name(self) -> str:
        """Position as "stage.index", the key under which the module lies."""
        return f"{self.stage}.{self.index}"


@dataclass(frozen=True)
class ArchDef:
    """A whole network up to the classifier, as data.

    Attributes:
        name: its name in the registry.
        stages: what it consists of.
        resolution: native side of the square input, in pixels.
        resize: side to which an image's short side is resized before the centre crop of `resolution` pixels.
        source: where it comes from, for people.
    """

    name: str
    stages: tuple[Stage, ...]
    resolution: int
    resize: int
    source: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise ArchError(f"{self.name!r} is not made of letters, digits, '_', '-' and '.'", "name")
        if not isinstance(self.source, str):
            raise ArchError(f"{self.source!r} is not text", "source")
        _check_int("resolution", self.resolution, 1, MAX_RESOLUTION)
        _check_int("resize", self.resize, self.resolution, 2 * MAX_RESOLUTION)
        if not isinstance(self.stages, tuple) or not all(isinstance(stage, Stage) for stage in self.stages):
            raise ArchError("is not a tuple of stages", "stages")
        if not self.stages:
            raise ArchError("empty: a network needs at least one stage", "stages")
        if (count := sum(row.repeat for stage in self.stages for row in stage.rows)) > MAX_BLOCKS:
            raise ArchError(f"{count:,} blocks are more than {MAX_BLOCKS:,}", "stages")
        self._check_blocks()

    def _check_blocks(self) -> None:
        blocks = self.blocks()
        size = self.resolution
        for block in blocks:
            where = f"stages[{block.stage}].rows[{block.row}]"
            if block.kind == "mbpool" and block is not blocks[-1]:
                raise ArchError("mbpool ends in a 1x1 map: it can only be the network's last block", f"{where}.block")
            groups = getattr(block.spec, "groups", 1)
            mid = getattr(block.spec, "mid_channels", groups)
            if groups < 1 or mid % groups:
                raise ArchError(f"does not divide the {mid} expanded channels", f"{where}.dw_group_width")
            _, size, _ = block.spec.cost(size, size)
            if size < 1:
                raise ArchError(f"{self.resolution} is too small: nothing is left at {where}", "resolution")

    def blocks(self, in_chans: int = 3) -> tuple[Block, ...]:
        """Every block in order, for an input of `in_chans` channels."""
        found, channels = [], in_chans
        for s, stage in enumerate(self.stages):
            index = 0
            for r, row in enumerate(stage.rows):
                for i in range(row.repeat):
                    spec = row.spec(channels, first=i == 0)
                    found.append(Block(s, r, index, row.block, spec))
                    channels, index = spec.out_channels, index + 1
        return tuple(found)

    @property
    def out_channels(self) -> int:
        """Channels of the last block."""
        return self.stages[-1].rows[-1].channels


def feature_blocks(defn: ArchDef) -> list[tuple[Block, int]]:
    """The last block at each stride of the trunk, finest first, and that stride. An mbpool is not among them."""
    found: dict[int, Block] = {}
    stride = 1
    for block in defn.blocks():
        if block.kind != "mbpool":
            stride *= block.spec.stride
            found[stride] = block
    return [(block, stride) for stride, block in found.items()]


def _check_int(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArchError(f"{value!r} is not a whole number", field)
    if not low <= value <= high:
        raise ArchError(f"{value} is not in [{low}, {high}]", field)


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArchError(f"{value!r} is not one of {', '.join(choices)}", field)
