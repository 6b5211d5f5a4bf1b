"""Labels of architectures that cost nothing, to pretrain a predictor on (Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.cost_model import CostModel

# "paper": MACs and parameters; "rich": activations too, logarithms, and what each stage has of them.
CHOICES = ("paper", "rich")
_PAPER = ("macs", "params")


def free_labels(
    constraints: Constraints, pool: np.ndarray, which: str | Sequence[str] = "paper"
) -> dict[str, np.ndarray]:
    """Statistics of candidates' architectures, none of which needs training.

    Args:
        constraints: the space, and whatever columns it has besides the costs of networks.
        pool: candidates, integers (N, variables).
        which: "paper", MACs and parameters; "rich", these and activations, their logarithms, and MACs, parameters,
            activations and blocks of each stage. Of a space without networks, both mean its own columns, "rich" with
            the logarithms of those that are positive. Or the names of columns, to use these and no others.

    Returns:
        Float labels by name, (N,) each; one that is the same for all candidates tells nothing and is left out. Nothing
        where there are no columns.

    Raises:
        UsageError: `which` is none of the choices, or names a column that nobody computes.
        ConstraintError: a column's function gives something else than numbers.
    """
    if isinstance(which, str) and which not in CHOICES:
        raise UsageError(f"labels: {which!r} is no choice: {suggest(which, CHOICES)}; or a list of columns")
    names = list(dict.fromkeys(_columns(constraints) if isinstance(which, str) else which))
    for name in names:
        if name not in constraints.known:
            raise UsageError(f"labels: nobody computes the column {name}: {suggest(name, constraints.known)}")
    found = constraints.values(pool, *names) if names else {}
    if which == "rich":
        if constraints.space.architecture is not None:
            found |= constraints.values(pool, "activations")
        positive = [name for name, values in found.items() if values.min() > 0]
        found |= {f"log {name}": np.log(found[name]) for name in positive} | _of_stages(constraints, pool)
    found = {name: np.asarray(values, np.float64) for name, values in found.items()}
    return {name: values for name, values in found.items() if np.ptp(values) > 0}


def _columns(constraints: Constraints) -> list[str]:
    """The paper's two, or all that the space's owner has added."""
    return list(_PAPER) if constraints.space.architecture is not None else list(constraints.columns)


def _of_stages(constraints: Constraints, pool: np.ndarray) -> dict[str, np.ndarray]:
    if constraints.space.architecture is None:
        return {}
    costs = CostModel(constraints.space, constraints.num_classes).per_stage(pool)
    return {
        f"stage {stage + 1} {column}": values[:, stage]
        for column, values in costs.items()
        for stage in range(values.shape[1])
    }
