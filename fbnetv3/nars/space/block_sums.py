"""Sum any values that a block determines over the blocks of many candidates at once.

The values of a block depend only on its row and on the channels and side of its input. Each combination is evaluated
once and then looked up for all candidates that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from fbnetv3.arch import ArchError, Row
from fbnetv3.arch.block_specs import BLOCK_SPECS, BlockSpec
from fbnetv3.arch.definition import MAX_RESOLUTION
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.templates import is_variable, split_expansion
from fbnetv3.nars.space.variables import ARCHITECTURE, SpaceError, Variable

# With more combinations than this, values are found by sorting the combinations that occur instead of in a table
_MAX_TABLE_ROWS = 4_000_000
# Number of combinations that a group of blocks remembers
_MAX_REMEMBERED = 1_000_000
_UNKNOWN = -2
_INVALID = -1
# In place of the value of an inactive variable; a singleton in other processes, too
_ABSENT = Ellipsis


class BlockFunctions(NamedTuple):
    """Functions that return what is summed: non-negative values of a block, and of a head."""

    # Called with the block's registered name, its spec and the side of its input
    block: Callable[[str, BlockSpec, int], Sequence[float]]
    head: Callable[[int, int], Sequence[float]] | None  # called with channels and side of its input
    num_columns: int  # number of values
    dtype: type = np.int64


class BlockTotals(NamedTuple):
    """Sums over the blocks of N candidates. The values of invalid candidates are meaningless."""

    sums: np.ndarray  # (N, stages, columns)
    num_blocks: np.ndarray  # (N, stages)
    valid: np.ndarray  # which candidates form a network, bool (N,)


class BlockSums:
    """Sums over the blocks of the candidates of a space with an architecture template."""

    def __init__(self, space: Space, functions: BlockFunctions, in_chans: int = 3) -> None:
        if space.architecture is None:
            raise SpaceError(f"{space.name} has no architecture template", ARCHITECTURE)
        self.space = space
        self.in_chans = in_chans
        self._functions = functions
        self._resolution = space.architecture["resolution"]
        # Groups of identical blocks, from input to output
        self._groups: list[_BlockGroup] = []
        stages = space.architecture["stages"]
        rows = [(index, row) for index, stage in enumerate(stages) for row in stage["rows"]]
        for stage, template_row in rows:
            for row, blocks in split_expansion(template_row):
                # The input of a row's later blocks is its output; only the first block of the last row may pool
                if blocks != "rest":
                    is_last = template_row is rows[-1][1]
                    self._groups.append(_BlockGroup(stage, row, 1, 0, is_last, functions))
                repeat = row.get("repeat", 1)
                if blocks != "first" and repeat != 1:
                    later = {**row, "stride": 1}
                    self._groups.append(_BlockGroup(stage, later, repeat, 1, False, functions))

    def total(self, candidates: np.ndarray, by_stage: bool = False) -> BlockTotals:
        """Sum over the blocks of candidates, integers (N, variables).

        With `by_stage`, there is one sum per stage, and the head is left out. Without it, there is a single sum, which
        includes the head as one more block.
        """
        candidates = self.space.validate(candidates)
        variables = self._encode_variables(candidates)
        num_candidates = len(candidates)
        shape = (num_candidates, self._groups[-1].stage + 1 if by_stage else 1)
        sums: np.ndarray = np.zeros((*shape, self._functions.num_columns), self._functions.dtype)
        num_blocks = np.zeros(shape, np.int64)
        valid = np.ones(num_candidates, bool)

        def quantity(value: Any) -> _CodedValues:
            return variables[value[1:]] if is_variable(value) else _CodedValues((value,))

        # Follow channels and sides of all candidates through the groups of blocks
        channels = _CodedValues((self.in_chans,))
        side = quantity(self._resolution)
        for group in self._groups:
            fields = [variables[name] for name in group.variables.values()]
            rows = group.look_up([*fields, channels, side])
            values = rows[:, :-1]
            count = np.maximum(quantity(group.repeat).per_candidate() - group.skipped, 0)
            stage = group.stage if by_stage else 0
            sums[:, stage] += values * count[:, None]
            num_blocks[:, stage] += count
            # An invalid block does not matter for candidates that do not contain it
            valid &= (values[:, 0] >= 0) | (count == 0)
            channels = quantity(group.fields["channels"])
            if group.resizes:
                # A candidate without blocks of the group keeps the side of its map
                output_sides = np.where(count > 0, rows[:, -1].astype(np.int64), side.per_candidate())
                sides, codes = np.unique(output_sides, return_inverse=True)
                side = _CodedValues(tuple(sides.tolist()), np.broadcast_to(codes, num_candidates))
        if self._functions.head is not None and not by_stage:
            self._add_heads(sums[:, 0], channels, side, valid)
            num_blocks += 1
        return BlockTotals(sums, num_blocks, valid)

    def _encode_variables(self, candidates: np.ndarray) -> dict[str, _CodedValues]:
        """Return the variables of candidates by name; inactive ones are absent."""
        active = self.space.active(candidates).T
        variables = {}
        for variable, codes, is_active in zip(self.space.variables, candidates.T, active, strict=True):
            if variable.when:
                codes = np.where(is_active, codes, len(variable))
            variables[variable.name] = _CodedValues(variable.values, codes, bool(variable.when))
        return variables

    def _add_heads(
        self, sums: np.ndarray, channels: _CodedValues, side: _CodedValues, valid: np.ndarray
    ) -> None:
        """Add the values of the heads of valid candidates, whose input is the last block's output."""
        assert self._functions.head is not None
        # One key per (channels, side), of which there are few
        base = MAX_RESOLUTION + 1
        keys = channels.per_candidate() * base + side.per_candidate()
        keys, indices = np.unique(np.broadcast_to(keys, len(valid))[valid], return_inverse=True)
        heads = [self._functions.head(*divmod(key, base)) for key in keys.tolist()]
        sums[valid] += np.array(heads, sums.dtype).reshape(-1, sums.shape[1])[indices]

    def list_reachable(self) -> tuple[list[tuple[str, BlockSpec, int]], list[tuple[int, int]]]:
        """List all blocks that candidates can have, and all (channels, side) of the last block's output.

        A block is its registered name, its spec and the side of its input. Blocks that only conditions among the
        variables of a row exclude are listed, too.

        Raises:
            SpaceError: a block has a continuous variable.
        """
        by_name = {variable.name: variable for variable in self.space.variables}
        resolutions: Sequence[int] = (self._resolution,)
        if is_variable(self._resolution):
            resolutions = by_name[self._resolution[1:]].values
        blocks: dict[tuple[str, BlockSpec, int], None] = {}  # an ordered set
        inputs = {(self.in_chans, side) for side in resolutions}
        for group in self._groups:
            # Build the block with all values of its variables, for all inputs
            outputs: set[tuple[int, int]] = set()
            for values in product(*(_list_values(by_name[name]) for name in group.variables.values())):
                fields = {**group.fields, **dict(zip(group.variables, values, strict=True))}
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
        return list(blocks), sorted(inputs)


