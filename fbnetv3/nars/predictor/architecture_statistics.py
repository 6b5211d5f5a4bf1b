"""Architecture statistics: labels that need no training, on which the predictor is pretrained (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.cost_model import CostModel

CHOICES = ("paper", "rich")
_PAPER_COLUMNS = ("macs", "params")


def pretraining_labels(
    constraints: Constraints, pool: np.ndarray, selection: str | Sequence[str] = "paper"
) -> dict[str, np.ndarray]:
    """Compute statistics of candidates' architectures.

    Args:
        constraints: the space and its columns.
        pool: candidates, integers (N, variables).
        selection: "paper" for MACs and parameters; "rich" for these and activations, their logarithms, and MACs,
            parameters, activations and blocks of each stage. For a space without networks, "paper" stands for all its
            columns and "rich" adds the logarithms of positive ones. Or a list of column names.

    Returns:
        Floats by name, (N,) each, without those that are the same for all candidates; empty if there are no columns.

    Raises:
        UsageError: unknown selection or column.
    """
    if isinstance(selection, str):
        if selection not in CHOICES:
            hint = suggest(selection, CHOICES)
            raise UsageError(f"pretraining_labels: unknown choice {selection!r}: {hint}; or list column names")
        has_networks = constraints.space.architecture is not None
        names = _PAPER_COLUMNS if has_networks else tuple(constraints.columns)
    else:
        # Columns in the given order, without duplicates
        names = tuple(dict.fromkeys(selection))
    for name in names:
        if name not in constraints.column_names:
            hint = suggest(name, constraints.column_names)
            raise UsageError(f"pretraining_labels: unknown column {name}: {hint}")

    labels = constraints.column_values(pool, *names) if names else {}
    if selection == "rich":
        labels |= _rich_labels(constraints, pool, labels)
    labels = {name: np.asarray(values, np.float64) for name, values in labels.items()}
    # A constant label teaches nothing
    return {name: values for name, values in labels.items() if np.ptp(values) > 0}


def _rich_labels(constraints: Constraints, pool: np.ndarray, labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return activations, logarithms of positive labels, and the costs of each stage."""
    has_networks = constraints.space.architecture is not None
    rich = constraints.column_values(pool, "activations") if has_networks else {}
    for name, values in {**labels, **rich}.items():
        if values.min() > 0:
            rich[f"log {name}"] = np.log(values)
    if has_networks:
        costs = CostModel(constraints.space, constraints.num_classes).per_stage(pool)
        for column, values in costs.items():
            for stage in range(values.shape[1]):
                rich[f"stage {stage + 1} {column}"] = values[:, stage]
    return rich
