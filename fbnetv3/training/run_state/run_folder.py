"""Where the files of a run lie."""

from __future__ import annotations

from pathlib import Path

from fbnetv3.training.run_state.checkpoints import Checkpoints


class RunFiles:
    """The files of a run in its output folder.

    Attributes:
        weights: the network after the last epoch.
        best: the network with the best top-1.
        checkpoints: the folder with everything needed to go on.
        metrics: a JSON object a line, by step and by evaluation.
        curve: loss and accuracy as a picture.
        log: what was printed.
        tensorboard: TensorBoard's events.
        config: the whole config.
        environment: versions, device, command line and git state of each part of the run, as JSON.
        diverged: what is left of a step whose loss was not finite.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights = folder / "model_final.pth"
        self.best = folder / "model_best.pth"
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.curve = folder / "curve.png"
        self.log = folder / "log.txt"
        self.tensorboard = folder / "tensorboard"
        self.config = folder / "config.yaml"
        self.environment = folder / "environment.json"
        self.diverged = folder / "diverged.pth"

    def in_use(self) -> bool:
        """Whether a run has left anything here that another would overwrite."""
        return self.weights.exists() or self.metrics.exists() or bool(Checkpoints(self.checkpoints).all())

    def found_weights(self) -> Path | None:
        """The network that the run has left: that of its end, else the newest checkpoint that is whole; or None."""
        if self.weights.exists():
            return self.weights
        latest = Checkpoints(self.checkpoints).load_latest()
        return latest[0] if latest else None
