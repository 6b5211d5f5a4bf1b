"""Fingerprints of runs: the config values that determine a result, compared before a run is resumed.

A new config key is part of the fingerprint unless it is added to one of the lists of ignored keys below.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.config.defaults import get_cfg
from fbnetv3.errors import UsageError
from fbnetv3.utils.nested_keys import first_difference, flatten

CLASSIFIER_IGNORED_KEYS = (
    # Evaluation, output and logging
    "EVAL",
    "CHECKPOINT",
    "LOG",
    "OUTPUT_DIR",
    # Length: a run may be extended, with a warning if this changes the learning rate
    "SOLVER.EPOCHS",
    "SOLVER.PATIENCE",
    # Where and how fast to compute
    "DEVICE",
    "DATA.WORKERS",
    "MODEL.CHANNELS_LAST",
    "MODEL.COMPILE",
    "SOLVER.DETERMINISTIC",
    # The batch size that fits is compared itself
    "SOLVER.FIT_MEMORY",
    # A limit on errors
    "DATA.MAX_CORRUPT",
    # Paths; the keys that a recipe sets are compared themselves
    "IMPORTS",
    "RECIPE",
    "DATA.ROOT",
    "MODEL.ARCH_DIRS",
    "DISTILL.WEIGHTS",
    # The checkpoint replaces the initial weights
    "MODEL.WEIGHTS",
    # Compared by content instead of path; of the cache, only whether there is one
    "MODEL.ARCH",
    "DISTILL.ARCH",
    "DISTILL.CACHE",
)
"""Keys and sections of a classifier's config that may change when its run is resumed."""

DETECTOR_IGNORED_KEYS = (
    # Evaluation
    "TEST",
    "DATASETS.TEST",
    "DATASETS.PROPOSAL_FILES_TEST",
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
    "INPUT.MIN_SIZE_TEST",
    "INPUT.MAX_SIZE_TEST",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.NMS_THRESH_TEST",
    # Output and logging
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CHECKPOINTS_TO_KEEP",
    "VIS_PERIOD",
    "LOG",
    # Length: a run may be extended
    "SOLVER.MAX_ITER",
    "SOLVER.PATIENCE",
    # Where and how fast to compute; the solver's other keys are compared after scaling to the world size
    "MODEL.DEVICE",
    "MODEL.FBNETV3.CHANNELS_LAST",
    "DATALOADER.NUM_WORKERS",
    "CUDNN_BENCHMARK",
    "SOLVER.REFERENCE_WORLD_SIZE",
    # Paths
    "IMPORTS",
    "DATASETS.CUSTOM",
    # The checkpoint replaces the initial weights
    "MODEL.WEIGHTS",
    "MODEL.FBNETV3.WEIGHTS",
    # Its result is compared
    "MODEL.FBNETV3.PREPROCESSING",
    # May be negative, for a random seed that the checkpoint holds
    "SEED",
    # Unused by this package
    "VERSION",
    "GLOBAL",
)
"""Keys and sections of a detector's config that may change when its run is resumed."""


def config_fingerprint(cfg: CfgNode, ignored: Collection[str]) -> dict[str, Any]:
    """Return the values of a config that determine a run's weights, by dotted key.

    `ignored` lists keys ("SOLVER.EPOCHS") and sections ("EVAL", "DATASETS.CUSTOM") to leave out.
    """
    sections = tuple(f"{name}." for name in ignored)
    return {
        key: _to_lists(value)
        for key, value in flatten(cfg).items()
        if key not in ignored and not key.startswith(sections)
    }


def _to_lists(value: Any) -> Any:
    """Return a value with lists instead of tuples, as YAML has only lists: a run's config.yaml equals its config."""
    return [_to_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a classifier's saved fingerprint with the defaults of keys that did not exist when it was saved.

    A new key's default leaves results as they were, so older runs can be resumed.
    """
    return {**flatten(get_cfg()), **saved}


def check_same_run(
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    checkpoint: Path,
    long_values: Collection[str] = (),
) -> None:
    """Require that a checkpoint has the same fingerprint. The message omits the values of keys in `long_values`."""
    if difference := first_difference({key: _to_lists(value) for key, value in saved.items()}, current):
        key = difference.key
        values = "" if key in long_values else f": was {difference.saved}, is now {difference.current}"
        raise UsageError(
            f"{checkpoint}: cannot resume: {key} has changed{values}; "
            "use that run's config.yaml, or choose a different OUTPUT_DIR"
        )


def check_length(completed: int, limit: int, unit: str, key: str, checkpoint: Path) -> None:
    """Require that a checkpoint is not past the end of the run: `key` limits its epochs or steps (`unit`)."""
    if completed > limit:
        raise UsageError(
            f"{checkpoint}: cannot resume: it already has {completed} {unit}, more than {key} {limit}; "
            f"raise {key}, or choose a different OUTPUT_DIR"
        )
