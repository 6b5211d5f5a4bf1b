"""detectron2's training loop, and the hooks that ours adds to its own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import Tensor, nn, optim

from fbnetv3.detection.data.detection_datasets import TrainLoader
from fbnetv3.errors import Terminated
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.processes.distributed import World
from fbnetv3.training.processes.interrupts import agree_on_interrupt, check_interrupt
from fbnetv3.training.run_state.checkpoints import save
from fbnetv3.training.trainer import DivergedError
from fbnetv3.utils.random_state import derive_seed
from fbnetv3.utils.text import format_duration

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from detectron2.engine import SimpleTrainer as _AnyTrainer
else:
    _AnyTrainer = object


class _Watched(_AnyTrainer):
    """For detectron2's trainers: a loss that is not finite ends the run in all processes, before the weights suffer.

    Attributes:
        world: the processes.
        diverged: where to leave the weights that gave the loss, and the names of the images.
    """

    world: World
    diverged: Path

    def run_step(self) -> None:
        """A step, as detectron2's."""
        try:
            super().run_step()
        except FloatingPointError:  # detectron2's, of proposals: this process alone knows of it
            raise self._diverged("of the proposals", math.nan, self.data_loader.last) from None

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        losses = {key: value.item() for key, value in loss_dict.items()}
        if not self.world.any(not math.isfinite(sum(losses.values()))):
            super()._write_metrics(loss_dict, data_time, prefix, iter)
            return
        found = [(losses, self.data_loader.last)] if not math.isfinite(sum(losses.values())) else []
        losses, images = next(item for items in self.world.gather(found) for item in items)
        worst = next((key for key, value in losses.items() if not math.isfinite(value)), "total")
        raise self._diverged(f"({worst})", losses.get(worst, math.nan), images)

    def _diverged(self, what: str, loss: float, images: list[dict[str, Any]]) -> DivergedError:
        step, lr, names = self.iter + 1, self.optimizer.param_groups[0]["lr"], [i["file_name"] for i in images]
        if self.world.is_main:
            model = self.model.module if self.world.size > 1 else self.model
            save(self.diverged, {"step": step, "lr": lr, "loss": loss, "names": names, "model": model.state_dict()})
            logger.info("the weights and the images' names of that step lie in %s", self.diverged)
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return DivergedError(
            f"the loss {what} is {loss} at step {step} (learning rate {lr:.3g}, images {shown}): lower SOLVER.BASE_LR, "
            "warm up longer, or set SOLVER.CLIP_GRADIENTS.ENABLED True"
        )


class WatchedTrainer(_Watched, SimpleTrainer):
    """detectron2's `SimpleTrainer`, watched."""


class WatchedAMPTrainer(_Watched, AMPTrainer):
    """detectron2's `AMPTrainer`, in mixed precision, watched."""


def build_trainer(
    model: nn.Module,
    loader: TrainLoader,
    optimizer: optim.Optimizer,
    world: World,
    diverged: Path,
    scaler: torch.amp.GradScaler | None = None,
) -> SimpleTrainer:
    """The trainer of a model, which is wrapped for several processes already; in mixed precision with a scaler."""
    if scaler is not None:
        trainer: SimpleTrainer = WatchedAMPTrainer(model, loader, optimizer, grad_scaler=scaler)
    else:
        trainer = WatchedTrainer(model, loader, optimizer)
    trainer.world, trainer.diverged = world, diverged
    return trainer


class Seeding(HookBase):
    """Makes a step's randomness (which proposals it takes) depend on the seed, the step and the process alone."""

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank

    def before_step(self) -> None:
        torch.manual_seed(derive_seed(self.seed, self.trainer.iter, self.rank))


class Averaging(HookBase):
    """Takes each step into the average of the weights and of BatchNorm's statistics."""

    def __init__(self, ema: ModelEMA, model: nn.Module) -> None:
        self.ema, self.model = ema, model

    def after_step(self) -> None:
        self.ema.update_parameters(self.model)


class Saving(HookBase):
    """Saves every `period` steps, after the last one, and when Ctrl-C or SIGTERM ends the run between two steps.

    Args:
        save: writes a checkpoint after so many steps. All processes call it.
        period: steps between two.
        world: the processes.
    """

    def __init__(self, save: Callable[[int], None], period: int, world: World) -> None:
        self.save, self.period, self.world = save, period, world

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        interrupted = agree_on_interrupt(self.world)
        if interrupted or done % self.period == 0 or done == self.trainer.max_iter:
            self.save(done)
        if interrupted:
            check_interrupt()


class Evaluating(HookBase):
    """Evaluates every `period` steps; the results go to the storage. The last step's evaluation is not this one's.

    Args:
        evaluate: gives the results by name, in process 0.
        period: steps between two; 0 for none.
        save: writes a checkpoint after so many steps, for an evaluation that is interrupted.
    """

    def __init__(self, evaluate: Callable[[], dict[str, float]], period: int, save: Callable[[int], None]) -> None:
        self.evaluate, self.period, self.save = evaluate, period, save

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if not self.period or done % self.period or done == self.trainer.max_iter:
            return
        try:
            self.trainer.storage.put_scalars(**self.evaluate(), smoothing_hint=False)
        except (KeyboardInterrupt, Terminated):
            self.save(done)
            raise


class ProgressLines(EventWriter):
    """A line with losses, learning rate, pace and the time that is left."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.first = steps, done
        self.start = time.monotonic()

    def write(self) -> None:
        storage: EventStorage = get_event_storage()
        done, now = storage.iter + 1, storage.latest()
        if done > self.steps or "total_loss" not in now:
            return
        losses = {
            key.removeprefix("loss_"): storage.history(key).median(storage.count_samples(key, 20))
            for key in storage.histories()
            if "loss" in key and key != "total_loss"
        }
        total = storage.history("total_loss").median(storage.count_samples("total_loss", 20))
        parts = ", ".join(f"{key} {value:.3g}" for key, value in losses.items())
        pace = (time.monotonic() - self.start) / max(1, done - self.first)
        logger.info(
            "step %d/%d: loss %.4g%s, lr %.3g; %.2f s a step, %s left",
            done,
            self.steps,
            total,
            f" ({parts})" if parts else "",
            now.get("lr", (0.0, 0))[0],
            pace,
            format_duration(pace * (self.steps - done)),
        )
