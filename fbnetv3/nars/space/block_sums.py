"""Sums over the blocks of many candidates at once, of whatever can be said of one block.

What is said of a block depends on few things: its own row, the channels and the size of its input. Each combination is
asked about once, and looked up for all candidates that have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from fbnetv3.arch import ArchError, Row
from fbnetv3.arch.block_specs import BlockSpec
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.templates import SpaceError, is_variable, split_expansion

# Numbers, none of them negative, that are known of a block: its registered name, its spec, the side of its input.
Priced = Callable[[str, BlockSpec, int], Sequence[float]]

# A table with more places than this is not laid out in memory; what is in it is then looked for by sorting.
_MOST_PLACES = 4_000_000
_UNKNOWN, _INVALID = -2, -1
_MOST_OF_A_BLOCK = 2**48
_MOST_CHANNELS = 2**31  # beyond what any network has; a template may say anything


@dataclass(frozen=True)
class _Coded:
    """A quantity that takes few values, and which of them each candidate has; without codes, all have the only one."""

    values: tuple[Any, ...]
    codes: np.ndarray | None = None

    def each(self) -> np.ndarray:
        """The value of each candidate, or a single one."""
        values = np.asarray(self.values)
        return values if self.codes is None else values[self.codes]


class _Part:
    """Equal blocks of a row, and a table of what is known of one of them, filled as combinations come up.

    Args:
        fields: of the row, values or `$variable`.
        repeat: how many blocks there are, a value or `$variable`.
        less: how many fewer than that; 1 for those after a row's first, whose input is what the row puts out.
    """

    def __init__(self, fields: Mapping[str, Any], repeat: Any, less: int) -> None:
        self.fixed = {key: value for key, value in fields.items() if not is_variable(value)}
        self.varied = {key: value[1:] for key, value in fields.items() if is_variable(value)}
        self.channels = fields.get("channels")
        self.resizes = fields.get("stride", 1) != 1 or fields.get("block") == "mbpool"
        self.repeat, self.less = repeat, less
        self._known: dict[tuple[Any, ...], tuple[float, ...]] = {}
        self._sides: tuple[int, ...] = ()
        self._table: np.ndarray | None = None

    def look_up(self, inputs: list[_Coded], names: list[str], priced: _Prices) -> np.ndarray:
        """What is known of one block and the side of its output, (candidates or 1, columns + 1).

        Args:
            inputs: what it depends on; the last two are channels and side of the input.
            names: the fields that the others are of.
            priced: what to ask.
        """
        places, keys = 1, np.zeros(1, np.int64)
        for coded in inputs:
            if coded.codes is not None:
                keys = keys + places * coded.codes
            places *= len(coded.values)
        if places > _MOST_PLACES:
            unique, inverse = np.unique(keys, return_inverse=True)
            rows = [self._one(key, inputs, names, priced) for key in unique.tolist()]
            return np.array(rows, priced.dtype)[inverse]
        # a place stands for a side by its number among those of the candidates at hand, which are others each time
        sides = inputs[-1].values
        if self._table is None or len(self._table) != places or self._sides != sides:
            self._sides = sides
            self._table = np.full((places, priced.columns + 1), _UNKNOWN, priced.dtype)
        found = self._table[keys]
        missing = found[:, 0] == _UNKNOWN
        if missing.any():
            for key in np.unique(keys[missing]).tolist():
                self._table[key] = self._one(key, inputs, names, priced)
            found = self._table[keys]
        return found

    def _one(self, key: int, inputs: list[_Coded], names: list[str], priced: _Prices) -> tuple[float, ...]:
        values, rest = [], key
        for coded in inputs:
            rest, code = divmod(rest, len(coded.values))
            values.append(coded.values[code])
        known = tuple(values)
        if known not in self._known:
            *fields, channels, side = values
            spec, height = self.block(dict(zip(names, fields, strict=True)), channels, side)
            found = (_INVALID,) * priced.columns if spec is None else priced.of(self.fixed["block"], spec, side)
            if max(found) > _MOST_OF_A_BLOCK:  # sums of such would not fit into 64 bits
                found, height = (_INVALID,) * priced.columns, _INVALID
            self._known[known] = (*found, height)
        return self._known[known]

    def block(self, fields: Mapping[str, Any], channels: int, side: int) -> tuple[BlockSpec | None, int]:
        """One block and the side of its output, for values of the varied fields; None, -1 where there is none."""
        try:
            spec = Row(**self.fixed, **fields).spec(channels, first=True)
        except ArchError:
            return None, _INVALID
        groups = getattr(spec, "groups", 1)
        if side < 1 or groups < 1 or getattr(spec, "mid_channels", groups) % groups:
            return None, _INVALID
        _, height, _ = spec.cost(side, side)
        return (spec, height) if height > 0 else (None, _INVALID)


@dataclass(frozen=True)
class _Prices:
    of: Priced
    columns: int
    dtype: type


class BlockSums:
    """Sums over the blocks of candidates.

    Args:
        space: has an architecture template.
        priced: what is known of one block; it is asked once for each.
        columns: how many numbers that are.
        dtype: theirs.
        in_chans: channels of the networks' input.

    Raises:
        SpaceError: the space has no architectures, or a row of the template is none.
    """

    def __init__(self, space: Space, priced: Priced, columns: int, dtype: type = np.int64, in_chans: int = 3) -> None:
        if space.architecture is None:
            raise SpaceError("the space has no template", "architecture")
        self.space, self.in_chans, self._priced = space, in_chans, _Prices(priced, columns, dtype)
        self._index = {variable.name: i for i, variable in enumerate(space.variables)}
        self._resolution = space.architecture["resolution"]
        self._stages: list[list[_Part]] = []
        for s, stage in enumerate(space.architecture["stages"]):
            try:
                rows = list(split_expansion(stage["rows"]))
                self._stages.append([part for row, which in rows for part in _parts_of(row, which)])
            except SpaceError as error:
                raise error.within(f"architecture.stages[{s}]") from None

    def total(self, candidates: np.ndarray) -> Totals:
        """Sums over all blocks; candidates are integers (N, variables)."""
        candidates = self.space.check(candidates)
        sums: np.ndarray = np.zeros((len(candidates), self._priced.columns), self._priced.dtype)
        blocks, valid = np.zeros(len(candidates), np.int64), np.ones(len(candidates), bool)
        channels = side = np.zeros(0, np.int64)
        if len(candidates):
            for _, count, found, ends in self._walk(candidates):  # noqa: B007
                valid &= (found[:, 0] >= 0) | (count <= 0)
                count = np.maximum(count, 0)
                sums += found * count[:, None]
                blocks += count
            channels, side = (
                np.broadcast_to(np.minimum(end.each(), _MOST_CHANNELS).astype(np.int64), len(candidates))
                for end in ends
            )
        return Totals(sums, blocks, channels, side, valid)

    def per_stage(self, candidates: np.ndarray) -> np.ndarray:
        """Sums over the blocks of each stage, and their number as the last column, (N, stages, columns + 1); all are -1
        where a candidate makes no network."""
        candidates = self.space.check(candidates)
        total: np.ndarray = np.zeros((len(candidates), len(self._stages), self._priced.columns + 1), self._priced.dtype)
        if not len(candidates):
            return total
        valid = np.ones(len(candidates), bool)
        for stage, count, found, _ in self._walk(candidates):
            valid &= (found[:, 0] >= 0) | (count <= 0)
            count = np.maximum(count, 0)
            total[:, stage, :-1] += found * count[:, None]
            total[:, stage, -1] += count
        total[~valid] = _INVALID
        return total

    def blocks(self) -> list[tuple[str, BlockSpec, int]]:
        """Every block that a candidate can have: its registered name, its spec and the side of its input."""
        return list(self._reached()[0])

    def ends(self) -> list[tuple[int, int]]:
        """Channels and side of what the last block of a candidate can put out."""
        return sorted(self._reached()[1])

    def _reached(self) -> tuple[dict[tuple[str, BlockSpec, int], None], set[tuple[int, int]]]:
        found: dict[tuple[str, BlockSpec, int], None] = {}
        inputs = {(self.in_chans, side) for side in self._values(self._resolution)}
        for part in (part for parts in self._stages for part in parts):
            outputs: set[tuple[int, int]] = set()
            for values in product(*(self._values(f"${name}") for name in part.varied.values())):
                fields = dict(zip(part.varied, values, strict=True))
                own: Any = fields.get("channels", part.fixed.get("channels"))
                for channels, side in sorted(inputs):
                    if part.less and channels != own:
                        continue
                    spec, height = part.block(fields, channels, side)
                    if spec is not None:
                        found[part.fixed["block"], spec, side] = None
                        outputs.add((own, height))
            # where a row may have a single block, what follows it meets what came in
            inputs = outputs | inputs if part.less else outputs
        return found, inputs

    def _values(self, value: Any) -> tuple[Any, ...]:
        return self.space.variables[self._index[value[1:]]].values if is_variable(value) else (value,)

    def _walk(self, candidates: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[_Coded, _Coded]]]:
        """Part by part: its stage, how many blocks it has, what is known of one, and channels and side of what they put
        out.

        Numbers are (N,) and what is known (N, columns), or a single one for all candidates.
        """
        coded = {name: _Coded(self.space.variables[i].values, candidates[:, i]) for name, i in self._index.items()}

        def of(value: Any) -> _Coded:
            return coded[value[1:]] if is_variable(value) else _Coded((value,))

        side, channels = of(self._resolution), _Coded((self.in_chans,))
        for stage, parts in enumerate(self._stages):
            for part in parts:
                names = list(part.varied)
                inputs = [*(coded[part.varied[name]] for name in names), channels, side]
                found = part.look_up(inputs, names, self._priced)
                channels = of(part.channels)
                if part.resizes:
                    sides, codes = np.unique(found[:, -1].astype(np.int64), return_inverse=True)
                    side = _Coded(tuple(sides.tolist()), np.broadcast_to(codes, len(candidates)))
                yield stage, np.atleast_1d(of(part.repeat).each() - part.less), found[:, :-1], (channels, side)


@dataclass(frozen=True)
class Totals:
    """Sums over the blocks of candidates.

    Attributes:
        sums: (N, columns).
        blocks: how many blocks each has, (N,).
        channels, side: of the last block's output, (N,).
        valid: which make networks, bool (N,); what the others have means nothing.
    """

    sums: np.ndarray
    blocks: np.ndarray
    channels: np.ndarray
    side: np.ndarray
    valid: np.ndarray


def _parts_of(row: Mapping[str, Any], which: str) -> list[_Part]:
    """A row's first block, and the others, whose input is what the row puts out."""
    fields = {key: value for key, value in row.items() if key != "repeat"}
    repeat = row.get("repeat", 1)
    if which == "rest":
        return [_Part(fields, repeat, 1)]
    first = _Part(fields, 1, 0)
    return [first] if which == "first" or repeat == 1 else [first, _Part({**fields, "stride": 1}, repeat, 1)]
