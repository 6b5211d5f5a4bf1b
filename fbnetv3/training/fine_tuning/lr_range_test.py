"""Learning-rate range test: the loss while the learning rate grows from step to step (Smith, arXiv:1506.01186)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from fvcore.common.config import CfgNode

from fbnetv3.data import Batch
from fbnetv3.data.samplers import EpochSampler
from fbnetv3.errors import UsageError
from fbnetv3.training.classifier_training import SAVE_MEMORY, build_trainer
from fbnetv3.training.devices.device_memory import explain_out_of_memory
from fbnetv3.training.devices.run_device import select_device
from fbnetv3.training.processes.interrupts import check_interrupt, deferred_interrupts
from fbnetv3.training.solver import batch_size_factor
from fbnetv3.training.trainer import DivergedError, Trainer
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes
from fbnetv3.utils.random_state import forked_random_state, seed_device

_SMOOTHING = 0.98
_DIVERGENCE = 4.0  # times the lowest loss


@dataclass
class RangeTest:
    """Learning rates, as values of SOLVER.LR, and the smoothed losses of the steps with them."""

    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def suggestion(self) -> float:
        """A tenth of the learning rate with the lowest loss, which is well below those that diverge."""
        return self.lrs[int(np.argmin(self.losses))] / 10

    def plot(self, file: Path) -> None:
        """Draw the losses and the suggestion into a PNG."""
        figure = new_figure(6, 3.6)
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses)
        axes.axvline(self.suggestion, color="tab:orange", label=f"suggestion: {self.suggestion:.2g}")
        axes.legend(frameon=False)
        # The last losses are so much higher that they would flatten the rest
        lowest, first = min(self.losses), self.losses[0]
        axes.set_ylim(lowest - 0.1 * (first - lowest), first + 0.5 * (first - lowest) + 1e-9)
        style_axes(axes, xlabel="SOLVER.LR", ylabel="training loss, smoothed", xscale="log")
        save_figure(figure, file)


def find_lr(cfg: CfgNode, *, lowest: float = 1e-6, highest: float = 10.0, steps: int = 100) -> RangeTest:
    """Train with a learning rate that grows by the same factor from step to step, until the loss diverges.

    The config's schedule is not used; nothing is written.

    Args:
        cfg: config from `load_config`.
        lowest: SOLVER.LR of the first step.
        highest: SOLVER.LR of the last step.
        steps: number of steps.

    Raises:
        UsageError: the bounds or the config are wrong, or no step has a finite loss.
        DataError, WeightsError, DeviceMemoryError: as in training.
    """
    if not 0 < lowest < highest < float("inf"):
        raise UsageError(
            f"the lowest learning rate, {lowest:g}, must be above 0 and below the highest, {highest:g}"
        )
    device = select_device(cfg.DEVICE)
    with explain_out_of_memory(device, SAVE_MEMORY), forked_random_state(device):
        seed_device(cfg.SEED, device)
        trainer, fitted = build_trainer(cfg)
        result = RangeTest()
        lrs = np.geomspace(lowest, highest, steps).tolist()
        with deferred_interrupts():
            _run_steps(trainer, lrs, batch_size_factor(fitted), result)
    if not result.lrs:
        raise UsageError(f"the loss is not finite at the learning rate {lowest:g}: lower the lowest one")
    return result


def _run_steps(trainer: Trainer, lrs: list[float], factor: float, result: RangeTest) -> None:
    """Run one step with each learning rate, times `factor`, and add them to the result."""
    trainer.set_training_mode()
    average = 0.0
    for step, (lr, batch) in enumerate(zip(lrs, _endless_batches(trainer), strict=False), 1):
        check_interrupt()
        trainer.lr, trainer.schedule = lr * factor, cast("Any", _constant)
        try:
            trainer.step(batch)
            trainer.check_loss()
        except DivergedError:
            return
        # Exponential moving average, without bias toward the first value
        average = _SMOOTHING * average + (1 - _SMOOTHING) * trainer.loss.item()
        result.lrs.append(lr)
        result.losses.append(average / (1 - _SMOOTHING**step))
        if result.losses[-1] > _DIVERGENCE * min(result.losses):
            return


def _constant(progress: float) -> float:
    return 1.0


def _endless_batches(trainer: Trainer) -> Iterator[Batch]:
    sampler = cast("EpochSampler", trainer.loader.sampler)
    for epoch in itertools.count():
        sampler.epoch = epoch
        yield from trainer.loader
