"""An evaluator that trains each candidate. Imported by name, because `fbnetv3.training` is a higher layer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from fbnetv3.arch import save_arch
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.training.classifier_training import check_training_config, train
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.nested_keys import flatten


class TrainingEvaluator:
    """Trains a candidate and returns its top-1 accuracy after each epoch, in percent.

    If the recipe uses EMA, the averaged weights are evaluated.

    The learning rate schedule spans a full training run; a shorter evaluation is its beginning. An interrupted
    evaluation resumes from its newest checkpoint, and checkpoints are deleted at the end.

    Args:
        config: training config of all candidates; it must name the network if only recipes are searched.
        overrides: config keys and values that override the config's.
    """

    def __init__(self, config: str, overrides: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.overrides = flatten(overrides or {})
        # Fail early on config errors; a one-epoch run cannot have a warmup
        load_config(config, _to_pairs({"SOLVER.WARMUP_EPOCHS": 0, "SOLVER.EPOCHS": 1, **self.overrides}))

    def check(self, candidate: Candidate) -> None:
        """Raise the error that every trial would fail with, such as a missing dataset or conflicting overrides."""
        with tempfile.TemporaryDirectory() as folder:
            check_training_config(self._trial_config(candidate, Path(folder)))

    def prepare_worker(self) -> None:
        """Change the allocator's settings, which last as long as the process."""
        keep_freed_memory()

    def __call__(self, candidate: Candidate, epochs: int) -> Sequence[float]:
        """Train a candidate and return its top-1 accuracy after each epoch, in percent."""
        assert candidate.folder is not None  # executors give every trial a folder
        run = RunFolder(candidate.folder)
        # An interrupted attempt may already have trained to the end
        if len(_read_learning_curve(run)) < epochs:
            cfg = self._trial_config(candidate, run.path)
            train(cfg, [lambda result: result["epoch"] < epochs], resume=True)
        for folder in (run.checkpoints, run.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (run.weights, run.best):
            file.unlink(missing_ok=True)
        return _read_learning_curve(run)[:epochs]

    def _trial_config(self, candidate: Candidate, folder: Path) -> CfgNode:
        """Build the training config of a candidate, and write its architecture to `folder`."""
        keys: dict[str, Any] = {
            "OUTPUT_DIR": folder,
            "SEED": candidate.seed,
            "SOLVER.EPOCHS": candidate.full_epochs,
            "EVAL.PERIOD": 1,
            "CHECKPOINT.KEEP": 1,
        }
        if candidate.recipe is not None:
            keys |= flatten(candidate.recipe.to_config())
        if candidate.arch is not None:
            keys["MODEL.ARCH"] = folder / "arch.yaml"
        conflicts = sorted(set(keys) & set(self.overrides))
        if conflicts:
            raise UsageError(
                f"evaluator_args: overrides: {conflicts[0]} is set by the search for each trial: remove it"
            )
        # Written only once the keys are known to be valid
        if candidate.arch is not None:
            save_arch(candidate.arch, keys["MODEL.ARCH"])
        return load_config(self.config, _to_pairs({**keys, **self.overrides}))


def _read_learning_curve(run: RunFolder) -> list[float]:
    if not run.metrics.exists():
        return []
    evaluations = [entry for entry in read_metrics(run.metrics) if "val_top1" in entry]
    return [entry.get("val_ema_top1", entry["val_top1"]) for entry in evaluations]


def _to_pairs(keys: Mapping[str, Any]) -> list[str]:
    return [text for key, value in keys.items() for text in (key, str(value))]
