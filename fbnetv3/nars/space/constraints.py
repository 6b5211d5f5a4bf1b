"""Constraints on candidates: bounds on named columns, and functions of the values of several variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fbnetv3.arch import ArchError
from fbnetv3.errors import UserError, suggest
from fbnetv3.nars.space.cost_model import COST_COLUMNS, CostModel
from fbnetv3.nars.space.feasibility import (
    ConstraintError,
    FeasibilityFunction,
    evaluate_feasibility,
    function_name,
)
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.text import describe_error

Column = Callable[[np.ndarray], np.ndarray]
"""Maps candidates, integers (N, variables), to one number per candidate, (N,)."""

# Number of random candidates from which the search for a feasible one starts
_NUM_STARTS = 32
# Number of values of a variable with more that `repair` tries, and of turns that each variable has at most
_MAX_TRIED_VALUES = 256
_MAX_TURNS = 100


@dataclass(frozen=True)
class Constraint:
    """Inclusive bounds on a column, such as "macs"."""

    column: str
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high:  # nor if one is NaN
            bounds = f"the lower bound {self.low:g} must be at most the upper bound {self.high:g}"
            raise ConstraintError(f"constraint on {self.column}: {bounds}")

    def __str__(self) -> str:
        low = f"{self.low:g} <= " if math.isfinite(self.low) else ""
        high = f" <= {self.high:g}" if math.isfinite(self.high) else ""
        return f"{low}{self.column}{high}"


class Constraints:
    """Constraints on the candidates of a space, and the columns that can be constrained.

    The columns are "macs", "params" and "activations" in spaces with architectures, whose networks have `num_classes`
    outputs, and the user's `columns`. Candidates must also fulfill the functions `feasible` of their values, such as
    `lambda values: values["min_depth"] <= values["max_depth"]`; see `FeasibilityFunction`.
    """

    def __init__(
        self,
        space: Space,
        constraints: Sequence[Constraint] = (),
        columns: Mapping[str, Column] | None = None,
        num_classes: int = 1000,
        feasible: Sequence[FeasibilityFunction] = (),
    ) -> None:
        self.space = space
        self.feasibility_functions = tuple(feasible)
        self.constraints = tuple(constraints)
        self._constrained = tuple(dict.fromkeys(constraint.column for constraint in self.constraints))
        self.columns = dict(columns or {})
        self.num_classes = num_classes
        self._cost_model: CostModel | None = None
        self.column_names = tuple(self.columns)
        if space.architecture is not None:
            self._cost_model = CostModel(space, num_classes)
            self.column_names = tuple(dict.fromkeys((*COST_COLUMNS, *self.columns)))
        for column in self._constrained:
            if column not in self.column_names:
                hint = suggest(column, self.column_names)
                raise ConstraintError(f"constraint on an unknown column {column}: {hint}")

    def with_bounds(self, *bounds: Constraint) -> Constraints:
        """Return these constraints and more, over the same columns and with the same table of block costs."""
        constraints = [*self.constraints, *bounds]
        functions = self.feasibility_functions
        extended = Constraints(self.space, constraints, self.columns, self.num_classes, functions)
        extended._cost_model = self._cost_model
        return extended

    def column_values(self, candidates: np.ndarray, *names: str) -> dict[str, np.ndarray]:
        """Compute columns of candidates, integers (N, variables): an array of numbers (N,) by column name."""
        candidates = self.space.canonicalize(candidates)
        columns = self._user_columns(candidates, names)
        # Costs of networks, all at once, unless only the user's columns are needed
        if self._cost_model is not None and set(names) - set(columns):
            columns = self._cost_model(candidates) | columns
        return {name: columns[name] for name in names}

    def _user_columns(self, candidates: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Call the functions of the user's columns among `names`."""
        columns = {}
        for name in [name for name in self.columns if name in names]:
            values = self._call_column(name, candidates)
            is_numeric = values.shape == candidates.shape[:1] and np.issubdtype(values.dtype, np.number)
            if not is_numeric or np.isnan(values).any():
                actual = "NaN" if is_numeric else f"{values.dtype} {values.shape}"
                raise ConstraintError(
                    f"column {name}: its function must return a number for each candidate, not {actual}"
                )
            columns[name] = values
        return columns

    def _call_column(self, name: str, candidates: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(self.columns[name](candidates))
        except UserError:
            raise
        except Exception as error:
            raise ConstraintError(
                f"column {name}: its function failed with {describe_error(error)}"
            ) from error

    def varying_columns(self, candidates: np.ndarray) -> dict[str, tuple[float, float]]:
        """Return the user's columns that are not the same when they are computed again.

        The values are the two, by name, that differ most for one of the candidates, integers (N, variables).
        """
        first, second = (self.column_values(candidates, *self.columns) for _ in range(2))
        varying = {}
        for name, values in first.items():
            changed = np.flatnonzero(second[name] != values)
            if len(changed):
                row = changed[np.argmax(np.abs(second[name][changed] - values[changed]))]
                varying[name] = (float(values[row]), float(second[name][row]))
        return varying

    def find_broken(self, columns: Mapping[str, float]) -> tuple[str, ...]:
        """Return the bounds that a candidate's columns do not meet, such as "latency_ms <= 12 (12.4)"."""
        return tuple(
            f"{constraint} ({columns[constraint.column]:,.6g})"
            for constraint in self.constraints
            if not constraint.low <= columns[constraint.column] <= constraint.high
        )

    def feasible(self, candidates: np.ndarray) -> np.ndarray:
        """Return which candidates form networks and meet all constraints, bool (N,)."""
        return self.violation(candidates) == 0

    def violation(self, candidates: np.ndarray) -> np.ndarray:
        """Return by how much candidates violate the constraints, (N,).

        It is the sum of the distances to the bounds, each relative to its bound, and of 1 for each feasibility function
        that the candidate does not fulfill; 0 for feasible candidates, infinite for those that do not form a network.
        """
        candidates = self.space.canonicalize(candidates)
        costs = self._cost_model(candidates) if self._cost_model is not None else {}
        total = np.zeros(len(candidates))
        if costs:
            # Candidates that do not form a network have negative costs
            total[costs["macs"] < 0] = np.inf
        columns = costs | self._user_columns(candidates, self._constrained)
        for constraint in self.constraints:
            values = columns[constraint.column]
            for excess, bound in (
                (constraint.low - values, constraint.low),
                (values - constraint.high, constraint.high),
            ):
                if math.isfinite(bound):
                    total += np.maximum(excess, 0) / max(abs(bound), 1e-12)
        for function in self.feasibility_functions:
            total += ~evaluate_feasibility(function, self.space, candidates)
        return total

    def repair(
        self, candidates: np.ndarray, rng: np.random.Generator, num_needed: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Move candidates toward feasibility by coordinate descent, until `num_needed` (default: all) are.

        Variables take turns in random order; each is set to the value that reduces a candidate's violation most. Of a
        variable with many values, some are tried. Return the moved candidates, canonical, int64 (N, variables), and
        their remaining violation, (N,).
        """
        moved = self.space.canonicalize(candidates)
        violation = self.violation(moved)
        num_needed = num_needed or len(moved)
        for _ in range(_MAX_TURNS):
            improved = False
            if (violation == 0).sum() >= num_needed:
                break
            for column in rng.permutation(len(self.space)):
                improved |= self._repair_variable(moved, violation, int(column), rng)
            if not improved:
                break
        return moved, violation

    def _repair_variable(
        self, moved: np.ndarray, violation: np.ndarray, column: int, rng: np.random.Generator
    ) -> bool:
        """Set a variable of infeasible candidates, in place, to its best value; return whether one improved."""
        rows = np.flatnonzero((violation > 0) & self.space.active(moved)[:, column])
        if not len(rows):
            return False
        values = self.space.variables[column].variations(moved[rows, column], _MAX_TRIED_VALUES, rng)
        variants = np.repeat(moved[rows], values.shape[1], 0)
        variants[:, column] = values.reshape(-1)
        variant_violation = self.violation(variants).reshape(values.shape)
        # Keep the best value where it helps
        best = variant_violation.argmin(1)
        best_violation = variant_violation.min(1)
        better = best_violation < violation[rows]
        improved = rows[better]
        moved[improved, column] = values[better, best[better]]
        moved[improved] = self.space.canonicalize(moved[improved])
        violation[improved] = best_violation[better]
        return bool(better.any())

    def find_feasible(self, seed: int = 0) -> np.ndarray:
        """Return a feasible candidate, canonical, (variables,).

        Random candidates, the smallest and the largest are moved by `repair` until one is feasible.

        Raises:
            ConstraintError: no feasible candidate was found; the message describes the nearest one.
        """
        rng = np.random.default_rng(seed)
        starts = self.space.from_unit(rng.random((_NUM_STARTS, len(self.space))))
        starts[0] = 0
        starts[1] = self.space.sizes - 1
        candidates, violation = self.repair(starts, rng, num_needed=1)
        nearest = candidates[violation.argmin()]
        if violation.min() > 0:
            raise ConstraintError(self._describe_infeasible(nearest))
        return nearest

    def _describe_infeasible(self, nearest: np.ndarray) -> str:
        """Say why no candidate was found, given the nearest one."""
        name = self.space.name
        if self.space.architecture is not None:
            try:
                self.space.build_arch(nearest, name)
            except ArchError as error:
                problem = f"no candidate of {name} was found that forms a valid network"
                return f"{problem}: correct the space; for the nearest one, {error}"
        functions = self.feasibility_functions
        constraints = ", ".join([*map(str, self.constraints), *map(function_name, functions)])
        # What the nearest one has
        columns = self.column_values(nearest[None], *self._constrained)
        facts = [f"{column} {values[0]:,.6g}" for column, values in columns.items()]
        if functions:
            facts.append(f"the values {self.space.decode(nearest)}")
        repaired = f"among {_NUM_STARTS} that were repaired"
        problem = f"no candidate of {name} was found that meets {constraints} {repaired}"
        return f"{problem}; the nearest one has {', '.join(facts)}: widen the constraints or the space"
