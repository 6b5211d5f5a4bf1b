"""Learning-rate schedules by name (config key SOLVER.SCHEDULE), composed of fvcore's."""

from __future__ import annotations

from fvcore.common import param_scheduler

from fbnetv3.registry import Registry
from fbnetv3.utils.imports import accepted_settings

SCHEDULES = Registry("schedule")
"""Builders of schedules: functions from progress in [0, 1) to a factor of the learning rate.

Each builder receives whichever of `epochs` (excluding warmup) and `decay` (SOLVER.DECAY) its signature accepts.
"""


@SCHEDULES.register(name="cosine")
def build_cosine() -> param_scheduler.ParamScheduler:
    """Build half a cosine from 1 to 0."""
    return param_scheduler.CosineParamScheduler(1.0, 0.0)


@SCHEDULES.register(name="exponential")
def build_exponential(epochs: float, decay: float) -> param_scheduler.ParamScheduler:
    """Build an exponential schedule that decays by `decay` each epoch (Sec. 4.1: 0.963 in the search, then 0.9875)."""
    return param_scheduler.ExponentialParamScheduler(1.0, decay**epochs)


def build_schedule(
    name: str, epochs: int, *, decay: float = 1.0, warmup_epochs: float = 0.0, warmup_factor: float = 0.1
) -> param_scheduler.ParamScheduler:
    """Build a registered schedule over `epochs`, including `warmup_epochs` of linear warmup from `warmup_factor` to 1.

    `decay` is the factor per epoch of an exponential schedule.

    Raises:
        UnknownNameError: no schedule of this name is registered.
    """
    build = SCHEDULES.get(name)
    main_epochs = epochs - warmup_epochs
    main = build(**accepted_settings(build, {"epochs": main_epochs, "decay": decay}))
    if not warmup_epochs:
        return main
    warmup = param_scheduler.LinearParamScheduler(warmup_factor, 1.0)
    if not main_epochs:
        return warmup
    # "rescaled": each part sees its own progress from 0 to 1
    fraction = warmup_epochs / epochs
    return param_scheduler.CompositeParamScheduler(
        [warmup, main], [fraction, 1 - fraction], ["rescaled", "rescaled"]
    )
