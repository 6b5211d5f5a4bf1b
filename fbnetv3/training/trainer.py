"""Training loop of a classifier, and the interface of its hooks."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, cast

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn, optim

from fbnetv3.data import Batch, CorruptImageCounter
from fbnetv3.data.batches.device_copies import prefetch_to_device
from fbnetv3.data.loader import BatchLoader, memory_format
from fbnetv3.data.samplers import EpochSampler
from fbnetv3.errors import Terminated, UserError
from fbnetv3.training.devices.delayed_losses import GPU_DELAY, DelayedLosses, StepLoss
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.losses import Objective
from fbnetv3.training.optimizers import is_fused, keep_implementation
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, ProcessGroup
from fbnetv3.training.processes.interrupts import (
    agree_on_interrupt,
    check_interrupt,
    deferred_interrupts,
    has_pending_interrupt,
)
from fbnetv3.utils.random_state import derive_seed, seed_device
from fbnetv3.utils.text import first_few

_MAX_OVERFLOWS = 100  # consecutive non-finite losses that float16's scaler may skip


class DivergedError(UserError):
    """The loss is not finite."""


class Hook:
    """Base class of hooks around the training loop; its methods do nothing."""

    def before_train(self, trainer: Trainer) -> None:
        """Run before the first epoch."""

    def before_epoch(self, trainer: Trainer) -> None:
        """Run before the steps of an epoch."""

    def after_loss(self, trainer: Trainer, loss: StepLoss) -> None:
        """Run when the loss of a step has been read: on a CPU within the step, on a GPU some steps later.

        Reading `trainer.loss` instead would wait for a GPU.
        """

    def after_step(self, trainer: Trainer) -> None:
        """Run after each step. A GPU may still be computing it."""

    def after_epoch(self, trainer: Trainer) -> None:
        """Run after the steps of an epoch; `progress.epoch` already counts it."""

    def after_train(self, trainer: Trainer) -> None:
        """Run after the last epoch."""

    def on_interrupt(self, trainer: Trainer) -> None:
        """Run between two steps, before Ctrl-C or SIGTERM ends the run."""

    def on_divergence(self, trainer: Trainer) -> None:
        """Run before a non-finite loss, `trainer.diverged`, ends the run."""

    def close(self, trainer: Trainer) -> None:
        """Release resources. It is called last, even if the run fails."""


@dataclass
class TrainingProgress:
    """Position of a run."""

    epoch: int = 0  # completed epochs
    step: int = 0  # completed steps
    best_top1: float = -1.0  # best validation top-1 in percent so far
    metrics: dict[str, float] = field(default_factory=dict)  # of the current epoch's evaluation: "val_..."


Mixup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(eq=False, repr=False)
class Trainer:
    """Training loop of a classifier.

    Args:
        model: classifier on `device`, in the memory format that `channels_last` selects.
        objective: objective to minimize, see `fbnetv3.training.losses`.
        optimizer: optimizer; its learning rate follows `schedule`, times "lr_scale" of each parameter group.
        schedule: function from progress in [0, 1) to a factor of `lr`.
        loader: loader of training batches; its sampler is an `EpochSampler`.
        lr: learning rate at factor 1.
        epochs: length of the run.
        device: device of the model.
        channels_last: memory format of the images.
        mixup: function that mixes images and targets of a batch, and returns targets (N, classes).
        ema: averaged weights, updated after each step.
        precision: dtype of autocast; torch.float32 turns it off.
        accumulate: number of parts into which a batch is split for gradient accumulation.
        loss_delay: number of steps after which a loss is read and checked; default: 0 on a CPU, several on a GPU, so
            that the CPU prepares steps while the GPU computes earlier ones.
        frozen: modules of the model that stay in evaluation mode, see `fbnetv3.training.fine_tuning.freezing`.
        corrupt_images: counter of images that cannot be read; by default, none are allowed.
        group: processes that train together. Each gets its part of every batch; the loss is the mean over all.
        hooks: hooks, called in this order in every process.
    """

    model: nn.Module
    objective: Objective
    optimizer: optim.Optimizer
    schedule: ParamScheduler
    loader: BatchLoader
    _: KW_ONLY
    lr: float
    epochs: int
    device: torch.device
    channels_last: bool = True
    mixup: Mixup | None = None
    ema: ModelEMA | None = None
    precision: torch.dtype = torch.float32
    accumulate: int = 1
    loss_delay: int | None = None
    frozen: Sequence[nn.Module] = ()
    corrupt_images: CorruptImageCounter = field(default_factory=lambda: CorruptImageCounter(0))
    group: ProcessGroup = SINGLE_PROCESS
    hooks: Sequence[Hook] = ()
    progress: TrainingProgress = field(init=False, default_factory=TrainingProgress)
    stopped: bool = field(init=False, default=False)  # hooks set it to end the run after the current epoch
    complete: bool = field(init=False, default=False)  # with `stopped`: the run needs no more epochs
    loss: Tensor = field(init=False)  # of the last step, the mean over all processes
    diverged: StepLoss | None = field(init=False, default=None)  # the step whose loss ends the run
    _losses: DelayedLosses = field(init=False)
    _skip_updates: Tensor = field(init=False)  # 1 from the first non-finite loss on, else 0
    _overflows: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        keep_implementation(self.optimizer)  # a run may be resumed on another device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.loss = torch.zeros((), device=self.device)
        default_delay = 0 if self.device.type == "cpu" else GPU_DELAY
        self._losses = DelayedLosses(default_delay if self.loss_delay is None else self.loss_delay)
        self._skip_updates = torch.zeros((), device=self.device)
        self._parallel_model: Any = self.group.data_parallel(self.model, self.device)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * len(self.loader)

    @property
    def current_lr(self) -> float:
        """Learning rate of the last step, before the factors of parameter groups."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

    def scheduled_lr(self, step: int) -> float:
        """Return the learning rate after `step` steps."""
        return self.lr * self.schedule(min(step / self.total_steps, 1 - 1e-9))

    def run(self) -> dict[str, float]:
        """Train from `progress` to the last epoch, or the one in which `stopped` is set, and return its metrics.

        Ctrl-C and SIGTERM raise KeyboardInterrupt and Terminated between two steps, after the hooks' `on_interrupt`.
        """
        with contextlib.ExitStack() as stack:
            # Close all hooks in order, even if one of them fails to close
            for hook in reversed(self.hooks):
                stack.callback(hook.close, self)
            with deferred_interrupts():
                self._call_hooks("before_train")
                while self.progress.epoch < self.epochs and not self.stopped:
                    self._train_epoch()
                    self._finish_epoch()
                self._call_hooks("after_train")
        return self.progress.metrics

    def _call_hooks(self, event: str, *arguments: Any) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *arguments)

    def _train_epoch(self) -> None:
        """Run the remaining steps of the current epoch."""
        # A resumed epoch skips the batches that have been used
        sampler = cast("EpochSampler", self.loader.sampler)
        sampler.epoch = self.progress.epoch
        sampler.first_batch = self.progress.step - self.progress.epoch * len(self.loader)
        self.progress.metrics = {}
        self.set_training_mode()
        self._call_hooks("before_epoch")
        for batch in prefetch_to_device(self.loader, self.device):
            self.step(batch)
            self._call_hooks("after_step")
        # A signal during the last step; the next step looks for signals during the others
        if agree_on_interrupt(self.group):
            self._stop_for_interrupt()
        self.check_loss()

    def set_training_mode(self) -> None:
        """Put the model in training mode, except its frozen modules."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def _finish_epoch(self) -> None:
        self.progress.epoch += 1
        try:
            self._call_hooks("after_epoch")
        except (KeyboardInterrupt, Terminated):
            # The evaluation is incomplete, so the resumed run repeats it
            self.progress.epoch -= 1
            self._call_hooks("on_interrupt")
            raise

    def step(self, batch: Batch) -> None:
        """Run one optimizer step on the images of a batch that could be read."""
        # The only blocking exchange between processes: batch sizes, corrupt images, and signals since the last step
        num_images = len(batch.targets)
        total_images, num_corrupt, interrupts = self.group.sum(
            num_images, len(batch.errors), has_pending_interrupt()
        )
        if interrupts:
            self._stop_for_interrupt()
        # Rarely needed: exchange the corrupt images, which make the batches unequal
        min_images = num_images
        if num_corrupt:
            self.corrupt_images.add(
                [message for messages in self.group.gather(batch.errors) for message in messages]
            )
            min_images = min(self.group.gather(num_images))
        # BatchNorm needs two images in every process and part
        if min_images > 1:
            num_parts = min(self.accumulate, min_images // 2)
            self._optimize(batch, total_images / self.group.size, num_parts)
        self.progress.step += 1

    def _optimize(self, batch: Batch, mean_images: float, num_parts: int) -> None:
        """Update the weights; `mean_images` is the mean number of images per process."""
        lr = self.scheduled_lr(self.progress.step)
        for parameter_group in self.optimizer.param_groups:
            parameter_group["lr"] = lr * parameter_group.get("lr_scale", 1.0)
        # Copy the images to the device, normalize them there, and mix them
        layout = memory_format(self.channels_last)
        images, targets = batch.to(self.device, layout)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
            images = images.contiguous(memory_format=layout)
        # Forward and backward
        self.optimizer.zero_grad(set_to_none=True)
        own_loss = self._backward(images, targets, mean_images, num_parts)
        self.loss = self.group.mean(own_loss.clone())
        # Check this loss before it ruins the weights; on a GPU, where this would wait for it, that of an earlier step
        self._losses.add(self.loss, own_loss, self.progress.step + 1, self.current_lr, batch)
        self._read_losses()
        self._update_weights()

    def _update_weights(self) -> None:
        """Update the weights, and their average unless float16's scaler has skipped the step."""
        # Fused optimizers skip their step if this is 1, which the CPU need not know
        if self._losses.delay and not self.scaler.is_enabled() and is_fused(self.optimizer):
            torch.maximum(self._skip_updates, (~self.loss.isfinite()).float(), out=self._skip_updates)
            self.optimizer.found_inf = self._skip_updates  # type: ignore[attr-defined]
        # Reading the scale waits for a GPU; there, a skipped step averages the same weights once more
        reads_scale = not self._losses.delay
        scale = self.scaler.get_scale() if reads_scale else 0.0
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None and (not reads_scale or self.scaler.get_scale() >= scale):
            self.ema.update_parameters(self.model)

    def _backward(self, images: Tensor, targets: Tensor, mean_images: float, num_parts: int) -> Tensor:
        """Accumulate the gradients of a batch, part by part, and return its loss.

        The loss is summed over the images and divided by `mean_images`: the mean over the processes, which
        DistributedDataParallel computes, is then the mean over all images, even where processes have unequal batches.
        """
        total = torch.zeros((), device=self.device)
        parts = list(zip(images.tensor_split(num_parts), targets.tensor_split(num_parts), strict=True))
        for i, (part_images, part_targets) in enumerate(parts, 1):
            # Only the last part's backward pass exchanges gradients
            exchanges = i == len(parts) or self.group.size == 1
            with contextlib.nullcontext() if exchanges else self._parallel_model.no_sync():
                with torch.autocast(
                    self.device.type, self.precision, enabled=self.precision != torch.float32
                ):
                    loss = self.objective(self._parallel_model, part_images, part_targets)
                    loss = loss * (len(part_images) / mean_images)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _stop_for_interrupt(self) -> None:
        """Call the hooks, then raise the exception of the signal that any process has received."""
        agree_on_interrupt(self.group)
        self._call_hooks("on_interrupt")
        check_interrupt()

    def check_loss(self) -> None:
        """Raise a DivergedError if the loss of any step so far is not finite. This waits for a GPU."""
        self._read_losses(all_steps=True)

    def _read_losses(self, *, all_steps: bool = False) -> None:
        """Check the losses that are due, or of all steps, and pass them to the hooks."""
        for step_loss in self._losses.read(all_steps=all_steps):
            self._check_finite(step_loss)
            self._call_hooks("after_loss", step_loss)

    def _check_finite(self, step_loss: StepLoss) -> None:
        """Raise a DivergedError unless a loss is finite, or float16's scaler has skipped the step."""
        if math.isfinite(step_loss.loss):
            self._overflows = 0
            return
        # The scaler skips steps that overflow, and reduces its scale
        self._overflows += 1
        if self.scaler.is_enabled() and self._overflows < _MAX_OVERFLOWS:
            return
        self.diverged = replace(step_loss, batch=self._diverged_batch(step_loss))
        self._call_hooks("on_divergence")
        raise DivergedError(
            f"the loss is {step_loss.loss} at step {step_loss.step} (epoch {self.progress.epoch + 1}, learning rate "
            f"{step_loss.lr:.3g}, images {first_few(self.diverged.batch.names)}); "
            "lower SOLVER.LR or raise SOLVER.WARMUP_EPOCHS"
        )

    def _diverged_batch(self, step_loss: StepLoss) -> Batch:
        """Return the step's batch in a process whose loss is not finite, or in rank 0 if only their mean overflowed."""
        batches = self.group.gather(None if math.isfinite(step_loss.own_loss) else step_loss.batch)
        return next(filter(None, batches), None) or self.group.broadcast(step_loss.batch)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to resume here. All processes must call this together."""
        is_on_gpu = self.device.type == "cuda"
        return {
            "model": self.model.state_dict(),
            "model_ema": self.ema.module.state_dict() if self.ema is not None else None,
            "ema_steps": int(self.ema.n_averaged) if self.ema is not None else 0,
            "scaler": self.scaler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "metrics": dict(self.progress.metrics),
            "best_top1": self.progress.best_top1,
            "corrupt_images": list(self.corrupt_images.messages),
            "rng": self.group.gather(torch.get_rng_state()),
            "cuda_rng": self.group.gather(torch.cuda.get_rng_state(self.device) if is_on_gpu else None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None and state["model_ema"] is not None:
            self.ema.module.load_state_dict(state["model_ema"])
            self.ema.n_averaged.fill_(state["ema_steps"])
        self.scaler.load_state_dict(state["scaler"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = TrainingProgress(
            state["epoch"], state["step"], state["best_top1"], dict(state["metrics"])
        )
        self.corrupt_images.messages.update(dict.fromkeys(state["corrupt_images"]))
        rank = self.group.rank
        if rank >= len(state["rng"]):  # the run has more processes than before
            seed_device(derive_seed(torch.initial_seed(), state["step"]), self.device)
            return
        torch.set_rng_state(state["rng"][rank])
        if self.device.type == "cuda" and state["cuda_rng"][rank] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"][rank], self.device)
