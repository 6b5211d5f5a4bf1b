"""The cost of many candidates at once, equal to `fbnetv3.arch.cost_of` for each.

A block's cost depends on few things: its own row, the channels and the size of its input. Each combination is costed
once, by the very code that costs a definition, and looked up for all candidates that have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fbnetv3.arch import ArchError, Cost, Row
from fbnetv3.arch.analysis import check_counts
from fbnetv3.arch.complexity import avg_pool, conv
from fbnetv3.nars.space import Space, SpaceError, is_variable, split_expansion

COLUMNS = ("macs", "params", "activations")
# A table with more places than this is not laid out in memory; what is in it is then looked for by sorting.
_MOST_PLACES = 4_000_000
_UNKNOWN, _INVALID = -2, (-1, -1, -1, -1)


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
    """Equal blocks of a row, and a table of what one of them costs, filled as combinations come up.

    Args:
        fields: of the row, values or `$variable`.
        repeat: how many blocks there are, a value or `$variable`.
        less: how many fewer than that.
    """

    def __init__(self, fields: Mapping[str, Any], repeat: Any, less: int) -> None:
        self.fixed = {key: value for key, value in fields.items() if not is_variable(value)}
        self.varied = {key: value[1:] for key, value in fields.items() if is_variable(value)}
        self.channels = fields.get("channels")
        self.resizes = fields.get("stride", 1) != 1 or fields.get("block") == "mbpool"
        self.repeat, self.less = repeat, less
        self._known: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._sides: tuple[int, ...] = ()
        self._table: np.ndarray | None = None

    def look_up(self, inputs: list[_Coded], names: list[str]) -> np.ndarray:
        """Cost of one block and the side of its output, (candidates or 1, 4), for values of its fields and its input.

        Args:
            inputs: what the cost depends on; the last two are channels and side of the input.
            names: the fields that the others are of.
        """
        places, keys = 1, np.zeros(1, np.int64)
        for coded in inputs:
            if coded.codes is not None:
                keys = keys + places * coded.codes
            places *= len(coded.values)
        if places > _MOST_PLACES:
            unique, inverse = np.unique(keys, return_inverse=True)
            return np.array([self._one(key, inputs, names) for key in unique.tolist()], np.int64)[inverse]
        # a place stands for a side by its number among those of the candidates at hand, which are others each time
        sides = inputs[-1].values
        if self._table is None or len(self._table) != places or self._sides != sides:
            self._sides = sides
            self._table = np.full((places, len(COLUMNS) + 1), _UNKNOWN, np.int64)
        found = self._table[keys]
        missing = found[:, 0] == _UNKNOWN
        if missing.any():
            for key in np.unique(keys[missing]).tolist():
                self._table[key] = self._one(key, inputs, names)
            found = self._table[keys]
        return found

    def _one(self, key: int, inputs: list[_Coded], names: list[str]) -> tuple[int, ...]:
        values, rest = [], key
        for coded in inputs:
            rest, code = divmod(rest, len(coded.values))
            values.append(coded.values[code])
        known = tuple(values)
        if known not in self._known:
            *fields, channels, side = values
            self._known[known] = self._cost(dict(zip(names, fields, strict=True)), channels, side)
        return self._known[known]

    def _cost(self, fields: Mapping[str, Any], channels: int, side: int) -> tuple[int, ...]:
        try:
            spec = Row(**self.fixed, **fields).spec(channels, first=True)
        except ArchError:
            return _INVALID
        groups = getattr(spec, "groups", 1)
        if side < 1 or groups < 1 or getattr(spec, "mid_channels", groups) % groups:
            return _INVALID
        cost, height, _ = spec.cost(side, side)
        return (*(getattr(cost, column) for column in COLUMNS), height) if height > 0 else _INVALID


class CostModel:
    """Costs of the candidates of a space.

    Args:
        space: has an architecture template.
        num_classes: outputs of the head.
        in_chans: channels of the input.

    Raises:
        SpaceError: the space has no architectures, or a row of the template is none.
    """

    def __init__(self, space: Space, num_classes: int = 1000, in_chans: int = 3) -> None:
        if space.architecture is None:
            raise SpaceError("the space has no template", "architecture")
        check_counts(num_classes, in_chans)
        self.space, self.num_classes, self.in_chans = space, num_classes, in_chans
        self._index = {variable.name: i for i, variable in enumerate(space.variables)}
        self._stages: list[list[_Part]] = []
        for s, stage in enumerate(space.architecture["stages"]):
            try:
                rows = list(split_expansion(stage["rows"]))
                self._stages.append([part for row, which in rows for part in _parts_of(row, which)])
            except SpaceError as error:
                raise error.within(f"architecture.stages[{s}]") from None

    def __call__(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """Costs of candidates.

        Args:
            candidates: integers (N, variables).

        Returns:
            "macs", "params" and "activations", int64 (N,); all are -1 where a candidate makes no network.
        """
        candidates = self.space.check(candidates)
        if not len(candidates):
            return {column: np.zeros(0, np.int64) for column in COLUMNS}
        total = np.zeros((len(candidates), len(COLUMNS)), np.int64)
        valid = np.ones(len(candidates), bool)
        parts = list(self._walk(candidates))
        for _, count, costs, _ in parts:
            valid &= (costs[:, 0] >= 0) | (count <= 0)
            total += costs * np.maximum(count, 0)[:, None]
        total += self._head(*parts[-1][-1])
        return {column: np.where(valid, total[:, i], -1) for i, column in enumerate(COLUMNS)}

    def per_stage(self, candidates: np.ndarray) -> dict[str, np.ndarray]:
        """What each stage of the template costs; together with pool and classifier, it is the cost of the network.

        Args:
            candidates: integers (N, variables).

        Returns:
            "macs", "params", "activations" and "blocks", int64 (N, stages); all are -1 where a candidate makes no
            network.
        """
        candidates = self.space.check(candidates)
        if not len(candidates):
            return {column: np.zeros((0, len(self._stages)), np.int64) for column in (*COLUMNS, "blocks")}
        total = np.zeros((len(candidates), len(self._stages), len(COLUMNS) + 1), np.int64)
        valid = np.ones(len(candidates), bool)
        for stage, count, costs, _ in self._walk(candidates):
            valid &= (costs[:, 0] >= 0) | (count <= 0)
            count = np.maximum(count, 0)
            total[:, stage, :-1] += costs * count[:, None]
            total[:, stage, -1] += count
        total[~valid] = -1
        return {column: total[:, :, i] for i, column in enumerate((*COLUMNS, "blocks"))}

    def _walk(self, candidates: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, tuple[_Coded, _Coded]]]:
        """Part by part: its stage, how many blocks it has, the cost of one, and channels and side of what they put out.

        Numbers are (N,) and costs (N, columns), or a single one for all candidates.
        """
        coded = {name: _Coded(self.space.variables[i].values, candidates[:, i]) for name, i in self._index.items()}

        def of(value: Any) -> _Coded:
            return coded[value[1:]] if is_variable(value) else _Coded((value,))

        side, channels = of(self.space.architecture["resolution"]), _Coded((self.in_chans,))
        for stage, parts in enumerate(self._stages):
            for part in parts:
                names = list(part.varied)
                found = part.look_up([*(coded[part.varied[name]] for name in names), channels, side], names)
                channels = of(part.channels)
                if part.resizes:
                    sides, codes = np.unique(found[:, -1], return_inverse=True)
                    side = _Coded(tuple(sides.tolist()), np.broadcast_to(codes, len(candidates)))
                yield stage, np.atleast_1d(of(part.repeat).each() - part.less), found[:, :-1], (channels, side)

    def _head(self, channels: _Coded, side: _Coded) -> np.ndarray:
        """Cost of pool and classifier, (candidates or 1, 3)."""

        def cost(s: int, c: int) -> Cost:
            if not self.num_classes:
                return Cost()
            return avg_pool(s, s, c) + conv(1, 1, c, self.num_classes, bias=True)

        table = np.array(
            [[[getattr(cost(max(s, 0), c), k) for k in COLUMNS] for c in channels.values] for s in side.values]
        )
        return table[0 if side.codes is None else side.codes, 0 if channels.codes is None else channels.codes][
            None
        ].reshape(-1, len(COLUMNS))


def _parts_of(row: Mapping[str, Any], which: str) -> list[_Part]:
    """A row's first block, and the others, whose input is what the row puts out."""
    fields = {key: value for key, value in row.items() if key != "repeat"}
    repeat = row.get("repeat", 1)
    if which == "rest":
        return [_Part(fields, repeat, 1)]
    first = _Part(fields, 1, 0)
    return [first] if which == "first" or repeat == 1 else [first, _Part({**fields, "stride": 1}, repeat, 1)]
