"""detectron2's training loop with a check of the loss, and the hooks that this project adds."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.engine.hooks import EvalHook
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import Tensor, nn, optim

from fbnetv3.detection.data.detection_loaders import DetectionTrainLoader
from fbnetv3.errors import Terminated
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt
from fbnetv3.training.run_state.checkpoints import save_checkpoint
from fbnetv3.training.trainer import DivergedError
from fbnetv3.utils.random_state import derive_seed
from fbnetv3.utils.text import first_few, format_duration

logger = logging.getLogger(__name__)

_WINDOW = 20
"""Number of steps over which the median of the logged losses is taken."""

if TYPE_CHECKING:
    from detectron2.engine import SimpleTrainer as _TrainerBase
else:
    _TrainerBase = object


class _LossCheck(_TrainerBase):
    """Mixin for detectron2's trainers: a non-finite loss ends the run in all processes, before the optimizer step.

    Attributes:
        group: the processes.
        diverged_file: where to save the weights that gave the loss, and the image names.
    """

    group: ProcessGroup
    diverged_file: Path

    def run_step(self) -> None:
        """Run one step of detectron2's trainer."""
        try:
            super().run_step()
        except FloatingPointError:  # raised by detectron2 for proposals, and in this process only
            raise self._diverged("of the proposals", math.nan, self.data_loader.last) from None

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        """Check the losses, then write them. detectron2 calls this between the backward pass and the optimizer."""
        losses = {key: value.item() for key, value in loss_dict.items()}
        is_finite = math.isfinite(sum(losses.values()))
        if not self.group.any(not is_finite):
            super()._write_metrics(loss_dict, data_time, prefix, iter)
            return
        # All processes report the losses and images of the first process that diverged
        report = None if is_finite else (losses, self.data_loader.last)
        losses, images = next(candidate for candidate in self.group.gather(report) if candidate is not None)
        worst_key = next((key for key, value in losses.items() if not math.isfinite(value)), "total")
        raise self._diverged(f"({worst_key})", losses.get(worst_key, math.nan), images)

    def _diverged(self, loss_name: str, loss: float, images: list[dict[str, Any]]) -> DivergedError:
        """Save the weights and build the error."""
        step = self.iter + 1
        lr = self.optimizer.param_groups[0]["lr"]
        names = [image["file_name"] for image in images]
        # The weights before the optimizer step, the same in all processes
        if self.group.is_rank_0:
            model = self.model.module if self.group.size > 1 else self.model
            dump = {"step": step, "lr": lr, "loss": loss, "names": names, "model": model.state_dict()}
            save_checkpoint(self.diverged_file, dump)
            logger.info("weights and image names of step %d are saved in %s", step, self.diverged_file)
        return DivergedError(
            f"the loss {loss_name} is {loss} at step {step} (learning rate {lr:.3g}, images {first_few(names)}): lower "
            "SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS, or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        )


class CheckedTrainer(_LossCheck, SimpleTrainer):
    """detectron2's `SimpleTrainer` with a check of the loss."""


class CheckedAMPTrainer(_LossCheck, AMPTrainer):
    """detectron2's `AMPTrainer`, in mixed precision, with a check of the loss."""


def build_trainer(
    model: nn.Module,
    loader: DetectionTrainLoader,
    optimizer: optim.Optimizer,
    group: ProcessGroup,
    diverged_file: Path,
    scaler: torch.amp.GradScaler | None = None,
) -> SimpleTrainer:
    """Build the trainer of a model that is already wrapped for several processes. A scaler selects mixed precision."""
    if scaler is not None:
        trainer: SimpleTrainer = CheckedAMPTrainer(model, loader, optimizer, grad_scaler=scaler)
    else:
        trainer = CheckedTrainer(model, loader, optimizer)
    trainer.group = group
    trainer.diverged_file = diverged_file
    return trainer


class SeedingHook(HookBase):
    """Seeds each step's sampling of proposals from the run's seed, the step and the rank, for an exact resume."""

    def __init__(self, seed: int, rank: int) -> None:
        self.seed = seed
        self.rank = rank

    def before_step(self) -> None:
        """Seed torch's generator."""
        torch.manual_seed(derive_seed(self.seed, self.trainer.iter, self.rank))


class EMAHook(HookBase):
    """Updates the averaged weights after each step."""

    def __init__(self, ema: ModelEMA, model: nn.Module) -> None:
        self.ema = ema
        self.model = model

    def after_step(self) -> None:
        """Update the average."""
        self.ema.update_parameters(self.model)


class CheckpointHook(HookBase):
    """Writes checkpoints every `period` steps, after the last step and on an interrupt.

    Unlike detectron2's PeriodicCheckpointer, it handles interrupts: it saves the run, then re-raises the interrupt.

    Args:
        save: takes the number of completed steps and writes a checkpoint; called in all processes.
        period: steps between two checkpoints.
        group: the processes.
    """

    def __init__(self, save: Callable[[int], None], period: int, group: ProcessGroup) -> None:
        self.save = save
        self.period = period
        self.group = group

    def after_step(self) -> None:
        """Write a checkpoint if one is due, and stop after an interrupt."""
        completed = self.trainer.iter + 1
        # All processes see the signal after the same step
        interrupted = agree_on_interrupt(self.group)
        if interrupted or completed % self.period == 0 or completed == self.trainer.max_iter:
            self.save(completed)
        if interrupted:
            check_interrupt()


class EvaluationHook(EvalHook):
    """detectron2's `EvalHook` between steps; it also writes a checkpoint if the evaluation is interrupted.

    Args:
        period: steps between two evaluations; 0 for none.
        evaluate: returns the results by name.
        save: takes the number of completed steps and writes a checkpoint.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict[str, float]], save: Callable[[int], None]) -> None:
        super().__init__(period, evaluate, eval_after_train=False)
        self.save = save

    def after_step(self) -> None:
        """Evaluate if an evaluation is due."""
        try:
            super().after_step()
        except (KeyboardInterrupt, Terminated):
            self.save(self.trainer.iter + 1)
            raise


class ProgressWriter(EventWriter):
    """Logs losses, learning rate, time per step and remaining time.

    Unlike detectron2's CommonMetricPrinter, it uses this package's logger and excludes a resumed run's earlier steps.

    Args:
        max_steps: number of steps of the whole run.
        start: number of steps completed before the run was resumed.
    """

    def __init__(self, max_steps: int, start: int) -> None:
        self.max_steps = max_steps
        self.start = start
        self.start_time = time.monotonic()

    def write(self) -> None:
        """Log a line."""
        storage: EventStorage = get_event_storage()
        completed = storage.iter + 1
        latest = storage.latest()
        # Nothing to log after the last step or before the first
        if completed > self.max_steps or "total_loss" not in latest:
            return
        # Medians, as detectron2 logs them
        medians = {
            key: storage.history(key).median(storage.count_samples(key, _WINDOW))
            for key in storage.histories()
            if "loss" in key
        }
        total = medians.pop("total_loss")
        parts = ", ".join(f"{key.removeprefix('loss_')} {value:.3g}" for key, value in medians.items())
        step_time = (time.monotonic() - self.start_time) / max(1, completed - self.start)
        logger.info(
            "step %d/%d: loss %.4g%s, lr %.3g; %.2f s per step, %s left",
            completed,
            self.max_steps,
            total,
            f" ({parts})" if parts else "",
            latest.get("lr", (0.0, 0))[0],
            step_time,
            format_duration(step_time * (self.max_steps - completed)),
        )
