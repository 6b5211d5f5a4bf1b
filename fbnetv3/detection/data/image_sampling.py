"""Order of the training images: endless streams of indices, uniform or with rare classes repeated."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from torch import Tensor

from fbnetv3.errors import UsageError, suggest
from fbnetv3.utils.checks import is_number

logger = logging.getLogger(__name__)

_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler", "ClassBalancedTrainingSampler")


def index_stream(cfg: CfgNode, dicts: Sequence[dict[str, Any]], seed: int) -> Callable[[], Iterator[int]]:
    """Return the endless stream of image indices of `DATALOADER.SAMPLER_TRAIN`; each call starts it anew.

    "TrainingSampler" shuffles the images anew each time all have been used. "RepeatFactorTrainingSampler" also repeats
    images of rare classes, by the square root of how rare they are (Gupta et al. 2019, LVIS, Appendix B.2).
    "ClassBalancedTrainingSampler" repeats them until each class is in as many images as the most frequent one, which
    is full oversampling (arXiv 1710.05381).

    The samplers' own `__iter__` gives each process every n-th index of `_infinite_indices()`, which would make a
    step's images depend on the number of processes. Hence this calls the private method, which both samplers define.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)._infinite_indices
    if name == "RepeatFactorTrainingSampler":
        threshold = cfg.DATALOADER.REPEAT_THRESHOLD
        if not is_number(threshold, 0, 1):
            raise UsageError(f"DATALOADER.REPEAT_THRESHOLD {threshold!r} must be in [0, 1]")
        repeats = _repeat_factors(dicts, threshold, cfg.DATALOADER.REPEAT_SQRT)
    elif name == "ClassBalancedTrainingSampler":
        repeats = _repeat_factors(dicts, _largest_class_frequency(dicts), False)
    else:
        raise UsageError(f"DATALOADER.SAMPLER_TRAIN {name!r} cannot be resumed: {suggest(name, _SAMPLERS)}")
    logger.info(
        "%s: images are repeated up to %.1f times; %.0f per epoch instead of %d",
        name,
        repeats.max(),
        repeats.sum(),
        len(dicts),
    )
    return RepeatFactorTrainingSampler(repeats, seed=seed)._infinite_indices


def _repeat_factors(dicts: Sequence[dict[str, Any]], threshold: float, sqrt: bool) -> Tensor:
    """Return how often to use each image: at least once, more if the frequency of a class is below a threshold.

    An image counts for its rarest class.
    """
    trained = [{"annotations": _trained_annotations(image)} for image in dicts]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(trained, threshold, sqrt=sqrt)


def _largest_class_frequency(dicts: Sequence[dict[str, Any]]) -> float:
    """Return the fraction of images that contain the most frequent class."""
    counts = Counter(
        index for image in dicts for index in {a["category_id"] for a in _trained_annotations(image)}
    )
    return max(counts.values(), default=0) / len(dicts)


def _trained_annotations(image: dict[str, Any]) -> list[dict[str, Any]]:
    return [a for a in image.get("annotations", ()) if not a.get("iscrowd", 0)]
