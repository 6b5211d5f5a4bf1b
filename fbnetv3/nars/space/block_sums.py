"""Sums over the blocks of many candidates at once, of any values that a block determines.

The values of a block depend only on its row and on the channels and side of its input. Each combination is evaluated
once and then looked up for all candidates that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fbnetv3.arch import ArchError, Row
from fbnetv3.arch.block_specs import BLOCK_SPECS, BlockSpec
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.templates import SpaceError, is_variable, split_expansion

BlockFunction = Callable[[str, BlockSpec, int], Sequence[float]]
"""From a block's registered name, its spec and the side of its input to non-negative values, one per column."""

# With more combinations than this, values are found by sorting the combinations that occur instead of in a table
_MAX_TABLE_ROWS = 4_000_000
_UNKNOWN = -2
_INVALID = -1


@dataclass(frozen=True)
class BlockTotals:
    """Sums over the blocks of candidates. The values of invalid candidates are meaningless.

    Attributes:
        sums: (N, columns).
        num_blocks: (N,).
        channels: output channels of the last block, (N,).
        side: output side of the last block, (N,).
        valid: which candidates form a network, bool (N,).
    """

    sums: np.ndarray
    num_blocks: np.ndarray
    channels: np.ndarray
    side: np.ndarray
    valid: np.ndarray


class BlockSums:
    """Sums over the blocks of candidates.

    Args:
        space: a space with an architecture template.
        function: evaluated once for each block that occurs.
        num_columns: number of values that `function` returns.
        dtype: their type.
        in_chans: input channels of the networks.

    Raises:
        SpaceError: the space has no architecture template.
    """

    def __init__(
        self,
        space: Space,
        function: BlockFunction,
        num_columns: int,
        dtype: type = np.int64,
        in_chans: int = 3,
    ) -> None:
        if space.architecture is None:
            raise SpaceError("missing: this space has no architecture template", "architecture")
        self.space = space
        self.in_chans = in_chans
        self._function = _BlockFunctionInfo(function, num_columns, dtype)
        self._index = {variable.name: i for i, variable in enumerate(space.variables)}
        self._resolution = space.architecture["resolution"]
        # Groups of identical blocks, by stage
        self._stages: list[list[_BlockGroup]] = []
        last_row = space.architecture["stages"][-1]["rows"][-1]
        for stage in space.architecture["stages"]:
            groups = []
            for template_row in stage["rows"]:
                for row, blocks in split_expansion([template_row]):
                    # Only the last row may pool, and only in its first block
                    may_pool = template_row is last_row and blocks != "rest"
                    groups += _block_groups(row, blocks, may_pool, self._function)
            self._stages.append(groups)

    def total(self, candidates: np.ndarray) -> BlockTotals:
        """Sum over all blocks of candidates, integers (N, variables)."""
        candidates = self.space.check(candidates)
        count = len(candidates)
        sums: np.ndarray = np.zeros((count, self._function.num_columns), self._function.dtype)
        num_blocks = np.zeros(count, np.int64)
        valid = np.ones(count, bool)
        channels = side = np.zeros(0, np.int64)
        if count:
            for step in self._walk(candidates):
                # A candidate is invalid if any of its blocks is
                valid &= step.valid
                sums += step.values * step.num_blocks[:, None]
                num_blocks += step.num_blocks
            # The output of the last block is the input of the head
            channels = np.broadcast_to(step.channels.per_candidate(), count)
            side = np.broadcast_to(step.side.per_candidate(), count)
        return BlockTotals(sums, num_blocks, channels, side, valid)

    def per_stage(self, candidates: np.ndarray) -> np.ndarray:
        """Sum over the blocks of each stage.

        Returns:
            (N, stages, columns + 1), with the number of blocks as the last column; -1 for invalid candidates.
        """
        candidates = self.space.check(candidates)
        shape = (len(candidates), len(self._stages), self._function.num_columns + 1)
        sums: np.ndarray = np.zeros(shape, self._function.dtype)
        if not len(candidates):
            return sums
        valid = np.ones(len(candidates), bool)
        for step in self._walk(candidates):
            valid &= step.valid
            sums[:, step.stage, :-1] += step.values * step.num_blocks[:, None]
            sums[:, step.stage, -1] += step.num_blocks
        sums[~valid] = _INVALID
        return sums

    def possible_blocks(self) -> list[tuple[str, BlockSpec, int]]:
        """Return every block that a candidate can have: its registered name, its spec and the side of its input."""
        blocks, _ = self._reachable()
        return list(blocks)

    def possible_outputs(self) -> list[tuple[int, int]]:
        """Return all (channels, side) that the last block of a candidate can have as its output."""
        _, outputs = self._reachable()
        return sorted(outputs)

    def _walk(self, candidates: np.ndarray) -> Iterator[_Step]:
        """Follow channels and sides of all candidates through the groups of blocks, from input to output."""
        variables = {}
        for name, index in self._index.items():
            variables[name] = _Quantity(self.space.variables[index].values, candidates[:, index])

        def quantity(value: Any) -> _Quantity:
            return variables[value[1:]] if is_variable(value) else _Quantity((value,))

        side = quantity(self._resolution)
        channels = _Quantity((self.in_chans,))
        for stage, groups in enumerate(self._stages):
            for group in groups:
                fields = [variables[name] for name in group.variables.values()]
                rows = group.look_up([*fields, channels, side])
                values = rows[:, :-1]
                num_blocks = np.maximum(quantity(group.repeat).per_candidate() - group.skipped, 0)
                channels = quantity(group.channels)
                if group.resizes:
                    output_sides = rows[:, -1].astype(np.int64)
                    # A candidate without blocks of the group keeps the side of its map
                    output_sides = np.where(num_blocks > 0, output_sides, side.per_candidate())
                    sides, codes = np.unique(output_sides, return_inverse=True)
                    side = _Quantity(tuple(sides.tolist()), np.broadcast_to(codes, len(candidates)))
                # An invalid block does not matter for candidates that do not contain it
                valid = (values[:, 0] >= 0) | (num_blocks == 0)
                yield _Step(stage, num_blocks, values, valid, channels, side)

    def _reachable(self) -> tuple[dict[tuple[str, BlockSpec, int], None], set[tuple[int, int]]]:
        """Return all blocks, as an ordered dictionary's keys, and all (channels, side) of the last block's output."""
        blocks: dict[tuple[str, BlockSpec, int], None] = {}
        inputs = {(self.in_chans, side) for side in self._values(self._resolution)}
        for group in (group for groups in self._stages for group in groups):
            # Build the block with all values of its variables, for all inputs
            outputs: set[tuple[int, int]] = set()
            for values in product(*(self._values(f"${name}") for name in group.variables.values())):
                fields = {**group.fixed, **dict(zip(group.variables, values, strict=True))}
                for channels, side in sorted(inputs):
                    # The input of a row's later blocks is the row's own output
                    if group.skipped and channels != fields["channels"]:
                        continue
                    spec, output_side = group.build(fields, channels, side)
                    if spec is not None:
                        blocks[fields["block"], spec, side] = None
                        outputs.add((fields["channels"], output_side))
            # A row may have no later blocks, in which case the next row follows the first one
            inputs = outputs | inputs if group.skipped else outputs
        return blocks, inputs

    def _values(self, value: Any) -> tuple[Any, ...]:
        """Return the possible values of a template's value."""
        return self.space.variables[self._index[value[1:]]].values if is_variable(value) else (value,)


