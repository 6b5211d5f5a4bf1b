"""What candidates may cost: named columns that functions compute, with lower and upper bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.space.cost_model import COLUMNS, CostModel
from fbnetv3.nars.space.search_space import Space

# From candidates, integers (N, variables), to a number for each, (N,).
Column = Callable[[np.ndarray], np.ndarray]

_STARTS = 32


class ConstraintError(UsageError):
    """Constraints that make no sense, or that no candidate meets."""


@dataclass(frozen=True)
class Constraint:
    """Bounds of a column, both included.

    Attributes:
        column: its name, such as "macs".
        low, high: the least and the most.
    """

    column: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            wrong = isinstance(bound, bool) or not isinstance(bound, (int, float)) or bound != bound
            if wrong or (isinstance(bound, int) and abs(bound) > 10**300):
                raise ConstraintError(f"constraint on {self.column}: {bound!r} is not a number")
        if self.low > self.high:
            raise ConstraintError(f"constraint on {self.column}: nothing lies between {self.low:g} and {self.high:g}")

    def __str__(self) -> str:
        return f"{self.low:g} <= {self.column} <= {self.high:g}"


class Constraints:
    """Constraints on the candidates of a space, and the columns that they are about.

    Args:
        space: where candidates come from.
        constraints: what they have to meet.
        columns: functions by name, besides "macs", "params" and "activations" of spaces with architectures.
        num_classes: outputs of the networks that are costed.

    Attributes:
        known: names of all columns.

    Raises:
        ConstraintError: a constraint on a column that nobody computes.
    """

    def __init__(
        self,
        space: Space,
        constraints: Sequence[Constraint] = (),
        columns: Mapping[str, Column] | None = None,
        num_classes: int = 1000,
    ) -> None:
        self.space, self.constraints, self.columns = space, tuple(constraints), dict(columns or {})
        self.num_classes = num_classes
        self._costs = CostModel(space, num_classes) if space.architecture is not None else None
        self.known = tuple(dict.fromkeys((*(COLUMNS if self._costs else ()), *self.columns)))
        for constraint in self.constraints:
            if constraint.column not in self.known:
                raise ConstraintError(
                    f"nobody computes the column {constraint.column}: {suggest(constraint.column, self.known)}"
                )

    def with_bounds(self, *more: Constraint) -> Constraints:
        """These constraints and more, over the same columns; what is known of costs is shared.

        Raises:
            ConstraintError: a constraint on a column that nobody computes.
        """
        found = Constraints(self.space, [*self.constraints, *more], self.columns, self.num_classes)
        found._costs = self._costs
        return found

    def values(self, candidates: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Columns of candidates, each float or int (N,); default: those that the constraints are about.

        Raises:
            ConstraintError: a column's function gives another shape, or what is no number.
        """
        candidates = self.space.check(candidates)
        names = names or tuple(dict.fromkeys(c.column for c in self.constraints))
        costs = self._costs(candidates) if self._costs and set(names) - set(self.columns) else {}
        found = {}
        for name in names:
            value = np.asarray(self.columns[name](candidates)) if name in self.columns else costs[name]
            if value.shape != (len(candidates),) or not np.issubdtype(value.dtype, np.number):
                raise ConstraintError(
                    f"column {name}: its function gives {value.dtype} {value.shape}, not a number each"
                )
            if np.issubdtype(value.dtype, np.floating) and np.isnan(value).any():
                raise ConstraintError(f"column {name}: is not a number for {int(np.isnan(value).sum())} candidates")
            found[name] = value
        return found

    def met(self, candidates: np.ndarray) -> np.ndarray:
        """Which candidates make networks and meet every constraint, bool (N,)."""
        return self.violation(candidates) == 0

    def violation(self, candidates: np.ndarray) -> np.ndarray:
        """How far each candidate is from meeting the constraints, (N,): 0 where it does, infinite where it is invalid.

        Distances are relative to the bound.
        """
        found = self.values(candidates)
        total = np.zeros(len(candidates))
        if self._costs is not None:
            macs = found["macs"] if "macs" in found and "macs" not in self.columns else self._costs(candidates)["macs"]
            total[macs < 0] = np.inf
        for constraint in self.constraints:
            value = found[constraint.column]
            # NumPy takes no whole number beyond 64 bits
            low, high = (float(b) if abs(b) >= 2**62 else b for b in (constraint.low, constraint.high))
            for distance, bound in ((low - value, low), (value - high, high)):
                if math.isfinite(bound):
                    total += np.maximum(distance, 0) / max(abs(bound), 1e-12)
        return total

    def nearest(self, seed: int = 0) -> tuple[np.ndarray, float]:
        """A candidate that is as near to meeting the constraints as could be found, and how far it is from it.

        From some random candidates, and one variable after the other is given the value that brings it nearest.
        """
        rng = np.random.default_rng(seed)
        found = rng.integers(0, self.space.sizes, (_STARTS, len(self.space)))
        found[0], found[1] = 0, self.space.sizes - 1
        found, distance = self.repaired(found, rng, enough=1)
        return found[distance.argmin()], float(distance.min())

    def repaired(
        self, candidates: np.ndarray, rng: np.random.Generator, enough: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Candidates moved towards meeting the constraints, and how far each is from it then, (N,).

        One variable after the other, in random order, is given the value that brings a candidate nearest.

        Args:
            candidates: integers (N, variables).
            rng: of the order.
            enough: end when so many meet the constraints; None for all.
        """
        found = self.space.check(candidates).copy()
        best, improved = self.violation(found), True
        while improved and (best == 0).sum() < (enough or len(found)):
            improved = False
            for column in rng.permutation(len(self.space)):
                far = np.flatnonzero(best > 0)
                if not len(far):
                    break
                size = self.space.sizes[column]
                tried = np.repeat(found[far], size, 0)
                tried[:, column] = np.tile(np.arange(size), len(far))
                distance = self.violation(tried).reshape(len(far), size)
                choice, nearest = distance.argmin(1), distance.min(1)
                better = nearest < best[far]
                found[far[better], column], best[far[better]] = choice[better], nearest[better]
                improved |= bool(better.any())
        return found, best

    def check_attainable(self, seed: int = 0) -> None:
        """Refuse constraints that no candidate could be found for.

        Raises:
            ConstraintError: the text says what could be attained.
        """
        candidate, distance = self.nearest(seed)
        if distance == 0:
            return
        reached = ", ".join(f"{name} {value[0]:,.6g}" for name, value in self.values(candidate[None]).items())
        wanted = ", ".join(map(str, self.constraints))
        raise ConstraintError(f"no candidate of {self.space.name} meets {wanted}; the nearest found has {reached}")
