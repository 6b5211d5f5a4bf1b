"""Build a search's constraints and budgets from its settings, and name the budgets."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fbnetv3.arch.latency_table import load_latency_table
from fbnetv3.errors import FieldError
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.cost_model import COST_COLUMNS
from fbnetv3.nars.space.latency_model import LATENCY_COLUMN, LatencyModel, possible_shapes
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import check_type, is_number
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.imports import find_callable


def build_constraints(settings: SearchSettings, space: Space) -> Constraints:
    """Build the constraints that all candidates of a space must meet."""
    columns = {
        name: column if callable(column) else find_callable(str(column), f"columns.{name}")
        for name, column in settings.columns.items()
    }
    if settings.latency is not None:
        columns[LATENCY_COLUMN] = _build_latency_model(settings.latency, space, settings.num_classes)
    feasible = [
        function if callable(function) else find_callable(str(function), f"feasible[{index}]")
        for index, function in enumerate(settings.feasible)
    ]
    bounds = _parse_space_bounds(settings.constraints, "constraints", settings, space)
    return Constraints(space, bounds, columns, settings.num_classes, feasible)


def build_budgets(settings: SearchSettings, constraints: Constraints) -> dict[str, Constraints]:
    """Build the constraints of each budget, by name; without budgets, there is one called "best"."""
    budgets: dict[str, Constraints] = {}
    for index, budget in enumerate(settings.budgets or ({},)):
        field = f"budgets[{index}]"
        bounds = _parse_space_bounds(budget, field, settings, constraints.space)
        name = budget_name(bounds)
        check_file_name(name, field)
        if name in budgets:
            raise FieldError(
                f"has the same name as another budget, {name}: change its bounds or remove it", field
            )
        budgets[name] = constraints.with_bounds(*bounds)
    return budgets


def budget_name(bounds: Sequence[Constraint]) -> str:
    """Name a budget for files: macs_450M, macs_from_400M, macs_400M_to_450M; "best" if it has no bounds."""
    names = []
    for bound in bounds:
        low = _format_bound(bound.low)
        high = _format_bound(bound.high)
        if low:
            high = f"{low}_to_{high}" if high else f"from_{low}"
        names.append(f"{bound.column}_{high}")
    return "_".join(names) or "best"


def _format_bound(value: float) -> str:
    if not math.isfinite(value):
        return ""
    # The largest unit that fits
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.6g}{suffix}"
    return f"{value:.6g}"


def check_file_name(name: str, field: str) -> None:
    """Require a name that files can have."""
    if not re.fullmatch(r"\w[\w.+-]{,99}", name):
        advice = "use at most 100 letters, digits and _.+-, a letter or digit first"
        raise FieldError(f"{name!r} cannot name a file; {advice}", field)


def parse_bounds(bounds: Any, field: str) -> list[Constraint]:
    """Parse bounds by column, such as {"macs": [4e8, 8e8], "params": 5e6}; errors name `field` and the column."""
    check_type(bounds, field, Mapping, "a mapping of bounds such as {macs: 4.5e+8}")
    return [_parse_constraint(str(column), value, f"{field}.{column}") for column, value in bounds.items()]


def _parse_constraint(column: str, value: Any, field: str) -> Constraint:
    # A single number is the upper bound
    pair = value if isinstance(value, (list, tuple)) else (None, value)
    numbers = [bound for bound in pair if bound is not None]
    if len(pair) != 2 or not numbers or not all(map(is_number, numbers)):
        raise FieldError(
            f"{value!r} must be [lowest, highest], either of which may be null, or a number, the highest",
            field,
        )
    low, high = pair
    return Constraint(column, -math.inf if low is None else low, math.inf if high is None else high)


def _parse_space_bounds(
    bounds: Any, field: str, settings: SearchSettings, space: Space
) -> list[Constraint]:
    constraints = parse_bounds(bounds, field)
    network_columns = set(COST_COLUMNS) - set(settings.columns) if space.architecture is None else set()
    for constraint in constraints:
        if constraint.column in network_columns:
            reason = f"{space.name} has no architectures; remove the bound, or define the column in columns"
            raise FieldError(reason, f"{field}.{constraint.column}")
    return constraints


def _build_latency_model(file: str, space: Space, num_classes: int) -> LatencyModel:
    if space.architecture is None:
        raise FieldError("the search has no architectures; remove this setting", "latency")
    table = load_latency_table(expand_path(file))
    # Fail before the search if a block was not measured
    for shape in possible_shapes(space, num_classes):
        table.block_ms(shape)
    return LatencyModel(space, table, num_classes)
