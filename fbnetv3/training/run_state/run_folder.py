"""Output folder of a run: the paths of its files, and the files that describe the run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from fvcore.common.config import CfgNode

from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.run_state.environment import describe_environment
from fbnetv3.utils.files import make_folder, remove_partial_files, write_json, write_text


class RunFolder:
    """Paths in the output folder of a classifier's or detector's run.

    Attributes:
        path: the folder itself.
        weights: weights after the last epoch.
        best: weights with the best validation top-1.
        checkpoints: folder of the checkpoints to resume from.
        metrics: JSON lines, by step and by evaluation.
        curve: figure of loss and accuracy.
        log: copy of the log.
        tensorboard: folder of TensorBoard events.
        config: the complete config.
        environment: versions, device, command line and git state of each start of the run, as JSON.
        diverged: batch and weights of a step with a non-finite loss.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.weights = self.path / "model_final.pth"
        self.best = self.path / "model_best.pth"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.curve = self.path / "curve.png"
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"
        self.config = self.path / "config.yaml"
        self.environment = self.path / "environment.json"
        self.diverged = self.path / "diverged.pth"

    def has_run(self) -> bool:
        """Return whether the folder holds results that a new run would overwrite."""
        return self.weights.exists() or self.metrics.exists() or bool(Checkpoints(self.checkpoints).paths())

    def trained_weights(self) -> Path | None:
        """Return the final weights, else the newest complete checkpoint; None if there is neither."""
        if self.weights.exists():
            return self.weights
        newest = Checkpoints(self.checkpoints).load_newest()
        return newest[0] if newest else None

    def prepare(self, cfg: CfgNode) -> None:
        """Create the folder, clean up after killed writers, and write config and environment."""
        make_folder(self.checkpoints, "set OUTPUT_DIR to a writable folder")
        for folder in (self.path, self.checkpoints):
            remove_partial_files(folder)
        write_text(self.config, cfg.dump())
        # One entry for each start of the run
        environments = []
        # Missing at the first start; corrupt if the file was not written by this class
        with contextlib.suppress(FileNotFoundError, ValueError):
            environments = json.loads(self.environment.read_text())
        if not isinstance(environments, list):
            environments = []
        write_json(self.environment, [*environments, describe_environment()])