def _list_values(variable: Variable) -> tuple[Any, ...]:
    """Return all values of a variable, and that it may be absent."""
    if variable.is_continuous:
        raise SpaceError("is continuous, so blocks cannot be listed: give its range a step", variable.name)
    return (*variable.values, _ABSENT) if variable.when else tuple(variable.values)


@dataclass(frozen=True)
class _CodedValues:
    """A quantity with few distinct values, and the index of each candidate's value; None if all share the only one.

    The index after the last is that of an optional quantity that is absent.
    """

    values: Sequence[Any]
    codes: np.ndarray | None = None
    is_optional: bool = False

    def __len__(self) -> int:
        """Return the number of codes."""
        return len(self.values) + self.is_optional

    def __getitem__(self, code: int) -> Any:
        return self.values[code] if code < len(self.values) else _ABSENT

    def per_candidate(self) -> np.ndarray:
        """Return the value of each candidate, (N,), or (1,) if all share it; 1 where it is absent, like `repeat`."""
        values = np.asarray([*self.values, 1] if self.is_optional else self.values)
        return values if self.codes is None else values[self.codes]


class _BlockGroup:
    """Identical blocks of a row, and a table of one block's values, filled as combinations of inputs come up.

    Of the row's `repeat` blocks, `skipped` are not in the group.
    """

    def __init__(
        self,
        stage: int,
        row: Mapping[str, Any],
        repeat: Any,
        skipped: int,
        may_pool: bool,
        functions: BlockFunctions,
    ) -> None:
        self.stage = stage
        self.fields = {name: value for name, value in row.items() if name != "repeat"}
        self.variables = {name: value[1:] for name, value in self.fields.items() if is_variable(value)}
        self.repeat = repeat
        self.skipped = skipped
        self.may_pool = may_pool
        block = row["block"]
        pools = is_variable(block) or BLOCK_SPECS.get(block).ends_in_pool
        self.resizes = pools or row.get("stride", 1) != 1
        self._functions = functions
        self._rows: dict[tuple[Any, ...], tuple[float, ...]] = {}
        self._table: np.ndarray = np.zeros((0, 0))
        self._table_sides: Sequence[int] | None = None

    def look_up(self, inputs: Sequence[_CodedValues]) -> np.ndarray:
        """Return the values of one block and its output side, (N, columns + 1); -1 where there is no such block.

        `inputs` are the variables of the group's fields, then channels and side of the input. If all candidates share
        all inputs, the result has one row.
        """
        # Number the combination of input values that each candidate has
        keys = np.zeros(1, np.int64)
        num_combinations = 1
        for quantity in inputs:
            if quantity.codes is not None:
                keys = keys + num_combinations * quantity.codes
            num_combinations *= len(quantity)

        if num_combinations > _MAX_TABLE_ROWS:
            unique_keys, inverse = np.unique(keys, return_inverse=True)
            unique_rows = [self._row(key, inputs) for key in unique_keys.tolist()]
            return np.array(unique_rows, self._functions.dtype)[inverse]

        # Sides are renumbered for each batch of candidates, so a new batch can invalidate the table
        sides = inputs[-1].values
        if self._table_sides != sides:
            shape = (num_combinations, self._functions.num_columns + 1)
            self._table = np.full(shape, _UNKNOWN, self._functions.dtype)
            self._table_sides = sides

        # Fill in combinations that occur for the first time
        rows = self._table[keys]
        unknown = rows[:, 0] == _UNKNOWN
        if unknown.any():
            for key in np.unique(keys[unknown]).tolist():
                self._table[key] = self._row(key, inputs)
            rows = self._table[keys]
        return rows

    def _row(self, key: int, inputs: Sequence[_CodedValues]) -> tuple[float, ...]:
        """Return the values and the output side for one combination of inputs, evaluated at most once."""
        # The values that the key stands for, in mixed-radix notation
        values = []
        for quantity in inputs:
            key, code = divmod(key, len(quantity))
            values.append(quantity[code])
        combination = tuple(values)
        if combination not in self._rows:
            if len(self._rows) == _MAX_REMEMBERED:
                self._rows.clear()
            *own, channels, side = combination
            fields = {**self.fields, **dict(zip(self.variables, own, strict=True))}
            spec, output_side = self.build(fields, channels, side)
            if spec is None:
                block_values: Sequence[float] = (_INVALID,) * self._functions.num_columns
            else:
                block_values = self._functions.block(fields["block"], spec, side)
            self._rows[combination] = (*block_values, output_side)
        return self._rows[combination]

    def build(self, fields: Mapping[str, Any], channels: int, side: int) -> tuple[BlockSpec | None, int]:
        """Build one block for an input of `channels` and `side`; return its spec and output side, or None and -1."""
        if side < 1:
            return None, _INVALID
        # A candidate whose fields do not fit together is invalid
        try:
            row = Row(**{name: value for name, value in fields.items() if value is not _ABSENT})
            spec = row.spec(channels, first=True)
        except ArchError:
            return None, _INVALID
        _, output_side, _ = spec.cost(side, side)
        if output_side < 1 or (spec.ends_in_pool and not self.may_pool):
            return None, _INVALID
        return spec, output_side
