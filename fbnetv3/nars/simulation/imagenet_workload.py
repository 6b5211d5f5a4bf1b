"""What the trials of an ImageNet search take, from the multiply-adds of the candidates: one rate, calibrated or given.

An epoch is as many training images as Sec. 4 leaves, at three times a forward pass each (the backward pass counts two),
and a forward pass of each validation image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.algorithm.search_settings import SearchSettings
from fbnetv3.nars.simulation.workload import Workload
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import Space

# Sec. 4: 200 of the 1,000 classes of ImageNet's 1,281,167 training images, of which 10,000 are withheld to validate.
VALIDATION_IMAGES = 10_000
TRAINING_IMAGES = 1_281_167 * 200 // 1000 - VALIDATION_IMAGES
# Table 4: the search's cost. On which GPUs, and whether anything but the trials is in it, the paper does not say.
PAPER_GPU_HOURS = 10_700.0
# Sec. 4.2: bounds of the pool.
PAPER_MACS = (400e6, 800e6)
# A V100 trains EfficientNet-B0 (390 M MACs) on 655 images a second in float32: NVIDIA's DeepLearningExamples,
# PyTorch/Classification/ConvNets/efficientnet, DGX-1 with V100 16GB; eight of them on 4,672.
V100_RATE = 655 * 3 * 390e6
V100_SCALING = round((4672 / 655 / 8) ** (1 / 3), 2)
# The measures that an epoch's time may be taken to follow.
MEASURES = ("macs", "activations")
_FORWARD_AND_BACKWARD = 3


@dataclass(frozen=True)
class TrialCosts:
    """The trials of a search with their costs.

    Attributes:
        macs, params: of each round's candidates, (rounds, batch).
        load: the same in GPU seconds.
        rate: multiply-adds that a GPU does in a second, as a mean over all the work.
    """

    macs: np.ndarray
    params: np.ndarray
    load: Workload
    rate: float

    @property
    def images(self) -> float:
        """Training images a second of a GPU, at the candidates' mean cost and without validation."""
        return self.rate / (_FORWARD_AND_BACKWARD * float(self.macs.mean()))


def pool_costs(space: Space, settings: SearchSettings) -> dict[str, np.ndarray]:
    """Costs of a search's pool: "macs", "params" and "activations", (N,) in the order of the pool.

    Raises:
        UserError: constraints that nothing meets.
    """
    pool = sample_pool(settings.constraints_in(space), settings.pool, settings.seed)
    return CostModel(space, settings.num_classes)(pool)


def choose(costs: np.ndarray, rounds: int, batch: int, costly: float = 1.0, seed: int = 0) -> np.ndarray:
    """Candidates of the pool to stand for those that a search tries: which ones it would is not known without trials.

    Args:
        costs: of the pool, (N,).
        rounds, batch: of the search.
        costly: the share of the pool, its costliest candidates, from which those after the first round are drawn; 1 is
            the whole pool.
        seed: of the draw.

    Returns:
        Numbers (rounds, batch): the first round is the beginning of the pool, as in a search.

    Raises:
        UsageError: the pool, or its share, has too few.
    """
    if not 0 < costly <= 1:
        raise UsageError(f"costly {costly:g}: is a share of the pool, more than 0 and at most 1")
    if len(costs) < rounds * batch:
        raise UsageError(f"a pool of {len(costs)} candidates: {rounds} rounds of {batch} need {rounds * batch}")
    later = np.argsort(-costs, kind="stable")[: max(1, round(costly * len(costs)))]
    later = later[later >= batch]
    wanted = (rounds - 1) * batch
    if len(later) < wanted:
        raise UsageError(f"costly {costly:g}: leaves {len(later)} candidates of the pool, {wanted} are needed")
    drawn = np.random.default_rng(seed).permutation(later)[:wanted]
    return np.concatenate([np.arange(batch), drawn]).reshape(rounds, batch)


def trial_costs(
    costs: dict[str, np.ndarray],
    settings: SearchSettings,
    rounds: int,
    stop_epoch: int,
    *,
    gpu_hours: float | None = PAPER_GPU_HOURS,
    rate: float | None = None,
    measure: str = "macs",
    costly: float = 1.0,
) -> TrialCosts:
    """The trials of a search and what an epoch of each takes.

    Args:
        costs: of its pool, from `pool_costs`.
        settings: of the search: `batch`, `epochs`, `seed`.
        rounds: how many.
        stop_epoch: at which trials after the first round end.
        gpu_hours: what all trials take on one GPU each: the rate is calibrated to it.
        rate: multiply-adds that a GPU does in a second, in place of a calibration; `gpu_hours` is not used then.
        measure: what an epoch's time is proportional to: "macs" or "activations".
        costly: see `choose`.

    Raises:
        UsageError: numbers that make no sense.
    """
    if measure not in MEASURES:
        raise UsageError(f"measure {measure!r}: {suggest(measure, MEASURES)}")
    for name, value in (("GPU hours", gpu_hours), ("rate", rate)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UsageError(f"{name} {value:g}: is more than 0")
    chosen = choose(costs["macs"], rounds, settings.batch, costly, settings.seed)
    macs = costs["macs"][chosen].astype(np.float64)
    passes = _FORWARD_AND_BACKWARD * TRAINING_IMAGES + VALIDATION_IMAGES
    relative = Workload(_rows(costs[measure][chosen].astype(np.float64)), settings.epochs, stop_epoch)
    work = passes * Workload(_rows(macs), settings.epochs, stop_epoch).gpu_seconds  # in multiply-adds
    total = work / rate if rate is not None else (gpu_hours or PAPER_GPU_HOURS) * 3600
    scale = total / relative.gpu_seconds
    load = Workload(_rows(scale * np.array(relative.rounds)), settings.epochs, stop_epoch)
    return TrialCosts(macs, costs["params"][chosen], load, work / total)


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
