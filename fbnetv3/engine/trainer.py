"""The training loop, and the hooks that everything besides the loop itself hangs on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn, optim
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fbnetv3.data import Batch, DamageCounter
from fbnetv3.engine.evaluation import to_device
from fbnetv3.engine.interrupt import check_interrupt, deferred_interrupt
from fbnetv3.errors import UserError


class DivergedError(UserError):
    """The loss is no longer finite."""


class Hook:
    """Something that happens around the loop. All methods do nothing unless overridden."""

    def before_train(self, trainer: Trainer) -> None: ...

    def before_epoch(self, trainer: Trainer) -> None: ...

    def after_step(self, trainer: Trainer) -> None: ...

    def after_epoch(self, trainer: Trainer) -> None: ...

    def after_train(self, trainer: Trainer) -> None: ...


@dataclass
class Progress:
    """Where a run stands: finished epochs, finished steps, and the metrics that hooks pass to each other."""

    epoch: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a classifier by cross-entropy.

    Args:
        model: on its device, in the memory format of `channels_last`.
        optimizer: whose learning rate follows `schedule`.
        schedule: factor on `lr` as a function of progress in [0, 1).
        loader: training batches; its sampler has an `epoch`.
        lr: learning rate at factor 1.
        epochs: passes over the loader.
        device: where to compute.
        channels_last: memory order of the images.
        label_smoothing: share of the target spread over all classes.
        damage: counts images that cannot be read.
        hooks: called in order.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: optim.Optimizer,
        schedule: ParamScheduler,
        loader: DataLoader,
        *,
        lr: float,
        epochs: int,
        device: torch.device,
        channels_last: bool = True,
        label_smoothing: float = 0.0,
        damage: DamageCounter | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        self.model, self.optimizer, self.schedule, self.loader = model, optimizer, schedule, loader
        self.lr, self.epochs, self.device, self.channels_last = lr, epochs, device, channels_last
        self.label_smoothing, self.damage, self.hooks = label_smoothing, damage or DamageCounter(0), list(hooks)
        self.progress = Progress()
        self.loss = torch.zeros((), device=device)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * len(self.loader)

    def run(self) -> dict[str, float]:
        """Train from where `progress` stands to the last epoch. Returns the last metrics.

        Raises:
            DivergedError: the loss is no longer finite.
            DataError: too many damaged images.
            KeyboardInterrupt: Ctrl-C, between two steps.
        """
        with deferred_interrupt():
            self._call("before_train")
            while self.progress.epoch < self.epochs:
                self.loader.sampler.epoch = self.progress.epoch
                self.progress.metrics = {}
                self.model.train()
                self._call("before_epoch")
                for batch in self.loader:
                    self.step(batch)
                    self._call("after_step")
                    check_interrupt()
                self.progress.epoch += 1
                self._call("after_epoch")
                check_interrupt()
            self._call("after_train")
        return self.progress.metrics

    def step(self, batch: Batch) -> None:
        """One step of the optimiser."""
        self.damage.add(batch.damaged)
        if len(batch.targets) > 1:  # BatchNorm needs two
            for group in self.optimizer.param_groups:
                group["lr"] = self._next_lr()
            images, targets = to_device(batch, self.device, self.channels_last)
            self.optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(self.model(images), targets, label_smoothing=self.label_smoothing)
            loss.backward()
            self.optimizer.step()
            self.loss = loss.detach()
        self.progress.step += 1

    @property
    def current_lr(self) -> float:
        """Learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def _next_lr(self) -> float:
        return self.lr * self.schedule(min(self.progress.step / self.total_steps, 1 - 1e-9))

    def check_loss(self) -> float:
        """The last step's loss.

        Raises:
            DivergedError: it is not finite.
        """
        loss = self.loss.item()
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {self.progress.step} (epoch {self.progress.epoch + 1}, learning rate "
                f"{self.current_lr:.3g}): lower SOLVER.LR, or warm up longer"
            )
        return loss

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on exactly here."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "metrics": dict(self.progress.metrics),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(state["epoch"], state["step"], dict(state["metrics"]))
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _call(self, event: str) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self)
