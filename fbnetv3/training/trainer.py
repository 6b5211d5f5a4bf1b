"""The training loop, and the hooks that everything besides the loop itself hangs on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader

from fbnetv3.data import Batch, DamageCounter
from fbnetv3.data.loader import EpochSampler
from fbnetv3.errors import Terminated, UserError
from fbnetv3.training.classifier_evaluation import memory_format
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.losses import Objective
from fbnetv3.training.processes.distributed import ALONE, World
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt, deferred_interrupt
from fbnetv3.utils.random_state import derive_seed

_MAX_OVERFLOWS = 100


class DivergedError(UserError):
    """The loss is no longer finite."""


class Hook:
    """Something that happens around the loop. All methods do nothing unless overridden."""

    def before_train(self, trainer: Trainer) -> None: ...

    def before_epoch(self, trainer: Trainer) -> None: ...

    def after_step(self, trainer: Trainer) -> None: ...

    def after_epoch(self, trainer: Trainer) -> None: ...

    def after_train(self, trainer: Trainer) -> None: ...

    def on_interrupt(self, trainer: Trainer) -> None:
        """Between two steps, before Ctrl-C or SIGTERM ends the run."""

    def on_divergence(self, trainer: Trainer) -> None:
        """Before a loss that is not finite ends the run."""

    def close(self, trainer: Trainer) -> None:
        """However the run ends: give back what is held open."""


@dataclass
class Progress:
    """Where a run stands: finished epochs and steps, the metrics that hooks pass to each other, the best top-1."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    metrics: dict[str, float] = field(default_factory=dict)


