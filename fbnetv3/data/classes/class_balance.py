"""Class weights, and the order of epochs in which all classes are equally frequent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.samplers import Order
from fbnetv3.errors import UsageError, suggest


def class_indices(dataset: ImageDataset, key: str) -> np.ndarray:
    """Return the class index of every image, or its labels (images, classes), without reading the images.

    `key` is the config key that needs them, for the error if the dataset has no `targets`.
    """
    targets = getattr(dataset, "targets", None)
    if targets is None:
        raise UsageError(
            f"{key} needs the classes of all images: give the dataset an attribute `targets`, the class indices"
        )
    return np.asarray(targets)


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Return weights of classes in inverse proportion to their numbers of images, as scikit-learn's "balanced".

    The mean weight of the images is 1. A class without images has weight 1.
    """
    num_present = np.count_nonzero(counts)
    return np.where(counts > 0, counts.sum() / (num_present * np.maximum(counts, 1)), 1.0)


def named_weights(items: Sequence[str], classes: Sequence[str], key: str) -> np.ndarray:
    """Parse weights such as ["cat=2", "dog=0.5"]; other classes have weight 1. `key` is the config key, for errors."""
    weights = np.ones(len(classes))
    for item in items:
        name, _, text = item.rpartition("=")
        if name not in classes:
            raise UsageError(f"{key} {item!r} must be CLASS=WEIGHT: {suggest(name or item, classes)}")
        try:
            weights[list(classes).index(name)] = weight = float(text)
        except ValueError:
            weight = -1.0
        if not 0 <= weight < float("inf"):
            raise UsageError(f"{key} {item!r}: the weight must be a number of at least 0")
    return weights


def normalize_weights(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Scale class weights so that the mean weight of the images is 1, which keeps the meaning of the learning rate."""
    total = float((weights * counts).sum())
    if not total:
        raise UsageError("SOLVER.CLASS_WEIGHTS: no training image has a weight above 0")
    return weights * (counts.sum() / total)


def balanced_order(targets: np.ndarray) -> Order:
    """Return the order of epochs in which all classes that occur are equally frequent, up to one image.

    Within a class, images are drawn equally often, up to once: images of frequent classes are left out of an epoch, and
    those of rare classes repeated. The order depends only on the generator.
    """
    by_class = [torch.from_numpy(np.flatnonzero(targets == target)) for target in np.unique(targets)]
    length = len(targets)

    def draw(generator: torch.Generator) -> Tensor:
        # Which classes get one image more
        sizes = torch.full((len(by_class),), length // len(by_class))
        sizes[torch.randperm(len(by_class), generator=generator)[: length % len(by_class)]] += 1
        parts = []
        for images, size in zip(by_class, sizes.tolist(), strict=True):
            # Whole passes over the class, and a random part of the last one
            passes = -(-size // len(images))
            shuffled = [images[torch.randperm(len(images), generator=generator)] for _ in range(passes)]
            parts.append(torch.cat(shuffled)[:size])
        order = torch.cat(parts)
        return order[torch.randperm(length, generator=generator)]

    return draw


def class_weights(dataset: ImageDataset, weighting: str, items: Sequence[str]) -> np.ndarray | None:
    """Return the weight of each class in the loss, with mean 1 over the images; None if all are equal.

    Args:
        dataset: training images.
        weighting: SOLVER.CLASS_WEIGHTING: "none", or "balanced" for weights in inverse proportion to frequencies.
        items: SOLVER.CLASS_WEIGHTS, factors by class name on top of that.
    """
    if weighting == "none" and not items:
        return None
    key = "SOLVER.CLASS_WEIGHTS" if items else f"SOLVER.CLASS_WEIGHTING {weighting}"
    targets = class_indices(dataset, key)
    is_multi_label = targets.ndim == 2
    counts = targets.sum(0) if is_multi_label else np.bincount(targets, minlength=len(dataset.classes))
    weights = named_weights(items, dataset.classes, "SOLVER.CLASS_WEIGHTS")
    if weighting == "balanced":
        weights = weights * balanced_weights(counts)
    return normalize_weights(weights, counts)
