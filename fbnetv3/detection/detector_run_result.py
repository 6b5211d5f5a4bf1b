"""The result of a detector's run in the table of all runs: network, data, main hyperparameters and AP."""

from __future__ import annotations

import math
import time
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from fbnetv3.detection.models.fbnetv3_backbone import arch_name
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.tracking.run_result import (
    read_result,
    update_table_of,
    warn_if_not_written,
    write_result,
)


def describe_detector_run(cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
    """Return what a result says of a run's network and config, by column of the results table."""
    custom = cfg.DATASETS.CUSTOM
    return {
        "arch": arch_name(cfg),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "resolution": cfg.INPUT.MIN_SIZE_TEST,
        "data": ", ".join(cfg.DATASETS.TRAIN),
        "data_root": custom.TRAIN_IMAGES or custom.TRAIN_ANNOTATIONS,
        "weights": cfg.MODEL.WEIGHTS or cfg.MODEL.FBNETV3.WEIGHTS,
        "optimizer": cfg.SOLVER.OPTIMIZER,
        "lr": cfg.SOLVER.BASE_LR,
        "batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "schedule": cfg.SOLVER.LR_SCHEDULER_NAME,
        "weight_decay": cfg.SOLVER.WEIGHT_DECAY,
        "ema": cfg.MODEL_EMA.ENABLED,
        "seed": cfg.SEED,
    }


class DetectorResult:
    """Writes a run's result and updates the table of runs; a failure is a warning.

    Args:
        run_folder: folder of the run.
        in_table: whether to update the table of all runs next to it.
        is_resumed: whether the run adds to the time of an earlier start.
    """

    def __init__(self, run_folder: RunFolder, in_table: bool, is_resumed: bool) -> None:
        self.run_folder = run_folder
        self.in_table = in_table
        earlier = (read_result(run_folder.result).get("seconds") or 0.0) if is_resumed else 0.0
        self._start = time.monotonic() - earlier

    def write(self, description: dict[str, Any], metrics: dict[str, float], best: float) -> None:
        """Write the average precision of boxes after the run: of the last evaluation, and the best."""
        precision = {column: _find(metrics, f"bbox/{column.upper()}") for column in ("ap", "ap50")}
        with warn_if_not_written(self.run_folder.result):
            # Without objects to find, there is no best one
            values = {**description, **precision, "best": best if math.isfinite(best) else None}
            write_result(self.run_folder.result, values, time.monotonic() - self._start)
            if self.in_table:
                update_table_of(self.run_folder)


def _find(metrics: dict[str, float], name: str) -> float | None:
    """Return a metric of the first dataset, whose name may precede that of the metric."""
    return next((value for key, value in metrics.items() if key == name or key.endswith(f"/{name}")), None)