@dataclass(frozen=True)
class _BlockFunctionInfo:
    """A block function, the number of values that it returns, and their type."""

    call: BlockFunction
    num_columns: int
    dtype: type


@dataclass(frozen=True)
class _Quantity:
    """A quantity with few values, and the index of each candidate's value; without codes, all have the only one."""

    values: tuple[Any, ...]
    codes: np.ndarray | None = None

    def per_candidate(self) -> np.ndarray:
        """Return the values of the candidates, (N,), or (1,) if all have the same."""
        values = np.asarray(self.values)
        return values if self.codes is None else values[self.codes]


class _Step(NamedTuple):
    """A group of blocks in all candidates. Arrays are (N, ...), or (1, ...) if all candidates agree."""

    stage: int
    num_blocks: np.ndarray
    values: np.ndarray
    """The function's values for one block, (N, columns)."""
    valid: np.ndarray
    channels: _Quantity
    """Output channels."""
    side: _Quantity
    """Output side."""


class _BlockGroup:
    """Identical blocks of a row, and a table of one block's values, filled as combinations of inputs come up.

    Args:
        fields: fields of the row, values or `$variable`.
        repeat: the row's number of blocks, a value or `$variable`.
        skipped: how many of these are not in the group; 1 for the blocks after a row's first.
        may_pool: whether the blocks may reduce the map to 1x1, as only the network's last block may.
        function: what the table holds.
    """

    def __init__(
        self,
        fields: Mapping[str, Any],
        repeat: Any,
        skipped: int,
        may_pool: bool,
        function: _BlockFunctionInfo,
    ) -> None:
        self.fixed = {field: value for field, value in fields.items() if not is_variable(value)}
        self.variables = {field: value[1:] for field, value in fields.items() if is_variable(value)}
        self.channels = fields["channels"]
        self.repeat = repeat
        self.skipped = skipped
        self.may_pool = may_pool
        self.resizes = fields.get("stride", 1) != 1 or _may_pool(fields["block"])
        self._function = function
        self._rows: dict[tuple[Any, ...], tuple[float, ...]] = {}
        self._table: np.ndarray | None = None
        self._table_sides: tuple[int, ...] = ()

    def look_up(self, inputs: Sequence[_Quantity]) -> np.ndarray:
        """Return the values of one block and its output side.

        Args:
            inputs: the variables of the group's fields, then channels and side of the input.

        Returns:
            (N, columns + 1), or (1, columns + 1) if all candidates have the same inputs; -1 where there is no such
            block.
        """
        # Number the combination of input values that each candidate has
        keys = np.zeros(1, np.int64)
        num_combinations = 1
        for quantity in inputs:
            if quantity.codes is not None:
                keys = keys + num_combinations * quantity.codes
            num_combinations *= len(quantity.values)

        if num_combinations > _MAX_TABLE_ROWS:
            unique_keys, inverse = np.unique(keys, return_inverse=True)
            unique_rows = [self._row(key, inputs) for key in unique_keys.tolist()]
            return np.array(unique_rows, self._function.dtype)[inverse]

        # Sides are renumbered for each batch of candidates, so a new batch can invalidate the table
        sides = inputs[-1].values
        if self._table is None or len(self._table) != num_combinations or self._table_sides != sides:
            shape = (num_combinations, self._function.num_columns + 1)
            self._table = np.full(shape, _UNKNOWN, self._function.dtype)
            self._table_sides = sides

        # Fill in combinations that occur for the first time
        rows = self._table[keys]
        unknown = rows[:, 0] == _UNKNOWN
        if unknown.any():
            for key in np.unique(keys[unknown]).tolist():
                self._table[key] = self._row(key, inputs)
            rows = self._table[keys]
        return rows

    def _row(self, key: int, inputs: Sequence[_Quantity]) -> tuple[float, ...]:
        """Return the values and the output side for one combination of inputs, evaluated at most once."""
        # The values that the key stands for, in mixed-radix notation
        values = []
        for quantity in inputs:
            key, code = divmod(key, len(quantity.values))
            values.append(quantity.values[code])
        combination = tuple(values)
        if combination not in self._rows:
            *own, channels, side = combination
            fields = {**self.fixed, **dict(zip(self.variables, own, strict=True))}
            spec, output_side = self.build(fields, channels, side)
            if spec is None:
                block_values: Sequence[float] = (_INVALID,) * self._function.num_columns
            else:
                block_values = self._function.call(fields["block"], spec, side)
            self._rows[combination] = (*block_values, output_side)
        return self._rows[combination]

    def build(self, fields: Mapping[str, Any], channels: int, side: int) -> tuple[BlockSpec | None, int]:
        """Build one block for an input of `channels` and `side`; return its spec and output side, or None and -1."""
        if side < 1:
            return None, _INVALID
        # Fields whose values do not fit together make candidates with this block invalid
        try:
            spec = Row(**fields).spec(channels, first=True)
        except ArchError:
            return None, _INVALID
        _, output_side, _ = spec.cost(side, side)
        if output_side < 1 or (spec.pools and not self.may_pool):
            return None, _INVALID
        return spec, output_side


def _block_groups(
    row: Mapping[str, Any], blocks: str, may_pool: bool, function: _BlockFunctionInfo
) -> list[_BlockGroup]:
    """Split a row of `split_expansion` into its first block and the later ones, whose input is the row's output."""
    fields = {key: value for key, value in row.items() if key != "repeat"}
    repeat = row.get("repeat", 1)
    groups = []
    if blocks != "rest":
        groups.append(_BlockGroup(fields, 1, 0, may_pool, function))
    if blocks == "rest" or (blocks == "all" and repeat != 1):
        later_fields = {**fields, "stride": 1}
        groups.append(_BlockGroup(later_fields, repeat, 1, False, function))
    return groups


def _may_pool(block: Any) -> bool:
    """Return whether a template's block, a name or `$variable`, can reduce the map to 1x1."""
    return is_variable(block) or (block in BLOCK_SPECS and BLOCK_SPECS.get(block).pools)
