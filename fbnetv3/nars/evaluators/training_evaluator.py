"""A search's evaluator that trains each candidate with the engine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fvcore.common.config import CfgNode

from fbnetv3.arch import ArchDef, save_arch
from fbnetv3.config import load_config
from fbnetv3.config.recipe import Recipe
from fbnetv3.errors import UsageError
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.training.classifier_training import check_training, train
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.training.run_state.run_folder import RunFiles


class TrialCandidate(Protocol):
    """What is trained: a candidate of a search."""

    arch: ArchDef | None
    recipe: Recipe | None
    seed: int
    full_epochs: int
    folder: Path


class TrainingEvaluator:
    """Trains a candidate and gives its top-1 after each epoch, of the averaged weights where the recipe has them.

    The schedule is that of the whole training, and an evaluation of fewer epochs its beginning. One that was
    interrupted goes on from its last checkpoint; checkpoints are removed when it is done.

    Args:
        config: training config of every candidate; with its network where candidates are recipes alone.
        overrides: config keys and values on top of it.

    Raises:
        UserError: the config makes no sense.
    """

    def __init__(self, config: str, overrides: Mapping[str, Any] | None = None) -> None:
        self.config, self.overrides = config, dict(overrides or {})
        for key in ("SOLVER.EPOCHS", "SEED", "OUTPUT_DIR", "EVAL.PERIOD", "CHECKPOINT.KEEP"):
            if key in self.overrides:
                raise UsageError(f"evaluator_args: overrides: {key} is set for each trial by the search")
        load_config(config, _pairs({"SOLVER.WARMUP_EPOCHS": 0, "SOLVER.EPOCHS": 1, **self.overrides}))

    def check(self, candidate: TrialCandidate) -> None:
        """Find out, before any trial, that none can be trained: a dataset that is missing, overrides that clash.

        Args:
            candidate: one of those to come; its folder is not needed.

        Raises:
            UserError: what each trial would fail with.
        """
        with tempfile.TemporaryDirectory() as folder:
            check_training(self._config_of(candidate, Path(folder)))

    def __call__(self, candidate: TrialCandidate, epochs: int) -> Sequence[float]:
        keep_freed_memory()
        files = RunFiles(candidate.folder)
        if len(_curve(files)) < epochs:  # else an interrupted attempt had come this far
            cfg = self._config_of(candidate, files.folder)
            train(cfg, [lambda result: result["epoch"] < epochs], resume=True)
        for path in (files.checkpoints, files.tensorboard):
            shutil.rmtree(path, ignore_errors=True)
        for path in (files.weights, files.best):
            path.unlink(missing_ok=True)
        return _curve(files)[:epochs]

    def _config_of(self, candidate: TrialCandidate, folder: Path) -> CfgNode:
        """The training config of a candidate, whose network is written into the folder."""
        keys: dict[str, Any] = {
            "OUTPUT_DIR": folder,
            "SEED": candidate.seed,
            "SOLVER.EPOCHS": candidate.full_epochs,
            "EVAL.PERIOD": 1,
            "CHECKPOINT.KEEP": 1,
        }
        if candidate.recipe is not None:
            sections = candidate.recipe.to_config()
            keys |= {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
        if candidate.arch is not None:
            keys["MODEL.ARCH"] = folder / "arch.yaml"
        if both := sorted(set(keys) & set(self.overrides)):
            raise UsageError(f"evaluator_args: overrides: {both[0]} is what the candidates decide")
        if candidate.arch is not None:
            save_arch(candidate.arch, keys["MODEL.ARCH"])
        return load_config(self.config, _pairs({**keys, **self.overrides}))


def _curve(files: RunFiles) -> list[float]:
    """The accuracies that a run has come to so far."""
    if not files.metrics.exists():
        return []
    found = [entry for entry in read_metrics(files.metrics) if "val_top1" in entry]
    return [entry.get("val_ema_top1", entry["val_top1"]) for entry in found]


def _pairs(keys: Mapping[str, Any]) -> list[str]:
    return [part for key, value in keys.items() for part in (key, str(value))]
