"""Constraints on candidates: bounds on named columns, which functions compute from arrays of candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.space.cost_model import COST_COLUMNS, CostModel
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import is_number

Column = Callable[[np.ndarray], np.ndarray]
"""From candidates, integers (N, variables), to one number for each, (N,)."""

# Random candidates from which the nearest feasible one is searched
_NUM_STARTS = 32


class ConstraintError(UsageError):
    """Invalid constraints, or constraints that no candidate meets."""


@dataclass(frozen=True)
class Constraint:
    """Inclusive bounds on a column.

    Attributes:
        column: name of the column, such as "macs".
        low: lower bound.
        high: upper bound.
    """

    column: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if not is_number(bound):
                raise ConstraintError(f"constraint on {self.column}: {bound!r} must be a number")
        if self.low > self.high:
            raise ConstraintError(f"constraint on {self.column}: {self.low:g} is above {self.high:g}")

    def __str__(self) -> str:
        return f"{self.low:g} <= {self.column} <= {self.high:g}"


class Constraints:
    """Constraints on the candidates of a space, and the columns that can be constrained.

    Args:
        space: the candidates' space.
        constraints: constraints that candidates must meet.
        columns: functions by column name, in addition to "macs", "params" and "activations" of spaces with
            architectures.
        num_classes: outputs of the networks whose costs are computed.

    Attributes:
        column_names: names of all columns.

    Raises:
        ConstraintError: a constraint on an unknown column.
    """

    def __init__(
        self,
        space: Space,
        constraints: Sequence[Constraint] = (),
        columns: Mapping[str, Column] | None = None,
        num_classes: int = 1000,
    ) -> None:
        self.space = space
        self.constraints = tuple(constraints)
        self.columns = dict(columns or {})
        self.num_classes = num_classes
        self._cost_model = CostModel(space, num_classes) if space.architecture is not None else None
        cost_columns = COST_COLUMNS if self._cost_model else ()
        self.column_names = tuple(dict.fromkeys((*cost_columns, *self.columns)))
        for constraint in self.constraints:
            if constraint.column not in self.column_names:
                hint = suggest(constraint.column, self.column_names)
                raise ConstraintError(f"constraint on an unknown column {constraint.column}: {hint}")

    def with_bounds(self, *bounds: Constraint) -> Constraints:
        """Return these constraints and more, over the same columns and with the same table of block costs."""
        extended = Constraints(self.space, [*self.constraints, *bounds], self.columns, self.num_classes)
        extended._cost_model = self._cost_model
        return extended

    def column_values(self, candidates: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Compute columns of candidates.

        Args:
            candidates: integers (N, variables).
            names: columns; by default those that are constrained.

        Returns:
            Floats or integers by column name, (N,) each.

        Raises:
            ConstraintError: a column's function returns a wrong shape, a wrong type, or NaN.
        """
        candidates = self.space.check(candidates)
        names = names or tuple(dict.fromkeys(constraint.column for constraint in self.constraints))
        # Costs of networks, all at once, unless only the user's columns are needed
        costs = {}
        if self._cost_model is not None and set(names) - set(self.columns):
            costs = self._cost_model(candidates)
        columns = {}
        for name in names:
            if name in self.columns:
                columns[name] = self._evaluate(name, candidates)
            else:
                columns[name] = costs[name]
        return columns

    def _evaluate(self, name: str, candidates: np.ndarray) -> np.ndarray:
        """Call the function of a user's column."""
        values = np.asarray(self.columns[name](candidates))
        if values.shape != (len(candidates),) or not np.issubdtype(values.dtype, np.number):
            expected = f"numbers of shape ({len(candidates)},)"
            raise ConstraintError(f"column {name}: its function returned {values.dtype} {values.shape}, not {expected}")
        num_nan = int(np.isnan(values).sum())
        if num_nan:
            raise ConstraintError(f"column {name}: its function returned NaN for {num_nan} candidates")
        return values

    def feasible(self, candidates: np.ndarray) -> np.ndarray:
        """Return which candidates form networks and meet all constraints, bool (N,)."""
        return self.violation(candidates) == 0

    def violation(self, candidates: np.ndarray) -> np.ndarray:
        """Return by how much candidates violate the constraints, (N,).

        It is the sum of the distances to the bounds, each relative to its bound; 0 for feasible candidates, infinite
        for those that do not form a network.
        """
        columns = self.column_values(candidates)
        total = np.zeros(len(candidates))
        if self._cost_model is not None:
            # Candidates that do not form a network have negative costs
            if "macs" in columns and "macs" not in self.columns:
                macs = columns["macs"]
            else:
                macs = self._cost_model(candidates)["macs"]
            total[macs < 0] = np.inf
        for constraint in self.constraints:
            values = columns[constraint.column]
            for excess, bound in (
                (constraint.low - values, constraint.low),
                (values - constraint.high, constraint.high),
            ):
                if math.isfinite(bound):
                    total += np.maximum(excess, 0) / max(abs(bound), 1e-12)
        return total

    def nearest(self, seed: int = 0) -> tuple[np.ndarray, float]:
        """Return the candidate found to violate the constraints least, and its violation.

        Random candidates, the smallest and the largest are moved by `repair` until one is feasible.
        """
        rng = np.random.default_rng(seed)
        starts = rng.integers(0, self.space.sizes, (_NUM_STARTS, len(self.space)))
        # The smallest and the largest candidate
        starts[0] = 0
        starts[1] = self.space.sizes - 1
        candidates, violation = self.repair(starts, rng, enough=1)
        return candidates[violation.argmin()], float(violation.min())

    def repair(
        self, candidates: np.ndarray, rng: np.random.Generator, enough: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move candidates toward feasibility by coordinate descent.

        Variables take turns in random order; each is set to the value that reduces a candidate's violation most.

        Args:
            candidates: integers (N, variables).
            rng: source of the order.
            enough: stop when this many candidates are feasible; None for all.

        Returns:
            The moved candidates, and their remaining violation, (N,).
        """
        moved = self.space.check(candidates).copy()
        violation = self.violation(moved)
        enough = enough or len(moved)
        improved = True
        while improved and (violation == 0).sum() < enough:
            improved = False
            for column in rng.permutation(len(self.space)):
                infeasible = np.flatnonzero(violation > 0)
                if not len(infeasible):
                    break
                # Try every value of the variable
                size = self.space.sizes[column]
                trials = np.repeat(moved[infeasible], size, 0)
                trials[:, column] = np.tile(np.arange(size), len(infeasible))
                trial_violation = self.violation(trials).reshape(len(infeasible), size)
                best_value = trial_violation.argmin(1)
                best_violation = trial_violation.min(1)
                # Keep the best value where it helps
                better = best_violation < violation[infeasible]
                moved[infeasible[better], column] = best_value[better]
                violation[infeasible[better]] = best_violation[better]
                improved |= bool(better.any())
        return moved, violation

    def check_feasible(self, seed: int = 0) -> None:
        """Require that a feasible candidate can be found.

        Raises:
            ConstraintError: none was found; the message gives the columns of the nearest candidate.
        """
        candidate, violation = self.nearest(seed)
        if violation == 0:
            return
        columns = self.column_values(candidate[None])
        nearest = ", ".join(f"{name} {values[0]:,.6g}" for name, values in columns.items())
        constraints = ", ".join(map(str, self.constraints))
        raise ConstraintError(f"no candidate of {self.space.name} meets {constraints}; the nearest one has {nearest}")
