"""An exponential moving average of the weights, as a hook for detectron2's own trainers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fbnetv3.detection.training.detector_checkpoint import EMA_KEY
from fbnetv3.errors import UsageError, WeightsError
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.training.ema import ModelEMA
from fbnetv3.utils.text import one_line


class EMAHook(HookBase):
    """Averages the weights and BatchNorm statistics of a trainer's model after every step.

    `trainer.register_hooks([EMAHook()])` suffices, before or after `resume_or_load`: the trainer's checkpointer saves
    the average as "ema_state", `load_detector` prefers it, and a resumed run continues it exactly. The place among the
    hooks does not matter: a hook that runs before this one, and writes a checkpoint or reads `model`, gets the average
    with the present step.

    Args:
        decay: weight of the previous average in each step; see `ModelEMA` for the first steps.
    """

    def __init__(self, decay: float = 0.9998) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"decay {decay} must be in [0, 1)")
        self.decay = decay
        self._ema: ModelEMA | None = None
        self._is_due = False

    @property
    def model(self) -> nn.Module:
        """The averaged model, once the training has begun; evaluate it with `DefaultTrainer.test(cfg, hook.model)`."""
        return self._updated().module

    def before_train(self) -> None:
        """Start the average as a copy of the model, or with that of the checkpoint from which the run resumes."""
        self._ema = ModelEMA(self._raw_model(), self.decay)
        checkpointer = getattr(self.trainer, "checkpointer", None)
        if checkpointer is None:
            return
        if self.trainer.start_iter:
            self._resume(checkpointer.get_checkpoint_file())
        checkpointer.checkpointables[EMA_KEY] = _AverageState(self)

    def before_step(self) -> None:
        """Note that the average lacks the step that begins."""
        self._is_due = True

    def after_step(self) -> None:
        """Update the average."""
        self._updated()

    def _updated(self) -> ModelEMA:
        if self._ema is None:
            raise UsageError("EMAHook has no average before the training begins")
        if self._is_due:
            self._ema.update_parameters(self._raw_model())
            self._is_due = False
        return self._ema

    def _raw_model(self) -> nn.Module:
        model = self.trainer.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def _resume(self, path: str) -> None:
        assert self._ema is not None
        checkpoint = load_checkpoint_file(path)
        state = checkpoint.get(EMA_KEY) if isinstance(checkpoint, Mapping) else None
        if state is None:
            raise WeightsError(f"{path}: has no average (EMA): resume without EMAHook, or start a new run")
        try:
            self._ema.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(
                f"{path}: its average (EMA) does not fit the model ({one_line(error)})"
            ) from None


class _AverageState:
    """The average as detectron2's checkpointers save it."""

    def __init__(self, hook: EMAHook) -> None:
        self._hook = hook

    def state_dict(self) -> dict[str, Any]:
        return self._hook._updated().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._hook._updated().load_state_dict(state)
