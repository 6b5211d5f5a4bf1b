"""The state of a detector's training run: what its checkpoints hold, and the weights that it leaves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.solver import build_lr_scheduler
from torch import nn

from fbnetv3.detection.detection_config import add_fbnetv3_config
from fbnetv3.detection.training.best_detector import BestEvaluation
from fbnetv3.detection.training.detector_checkpoint import EMA_KEY, RAW_KEY, FBNetV3Checkpointer
from fbnetv3.detection.training.detector_setup import build_detector_optimizer, training_precision
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.checkpoints import State, save_checkpoint
from fbnetv3.training.run_state.fingerprint import (
    DETECTOR_IGNORED_KEYS,
    check_length,
    check_same_run,
    config_fingerprint,
)
from fbnetv3.training.run_state.run_folder import RunFolder

logger = logging.getLogger(__name__)

_BEST_KEY = "best_evaluation"


class DetectorState:
    """Model, average, optimizer, schedule and evaluations of a run.

    Args:
        cfg: detectron2's config.
        model: the detector with its initial weights.
        group: the processes of the run.
        run_folder: where checkpoints and weights are written.
        metadata: what files record about the run; "config" is its fingerprint.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        group: ProcessGroup,
        run_folder: RunFolder,
        metadata: dict[str, Any],
    ) -> None:
        self.model = model
        self.group = group
        self.run_folder = run_folder
        self.metadata = metadata
        self.ema = ModelEMA(model, cfg.MODEL_EMA.DECAY) if cfg.MODEL_EMA.ENABLED else None
        self.optimizer = build_detector_optimizer(cfg, model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        # Only float16 needs scaled losses
        is_scaled = training_precision(cfg) is torch.float16
        self.scaler = torch.amp.GradScaler(torch.device(cfg.MODEL.DEVICE).type) if is_scaled else None
        self.best = BestEvaluation()
        self._max_iter = cfg.SOLVER.MAX_ITER
        self._checkpointer = self._build_checkpointer(cfg.SOLVER.CHECKPOINTS_TO_KEEP)

    @property
    def evaluated_model(self) -> nn.Module:
        """The averaged model, or the raw one if the run has no EMA."""
        return self.model if self.ema is None else self.ema.module

    def _build_checkpointer(self, keep: int) -> FBNetV3Checkpointer:
        states = {
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            EMA_KEY: self.ema and self.ema.module,
            _BEST_KEY: self.best,
        }
        present = {key: value for key, value in states.items() if value is not None}
        return FBNetV3Checkpointer(self.model, str(self.run_folder.checkpoints), keep=keep, **present)

    def resume(self, checkpoint: tuple[Path, State]) -> int:
        """Restore a checkpoint of the same run, and return the number of completed steps."""
        path, state = checkpoint
        saved = state.get("metadata", {})
        check_same_run({**_default_fingerprint(), **saved.get("config", {})}, self.metadata["config"], path)
        self._warn_if_data_changed(saved.get("data", {}))
        completed = state["iteration"] + 1
        check_length(completed, self._max_iter, "steps", "SOLVER.MAX_ITER", path)
        # Earlier versions did not save the evaluations
        self._checkpointer.restore({_BEST_KEY: self.best.state_dict(), **state})
        # ModelEMA counts updates, which determine its decay, outside the state dict
        if self.ema is not None:
            self.ema.n_averaged.fill_(completed)
        return completed

    def _warn_if_data_changed(self, saved: Mapping[str, Any]) -> None:
        """Warn if the images of a dataset are not those with which the run started."""
        for name, current in self.metadata["data"].items():
            if name in saved and saved[name] != current:
                logger.warning(
                    "%s does not have the images of the checkpoint: it has %d, and had %d others",
                    name,
                    current["images"],
                    saved[name]["images"],
                )

    def synchronize(self) -> None:
        """Give all processes the BatchNorm statistics of rank 0, which differ between processes."""
        self.group.broadcast_buffers(self.model, self.ema and self.ema.module)

    def save_checkpoint(self, completed: int) -> None:
        """Write a checkpoint after a number of steps."""
        self.synchronize()
        self._checkpointer.save(f"step_{completed:08d}", iteration=completed - 1, metadata=self.metadata)

    def save_weights(self, path: Path, completed: int) -> None:
        """Write the weights on rank 0, without optimizer state: as "model" those that are evaluated."""
        if not self.group.is_rank_0:
            return
        weights = {
            "model": self.evaluated_model.state_dict(),
            "iteration": completed - 1,
            # Empty until these weights have been evaluated
            "metrics": self.best.metrics if self.best.last_step == completed else {},
            "metadata": self.metadata,
        }
        if self.ema is not None:
            weights[RAW_KEY] = self.model.state_dict()
        save_checkpoint(path, weights)


def _default_fingerprint() -> dict[str, Any]:
    """Return the fingerprint of the default config, for keys that did not exist when a run was saved.

    A new key's default leaves results as they were, so older runs can be resumed.
    """
    defaults = get_cfg()
    add_fbnetv3_config(defaults)
    return config_fingerprint(defaults, DETECTOR_IGNORED_KEYS)
