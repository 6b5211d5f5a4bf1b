"""The result of a run, in its folder: network, data, main hyperparameters, accuracy, cost and time."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.training.builders import AnyArch, count_macs
from fbnetv3.training.run_state.metrics import selection_accuracy
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.tracking.results_table import update_results_table
from fbnetv3.training.trainer import Hook, Trainer
from fbnetv3.training.training_hooks import LearningCurveHook
from fbnetv3.utils.files import write_json
from fbnetv3.utils.text import describe_error

logger = logging.getLogger(__name__)


def describe_run(
    cfg: CfgNode, arch: AnyArch, model: nn.Module, num_classes: int, resolution: int
) -> dict[str, Any]:
    """Return what a result says of a run's network and config, by column of the results table."""
    return {
        "arch": arch.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(cfg, arch, num_classes),
        "resolution": resolution,
        "data": cfg.DATA.NAME,
        "data_root": cfg.DATA.ROOT,
        "weights": cfg.MODEL.WEIGHTS,
        "epochs": cfg.SOLVER.EPOCHS,
        "optimizer": cfg.SOLVER.OPTIMIZER,
        "lr": cfg.SOLVER.LR,
        "batch_size": cfg.SOLVER.BATCH_SIZE,
        "schedule": cfg.SOLVER.SCHEDULE,
        "weight_decay": cfg.SOLVER.WEIGHT_DECAY,
        "label_smoothing": cfg.SOLVER.LABEL_SMOOTHING,
        "mixup": cfg.INPUT.MIXUP,
        "auto_augment": cfg.INPUT.AUTO_AUGMENT,
        "ema": cfg.EMA.ENABLED,
        "teacher": cfg.DISTILL.ARCH,
        "seed": cfg.SEED,
    }


@dataclass
class ResultHook(Hook):
    """Writes the run's result after each evaluation and at the end, however the run ends; rank 0 has this hook.

    A failure to write is a warning.
    """

    run_folder: RunFolder
    curve: LearningCurveHook  # whose evaluations it writes
    describe: Callable[[], dict[str, Any]]  # called once, before the first result is written
    in_table: bool = True  # whether to update the table of all runs next to the run's folder
    _description: dict[str, Any] = field(init=False, default_factory=dict)
    _earlier_seconds: float = field(init=False, default=0.0)
    _start: float = field(init=False, default=0.0)

    def before_train(self, trainer: Trainer) -> None:
        """Start the clock; a resumed run adds to its time."""
        self._start = time.monotonic()
        if trainer.progress.step:
            self._earlier_seconds = read_result(self.run_folder.result).get("seconds") or 0.0

    def after_epoch(self, trainer: Trainer) -> None:
        """Write the result of an evaluation."""
        if trainer.progress.metrics:
            self._write(trainer)

    def close(self, trainer: Trainer) -> None:
        """Write the result again, with the time up to the end, and update the table."""
        # Without an evaluation there is no result, and without a start no run
        if self.curve.results and self._start:
            self._write(trainer)
            if self.in_table:
                update_table_of(self.run_folder)

    def _write(self, trainer: Trainer) -> None:
        with warn_if_not_written(self.run_folder.result):
            self._description = self._description or self.describe()
            last = self.curve.results[-1]
            best = max(map(selection_accuracy, self.curve.results))
            seconds = self._earlier_seconds + time.monotonic() - self._start
            evaluation = {key: value for key, value in last.items() if key != "images"}
            write_result(self.run_folder.result, {**self._description, **evaluation, "best": best}, seconds)


def write_result(file: Path, values: Mapping[str, Any], seconds: float) -> None:
    """Write a run's result, by column of the table, with its time in seconds and the date."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    write_json(file, {**values, "seconds": round(seconds, 1), "date": date})


def update_table_of(run_folder: RunFolder) -> None:
    """Update the table of all runs next to a run's folder. A failure is a warning."""
    with warn_if_not_written("the table of results"):
        update_results_table(run_folder.path.absolute().parent)


@contextlib.contextmanager
def warn_if_not_written(name: str | Path) -> Iterator[None]:
    """Turn any error within the block into a warning that `name` was not written."""
    try:
        yield
    except Exception as error:
        logger.warning("%s was not written: %s", name, describe_error(error))


def read_result(file: Path) -> dict[str, Any]:
    """Return a run's result; empty if the file is missing or corrupt."""
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}
