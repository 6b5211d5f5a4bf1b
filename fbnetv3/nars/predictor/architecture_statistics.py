"""Architecture statistics: labels that need no training, on which the predictor is pretrained (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.cost_model import COST_COLUMNS, CostModel

# Costs of networks by selection
_COLUMN_SETS = {"paper": ("macs", "params"), "rich": COST_COLUMNS}


def pretraining_labels(
    constraints: Constraints, pool: np.ndarray, selection: str | Sequence[str] = "paper"
) -> dict[str, np.ndarray]:
    """Compute statistics of the architectures of candidates, integers (N, variables): floats (N,) by name.

    The selection is "paper" for MACs and parameters; "rich" for these and activations, their logarithms, and MACs,
    parameters, activations and blocks of each stage; or a list of column names. For a space without networks, "paper"
    stands for all its columns and "rich" adds the logarithms of positive ones.
    """
    has_networks = constraints.space.architecture is not None
    if not isinstance(selection, str):
        names = tuple(dict.fromkeys(selection))
    elif selection not in _COLUMN_SETS:
        hint = suggest(selection, _COLUMN_SETS)
        raise UsageError(f"pretraining_labels: unknown choice {selection!r}: {hint}; or list column names")
    else:
        names = _COLUMN_SETS[selection] if has_networks else tuple(constraints.columns)
    for name in names:
        if name not in constraints.column_names:
            hint = suggest(name, constraints.column_names)
            raise UsageError(f"pretraining_labels: unknown column {name}: {hint}")

    labels = constraints.column_values(pool, *names)
    if selection == "rich":
        labels |= {f"log {name}": np.log(values) for name, values in labels.items() if values.min() > 0}
        stages = (
            CostModel(constraints.space, constraints.num_classes).per_stage(pool) if has_networks else {}
        )
        for column, values in stages.items():
            labels |= {f"stage {i + 1} {column}": values[:, i] for i in range(values.shape[1])}
    # A constant label teaches nothing
    return {name: values.astype(np.float64) for name, values in labels.items() if np.ptp(values) > 0}