Mixup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Trainer:
    """Trains a classifier.

    Args:
        model: on its device, in the memory format of `channels_last`.
        objective: what to minimise, see `fbnetv3.training.losses`.
        optimizer: whose learning rate follows `schedule`.
        schedule: factor on `lr` as a function of progress in [0, 1).
        loader: training batches; its sampler has an `epoch`.
        lr: learning rate at factor 1.
        epochs: passes over the loader.
        device: where to compute.
        channels_last: memory order of the images.
        mixup: mixes images and targets of a batch; gives targets (N, classes).
        ema: average of the model, updated after each step.
        precision: dtype of autocast; torch.float32 for none.
        accumulate: parts into which a batch is split, one after the other.
        damage: counts images that cannot be read.
        world: the processes that train together; each has its part of every batch, the loss is the mean over all.
        hooks: called in order, in every process.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: optim.Optimizer,
        schedule: ParamScheduler,
        loader: DataLoader,
        *,
        lr: float,
        epochs: int,
        device: torch.device,
        channels_last: bool = True,
        mixup: Mixup | None = None,
        ema: ModelEMA | None = None,
        precision: torch.dtype = torch.float32,
        accumulate: int = 1,
        damage: DamageCounter | None = None,
        world: World = ALONE,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.schedule, self.loader, self.lr, self.epochs = schedule, loader, lr, epochs
        self.device, self.channels_last, self.mixup, self.ema = device, channels_last, mixup, ema
        self.precision, self.accumulate = precision, accumulate
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
        self.damage, self.hooks = damage or DamageCounter(0), list(hooks)
        self.world, self._parallel = world, world.parallel(model, device)
        self.progress = Progress()
        self.loss = torch.zeros((), device=device)
        self.stopped = False
        self._last: Batch | None = None
        self._last_loss = self.loss
        self._last_step = self._overflows = 0

    @property
    def last_batch(self) -> tuple[int, Batch | None]:
        """Number and batch of the last step; of several processes, the batch of one whose loss was not finite, if any.

        All processes have to call it together.
        """
        mine = None if math.isfinite(self._last_loss.item()) else self._last
        theirs = next((batch for batch in self.world.gather(mine) if batch is not None), None)
        return self._last_step, theirs or self.world.broadcast(self._last)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * len(self.loader)

    def run(self) -> dict[str, float]:
        """Train from where `progress` stands to the last epoch, or to that in which `stopped` is set.

        Returns:
            The last metrics.

        Raises:
            DivergedError: the loss is no longer finite.
            DataError: too many damaged images.
            KeyboardInterrupt, Terminated: Ctrl-C or SIGTERM, between two steps, after `on_interrupt` of every hook.
        """
        try:
            with deferred_interrupt():
                self._call("before_train")
                while self.progress.epoch < self.epochs and not self.stopped:
                    self._train_epoch()
                    self._finish_epoch()
                self._call("after_train")
        finally:
            self._call("close")
        return self.progress.metrics

    def _train_epoch(self) -> None:
        """The steps that are left of the current epoch."""
        sampler = cast("EpochSampler", self.loader.sampler)
        sampler.epoch = self.progress.epoch
        sampler.start = self.progress.step - self.progress.epoch * len(self.loader)
        self.progress.metrics = {}
        self.model.train()
        self._call("before_epoch")
        for batch in self.loader:
            self.step(batch)
            self._call("after_step")
            if agree_on_interrupt(self.world):
                self._call("on_interrupt")
                check_interrupt()
        self.check_loss()

    def _finish_epoch(self) -> None:
        self.progress.epoch += 1
        try:
            self._call("after_epoch")
        except (KeyboardInterrupt, Terminated):
            self.progress.epoch -= 1  # its evaluation is not complete: it comes again
            self._call("on_interrupt")
            raise

    def step(self, batch: Batch) -> None:
        """One step of the optimiser, on all images of a batch that could be read."""
        count = smallest = len(batch.targets)
        total, damaged = self.world.sum(count, len(batch.damaged))
        if damaged:
            self.damage.add([message for messages in self.world.gather(batch.damaged) for message in messages])
            smallest = min(self.world.gather(count))
        self.check_loss()
        if smallest > 1:  # BatchNorm needs two
            for group in self.optimizer.param_groups:
                group["lr"] = self._next_lr()
            images, targets = batch.on(self.device, memory_format(self.channels_last))
            if self.mixup is not None:
                images, targets = self.mixup(images, targets)
                images = images.contiguous(memory_format=memory_format(self.channels_last))
            self.optimizer.zero_grad(set_to_none=True)
            parts = min(self.accumulate, smallest // 2)
            self._last_loss = self._backward(images, targets, total / self.world.size, parts)
            self.loss = self.world.mean(self._last_loss.clone())
            self._last, self._last_step = batch, self.progress.step + 1
            if self.device.type == "cpu":
                self.check_loss()  # before the weights suffer; a GPU would have to wait for it
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.ema is not None and self.scaler.get_scale() >= scale:  # else the step was skipped
                self.ema.update_parameters(self.model)
        self.progress.step += 1

    def _backward(self, images: Tensor, targets: Tensor, share: float, parts: int) -> Tensor:
        """Gradients of the loss over a batch, summed and divided by `share`, part after part. Returns that loss.

        The share is the mean number of images of a process: then the mean over the processes is that over all images.
        """
        total = torch.zeros((), device=self.device)
        pairs = list(zip(images.tensor_split(parts), targets.tensor_split(parts), strict=True))
        for number, (x, y) in enumerate(pairs, 1):
            with self._gradients_shared(number == len(pairs)):
                with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                    loss = self.objective(self._parallel, x, y) * (len(x) / share)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _gradients_shared(self, shared: bool) -> contextlib.AbstractContextManager:
        """Where gradients are computed: averaged over the processes at the end of `backward`, or not yet."""
        if shared or self.world.size == 1:
            return contextlib.nullcontext()
        return cast("nn.parallel.DistributedDataParallel", self._parallel).no_sync()

    @property
    def current_lr(self) -> float:
        """Learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def _next_lr(self) -> float:
        return self.lr * self.schedule(min(self.progress.step / self.total_steps, 1 - 1e-9))

    def check_loss(self) -> None:
        """Look at the last step's loss. (On a GPU that is at the beginning of the next step, which waits for it.)

        Raises:
            DivergedError: it is not finite; every hook's `on_divergence` has been called.
        """
        loss = self.loss.item()
        if math.isfinite(loss):
            self._overflows = 0
            return
        self._overflows += 1
        if self.scaler.is_enabled() and self._overflows < _MAX_OVERFLOWS:  # float16's scaler skips such steps
            return
        self._call("on_divergence")
        _, batch = self.last_batch
        assert batch is not None  # before the first step the loss is finite
        names = ", ".join(batch.names[:3]) + (f" and {len(batch.names) - 3} more" if len(batch.names) > 3 else "")
        raise DivergedError(
            f"the loss is {loss} at step {self._last_step} (epoch {self.progress.epoch + 1}, learning rate "
            f"{self.current_lr:.3g}, images {names}): lower SOLVER.LR, or warm up longer"
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on exactly here. All processes have to call it together."""
        return {
            "model": self.model.state_dict(),
            "model_ema": self.ema.module.state_dict() if self.ema is not None else None,
            "ema_steps": int(self.ema.n_averaged) if self.ema is not None else 0,
            "scaler": self.scaler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "metrics": dict(self.progress.metrics),
            "best": self.progress.best,
            "damaged": list(self.damage.found),
            "rng": self.world.gather(torch.get_rng_state()),
            "cuda_rng": self.world.gather(torch.cuda.get_rng_state(self.device) if self._on_gpu else None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        if self.ema is not None and state["model_ema"] is not None:
            self.ema.module.load_state_dict(state["model_ema"])
            self.ema.n_averaged.fill_(state["ema_steps"])
        self.scaler.load_state_dict(state["scaler"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["epoch"], state["step"], state["best"], dict(state["metrics"]))
        self.damage.found.update(dict.fromkeys(state["damaged"]))
        rank = self.world.rank
        if rank >= len(state["rng"]):  # more processes than there were
            torch.manual_seed(derive_seed(torch.initial_seed(), state["step"]))
            return
        torch.set_rng_state(state["rng"][rank])
        if self._on_gpu and state["cuda_rng"][rank] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"][rank], self.device)

    @property
    def _on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def _call(self, event: str) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self)
