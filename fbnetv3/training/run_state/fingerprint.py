"""Fingerprints of runs: the config values that determine a result, compared before a run or a cache is reused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.errors import UsageError
from fbnetv3.utils.nested_keys import first_difference, flatten


def config_fingerprint(cfg: CfgNode, ignored: Collection[str]) -> dict[str, Any]:
    """Return the values of a config that determine a run's weights, by dotted key.

    Args:
        cfg: the run's config.
        ignored: keys ("SOLVER.EPOCHS") and sections ("EVAL") that do not.
    """
    return {
        key: list(value) if isinstance(value, tuple) else value  # checkpoints hold lists
        for key, value in flatten(cfg).items()
        if key not in ignored and key.split(".")[0] not in ignored
    }


def check_same_run(
    saved: Mapping[str, Any], current: Mapping[str, Any], checkpoint: Path, long_values: Collection[str] = ()
) -> None:
    """Require that a checkpoint was written by a run with the same fingerprint.

    Args:
        saved: fingerprint in the checkpoint.
        current: fingerprint of this run.
        checkpoint: its path, for the error message.
        long_values: keys whose values the error message omits.

    Raises:
        UsageError: names the key that differs.
    """
    difference = first_difference(saved, current)
    if difference is None:
        return
    key = difference.key
    values = "" if key in long_values else f" ({difference.saved}, now {difference.current})"
    raise UsageError(
        f"{checkpoint}: cannot resume: it was trained with another {key}{values}; "
        "use that run's config.yaml, or choose another OUTPUT_DIR"
    )


def check_not_longer(completed: int, limit: int, unit: str, key: str, checkpoint: Path) -> None:
    """Require that a checkpoint has not been trained longer than this run will be.

    Args:
        completed: epochs or steps in the checkpoint.
        limit: value of the config key `key`.
        unit: "epochs" or "steps".
        key: for the error message.
        checkpoint: its path, for the error message.
    """
    if completed > limit:
        raise UsageError(
            f"{checkpoint}: cannot resume: it was trained for {completed} {unit} already, more than {key} {limit}"
        )
