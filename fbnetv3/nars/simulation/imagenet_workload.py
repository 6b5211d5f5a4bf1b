"""Workload of the paper's ImageNet search, from the candidates' multiply-adds and a training throughput.

The throughput is given, or calibrated to the paper's GPU hours. An epoch is one pass over the training images of
Sec. 4, at the cost of three forward passes each (a backward pass costs two), and a forward pass over the validation
images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import FieldError
from fbnetv3.nars.settings.budgets import build_constraints
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.simulation.simulator import Workload
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.checks import check_number

# Sec. 4: 200 of ImageNet's 1,000 classes, of whose training images 10,000 are held out for validation
VALIDATION_IMAGES = 10_000
TRAINING_IMAGES = 1_281_167 * 200 // 1000 - VALIDATION_IMAGES
# Table 4: cost of the search. The paper does not say which GPUs these are and whether all of it is trials.
PAPER_GPU_HOURS = 10_700.0
# Sec. 4.2: bounds of the pool
PAPER_MACS = (400e6, 800e6)
# NVIDIA DeepLearningExamples, PyTorch/Classification/ConvNets/efficientnet, DGX-1 V100 16GB, float32: one GPU trains
# EfficientNet-B0 (390 M MACs) at 655 images/s, eight at 4,672
V100_MACS_PER_SECOND = 655 * 3 * 390e6
V100_SCALING = round((4672 / 655 / 8) ** (1 / 3), 2)
# Cost columns that the time of an epoch can be proportional to
TIME_COLUMNS = ("macs", "activations")
_FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class ImageNetWorkload:
    """Trials of a search with the costs of their candidates, (rounds, round size)."""

    macs: np.ndarray
    params: np.ndarray
    workload: Workload
    macs_per_second: float  # mean throughput of a GPU

    @property
    def images_per_second(self) -> float:
        """Training images per second per GPU for a candidate of mean cost."""
        return self.macs_per_second / (_FORWARD_AND_BACKWARD * float(self.macs.mean()))


def pool_costs(space: Space, settings: SearchSettings) -> dict[str, np.ndarray]:
    """Compute "macs", "params" and "activations" of a search's pool: arrays (N,), in the order of the pool."""
    pool = sample_pool(build_constraints(settings, space), settings.pool_size, settings.seed)
    return CostModel(space, settings.num_classes)(pool)


def draw_trials(
    pool_macs: np.ndarray, rounds: int, round_size: int, costly_fraction: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Draw candidates from the pool in place of those that a search would choose, which depend on real accuracies.

    The first round is the beginning of the pool, as in a search. The others come from its costliest part, or, with a
    `costly_fraction` of 1, from all of it. Return indices into the pool, (rounds, round_size).
    """
    check_number(costly_fraction, "costly_fraction", 0, 1)
    by_cost = np.argsort(-pool_macs, kind="stable")
    costly = by_cost[: max(1, round(costly_fraction * len(pool_macs)))]
    costly = costly[costly >= round_size]  # the others are in the first round
    num_later_trials = (rounds - 1) * round_size
    if len(costly) < num_later_trials or len(pool_macs) < round_size:
        counts = f"{len(costly)} candidates for {num_later_trials} trials after the first round"
        raise FieldError(
            f"{costly_fraction:g} leaves {counts}; raise it, or the size of the pool", "costly_fraction"
        )
    later_trials = np.random.default_rng(seed).permutation(costly)[:num_later_trials]
    return np.concatenate([np.arange(round_size), later_trials]).reshape(rounds, round_size)


def build_imagenet_workload(
    costs: dict[str, np.ndarray],
    settings: SearchSettings,
    rounds: int,
    stopping_epoch: int,
    *,
    gpu_hours: float = PAPER_GPU_HOURS,
    macs_per_second: float | None = None,
    time_column: str = "macs",
    costly_fraction: float = 1.0,
) -> ImageNetWorkload:
    """Build the workload of an ImageNet search from the costs of its pool and its round size, epochs and seed.

    The throughput is `macs_per_second`, or calibrated to `gpu_hours`, the total time of the trials with one GPU each.
    The time of an epoch is proportional to the cost `time_column`. For `costly_fraction`, see `draw_trials`.
    """
    for name, value in (("gpu_hours", gpu_hours), ("macs_per_second", macs_per_second)):
        if value is not None and not 0 < value < np.inf:
            raise FieldError(f"{value:g} must be a positive number", name)
    trials = draw_trials(costs["macs"], rounds, settings.round_size, costly_fraction, settings.seed)
    macs = costs["macs"][trials].astype(np.float64)

    def workload(epoch_seconds: np.ndarray) -> Workload:
        return Workload(tuple(map(tuple, epoch_seconds.tolist())), settings.epochs, stopping_epoch)

    # Total work in multiply-adds, and the time that it takes
    passes = _FORWARD_AND_BACKWARD * TRAINING_IMAGES + VALIDATION_IMAGES
    total_macs = passes * workload(macs).gpu_seconds
    total_seconds = gpu_hours * 3600
    if macs_per_second is not None:
        total_seconds = total_macs / macs_per_second
    # Distribute the time in proportion to the cost column
    trial_costs = costs[time_column][trials].astype(np.float64)
    epoch_seconds = trial_costs * (total_seconds / workload(trial_costs).gpu_seconds)
    return ImageNetWorkload(
        macs,
        params=costs["params"][trials],
        workload=workload(epoch_seconds),
        macs_per_second=total_macs / total_seconds,
    )
