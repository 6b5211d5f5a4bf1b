"""detectron2's training loop, with a check for non-finite losses and a progress log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import Tensor, nn

from fbnetv3.detection.data.input_transfer import send_inputs
from fbnetv3.detection.training.step_metrics import (
    StepInfo,
    StepMetrics,
    exchange_step,
    first_diverged,
)
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
    device: torch.device
    raw_model: (
        nn.Module
    )  # the detector, whose forward pass `model` may distribute or run in another precision
    diverged_file: Path  # where the weights and image names of a step with a non-finite loss are saved
    # Whether losses are read one step late, without waiting for the device. The optimizer must support `found_inf`, as
    # torch's fused ones do: it skips the step by itself if the losses are not finite, so that the weights stay as they
    # were. BatchNorm's statistics may include the images of the next step.
    reads_late: bool = False
    stopped: bool = False
    any_interrupt: bool = False  # whether a process had deferred a signal before the last optimizer step
    _unread: StepMetrics | None = None  # of the last step, until `read_losses`
    _data_loader_iter_obj: Iterator[list[dict[str, Any]]] | None  # detectron2's

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

    @property
    def _data_loader_iter(self) -> Iterator[list[dict[str, Any]]]:
        """The batches, on the device. detectron2 calls next on this in each step."""
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = (send_inputs(batch, self.device) for batch in self.data_loader)
        return self._data_loader_iter_obj

    def run_step(self) -> None:
        """Run one step of detectron2's trainer."""
        try:
            super().run_step()
        except FloatingPointError:
            # detectron2 found non-finite proposals. Only this process knows; the launcher ends the others.
            raise self._save_and_build_error("of the proposals", math.nan, self._step_info()) from None

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], data_time: float, **_: Any) -> None:
        """Exchange the losses, and check them. detectron2 calls this between the backward pass and the optimizer."""
        self.read_losses()
        self._unread = exchange_step(loss_dict, self._step_info(data_time), self.group)
        self.any_interrupt = self._unread.any_interrupt
        if self.reads_late:
            self.optimizer.found_inf = self._unread.is_non_finite()
        else:
            self.read_losses()

    def _step_info(self, data_time: float = 0.0) -> StepInfo:
        lr = self.optimizer.param_groups[0]["lr"]
        return StepInfo(self.iter, lr, self.data_loader.last_batch, data_time)

    def read_losses(self) -> None:
        """Check and write the losses of the last step, unless that has been done. On a GPU, this waits for the step.

        All processes must call this together.
        """
        metrics, self._unread = self._unread, None
        if metrics is None:
            return
        if math.isfinite(sum(metrics.mean_losses().values())):
            metrics.write(self.storage)
            return
        # All processes report the losses and images of the first process that diverged
        losses, images = first_diverged(metrics, self.group)
        worst_key = next((key for key, value in losses.items() if not math.isfinite(value)), "total")
        loss = losses.get(worst_key, math.nan)
        raise self._save_and_build_error(f"({worst_key})", loss, replace(metrics.info, images=images))

    def _save_and_build_error(self, loss_name: str, loss: float, info: StepInfo) -> DivergedError:
        """Save the weights and image names on rank 0, and build the error."""
        step = info.iteration + 1
        names = [image["file_name"] for image in info.images]
        # The weights before the optimizer step, the same in all processes
        if self.group.is_rank_0:
            weights = self.raw_model.state_dict()
            dump = {"step": step, "lr": info.lr, "loss": loss, "names": names, "model": weights}
            save_checkpoint(self.diverged_file, dump)
            logger.info("weights and image names of step %d are saved in %s", step, self.diverged_file)
        return DivergedError(
            f"the loss {loss_name} is {loss} at step {step} (learning rate {info.lr:.3g}, images {first_few(names)}): "
            "lower SOLVER.BASE_LR, raise SOLVER.WARMUP_ITERS, or set SOLVER.CLIP_GRADIENTS.ENABLED True"
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
