"""detectron2's training loop, with a check for non-finite losses and a progress log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import Tensor, nn

from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.checkpoints import save_checkpoint
from fbnetv3.training.trainer import DivergedError
from fbnetv3.utils.text import first_few, format_duration

logger = logging.getLogger(__name__)

# Steps between two lines of progress and of metrics, each of which has the median losses of these steps
LOG_PERIOD = 20


class CheckedTrainer(SimpleTrainer):
    """detectron2's trainer; a non-finite loss ends the run in all processes, before the optimizer step."""

    group: ProcessGroup
    raw_model: (
        nn.Module
    )  # the detector, whose forward pass `model` may distribute or run in another precision
    diverged_file: Path  # where the weights and image names of a step with a non-finite loss are saved
    stopped: bool = False

    def stop(self) -> None:
        """End the run before the next step, as a complete one."""
        self.stopped = True

    def train(self, start_iter: int, max_iter: int) -> None:
        """Train as detectron2's loop does, but end early after `stop`."""
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < max_iter and not self.stopped:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            finally:
                self.after_train()

    def run_step(self) -> None:
        """Run one step of detectron2's trainer."""
        try:
            super().run_step()
        except FloatingPointError:
            # detectron2 found non-finite proposals. Only this process knows; the launcher ends the others.
            raise self._save_and_build_error(
                "of the proposals", math.nan, self.data_loader.last_batch
            ) from None

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
        report = None if is_finite else (losses, self.data_loader.last_batch)
        losses, images = next(candidate for candidate in self.group.gather(report) if candidate is not None)
        worst_key = next((key for key, value in losses.items() if not math.isfinite(value)), "total")
        raise self._save_and_build_error(f"({worst_key})", losses.get(worst_key, math.nan), images)

    def _save_and_build_error(
        self, loss_name: str, loss: float, images: Sequence[dict[str, Any]]
    ) -> DivergedError:
        """Save the weights and image names on rank 0, and build the error."""
        step = self.iter + 1
        lr = self.optimizer.param_groups[0]["lr"]
        names = [image["file_name"] for image in images]
        # The weights before the optimizer step, the same in all processes
        if self.group.is_rank_0:
            weights = self.raw_model.state_dict()
            dump = {"step": step, "lr": lr, "loss": loss, "names": names, "model": weights}
            save_checkpoint(self.diverged_file, dump)
            logger.info("weights and image names of step %d are saved in %s", step, self.diverged_file)
        return DivergedError(
            f"the loss {loss_name} is {loss} at step {step} (learning rate {lr:.3g}, images {first_few(names)}): lower "
            "SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS, or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        )


class CheckedAMPTrainer(CheckedTrainer, AMPTrainer):
    """`CheckedTrainer` in mixed precision."""


class AutocastModel(nn.Module):
    """A model whose forward pass runs in mixed precision without scaling of the loss, as bfloat16 allows."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = model
        self._device_type = device.type
        self._dtype = dtype

    def forward(self, *inputs: Any) -> Any:
        """Run the model."""
        with torch.autocast(self._device_type, self._dtype):
            return self.module(*inputs)


class ProgressWriter(EventWriter):
    """Logs losses, learning rate, time per step and remaining time.

    Unlike detectron2's CommonMetricPrinter, it uses this package's logger, and times only the steps since the run was
    resumed: `start` is the number of steps completed before, `max_steps` the number of steps of the whole run.
    """

    def __init__(self, max_steps: int, start: int) -> None:
        self.max_steps = max_steps
        self.start = start
        self.start_time = time.monotonic()

    def write(self) -> None:
        """Log a line."""
        storage = get_event_storage()
        completed = storage.iter + 1
        latest = storage.latest()
        # Nothing to log after the last step or before the first
        if completed > self.max_steps or "total_loss" not in latest:
            return
        # Medians, as detectron2 logs them
        medians = {
            key: storage.history(key).median(storage.count_samples(key, LOG_PERIOD))
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
