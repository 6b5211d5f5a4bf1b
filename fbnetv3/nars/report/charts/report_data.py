"""Data that several figures and charts of a search's report show."""

from __future__ import annotations

import numpy as np

from fbnetv3.nars.proposals.multi_objective import pareto_indices
from fbnetv3.nars.report.saved_search import SavedSearch
from fbnetv3.nars.settings.search_settings import MAXIMIZE
from fbnetv3.nars.trials.trial_store import Trial


def shown_value(search: SavedSearch, trial: Trial) -> float:
    """Return a trial's value after the epoch at which trials are compared, or after its last one if that is earlier."""
    return trial.value(min(search.comparison_epoch, len(trial.curve)))


def best_so_far(search: SavedSearch) -> tuple[list[int], list[float]]:
    """Return the numbers of the trials that were better than all before, and of the last one, and the best values."""
    epoch = search.comparison_epoch
    numbers: list[int] = []
    values: list[float] = []
    for trial in sorted(search.ranked, key=lambda trial: trial.number):
        value = trial.value(epoch)
        if not values or search.sign * (value - values[-1]) > 0:
            numbers.append(trial.number)
            values.append(value)
    if numbers:
        numbers.append(search.trials[-1].number)
        values.append(values[-1])
    return numbers, values


def predicted_trials(search: SavedSearch) -> list[Trial]:
    """Return the trials with both a prediction and the value that it predicted."""
    return [trial for trial in search.ranked if trial.predicted is not None]


def trial_costs(search: SavedSearch) -> tuple[str | None, dict[int, float]]:
    """Return what the report shows values over, and it for each trial by number; None if there is nothing.

    This is the second objective if there are several, else a column.
    """
    _, *others = search.objectives
    if others:
        return others[0], {
            trial.number: trial.objectives[others[0]] for trial in search.trials if trial.objectives
        }
    columns = search.columns
    column = search.analysis.get("cost_column")
    if column not in columns:
        bounded = [name for budget in search.settings.get("budgets", ()) for name in budget]
        column = next((name for name in [*bounded, *columns] if name in columns), None)
    if column is None:
        return None, {}
    return column, {
        trial.number: float(cost) for trial, cost in zip(search.trials, columns[column], strict=True)
    }


def measured_front(search: SavedSearch, column: str, costs: dict[int, float]) -> list[Trial]:
    """Return the trials that are better than all with lower costs, lowest cost first.

    Where the column is an objective to maximize, higher costs take the place of lower ones.
    """
    cost_sign = 1 if search.objectives.get(column) == MAXIMIZE else -1
    values = [
        (cost_sign * costs[trial.number], search.sign * trial.value(search.comparison_epoch))
        for trial in search.ranked
    ]
    return [search.ranked[index] for index in pareto_indices(np.array(values).reshape(-1, 2))]


def reference_points(search: SavedSearch, column: str) -> list[tuple[str, float, float]]:
    """Return name, cost and value of each reference network for which the cost is known."""
    networks = search.settings.get("reference_networks", {})
    return [
        (name, network[column], network["accuracy"])
        for name, network in networks.items()
        if column in network
    ]
