"""Match the classes of a dataset with the outputs of a network by name."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fbnetv3.data.classes.class_names import repeated_names
from fbnetv3.data.classes.imagenet import are_synsets, imagenet_classes, imagenet_synsets
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.errors import UsageError
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

_MAX_LISTED = 10


class ClassMismatchError(UsageError):
    """Classes of a dataset that a network does not have."""


class RelabeledDataset:
    """A dataset whose class indices are those of a network's outputs.

    Args:
        dataset: the dataset.
        outputs: class names of the network's outputs, which become `classes`.
        indices: for each class of the dataset, the index of its output.
    """

    def __init__(self, dataset: ImageDataset, outputs: Sequence[str], indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.classes = list(outputs)
        self.multi_label = getattr(dataset, "multi_label", False)
        self._indices = list(indices)

        # Only some datasets have the targets of all images
        if hasattr(dataset, "targets"):
            self.targets = [self._relabel(target) for target in dataset.targets]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self.dataset[index]
        return image, self._relabel(target)

    def _relabel(self, target: Any) -> Any:
        """Return a class index, or the values of all classes, for the network's outputs."""
        if np.ndim(target) == 0:
            return self._indices[int(target)]
        relabeled = torch.zeros(len(self.classes))
        relabeled[self._indices] = torch.as_tensor(target, dtype=torch.float32)
        return relabeled

    def image_name(self, index: int) -> str:
        """Return the name that the dataset gives the image."""
        return self.dataset.image_name(index)

    def order(self, generator: torch.Generator) -> Tensor:
        """Draw the order of an epoch as the dataset does, by default uniformly."""
        draw = getattr(self.dataset, "order", None)
        return draw(generator) if draw else torch.randperm(len(self), generator=generator)


def match_classes(
    classes: Sequence[str],
    outputs: Sequence[str],
    dataset: str = "the dataset",
    network: str = "the network",
) -> list[int]:
    """Return the index of the output for each class, matched by name.

    Classes may be a subset of the outputs, in any order, with accents composed or not. WordNet IDs match the names of
    ImageNet's classes. `dataset` and `network` are names for the message.

    Raises:
        ClassMismatchError: a class is not among the outputs, or a name is ambiguous; the message has both lists.
    """
    if list(classes) == list(outputs):
        return list(range(len(classes)))
    outputs = output_names(outputs, classes)
    if set(classes) - set(outputs):  # file systems may write accents in another way
        classes, outputs = _normalized(classes), _normalized(outputs)
    repeated = repeated_names(classes) + repeated_names(outputs)
    index_of = {name: index for index, name in enumerate(outputs)}
    unknown = [name for name in classes if name not in index_of]
    if repeated or unknown:
        problem = f"lacks {first_few(unknown, 3)}" if unknown else f"cannot tell {repeated[0]} apart"
        raise ClassMismatchError(
            f"{network} {problem}: {dataset} has {_listed(classes)}; {network} has {_listed(outputs)}"
        )
    return [index_of[name] for name in classes]


def _log_classes_without_images(dataset: ImageDataset, name: str) -> None:
    """Log which classes no image has, if the dataset knows the classes of its images."""
    targets = np.asarray(getattr(dataset, "targets", ()))
    if targets.ndim not in (1, 2) or not len(targets):
        return
    # Class indices (images,), or several labels per image (images, classes)
    present = set(targets.tolist()) if targets.ndim == 1 else set(targets.any(0).nonzero()[0].tolist())
    absent = sorted(set(range(len(dataset.classes))) - present)
    if absent:
        logger.info(
            "%s has no images of %s", name, first_few([dataset.classes[i] for i in absent], _MAX_LISTED)
        )


def output_names(outputs: Sequence[str], classes: Sequence[str]) -> Sequence[str]:
    """Return the names of outputs in the terms of the classes: WordNet IDs for ImageNet's, if the classes are such."""
    return imagenet_synsets() if are_synsets(classes) and tuple(outputs) == imagenet_classes() else outputs


def _normalized(names: Sequence[str]) -> list[str]:
    """Return the names with accents as parts of their letters (NFC); macOS separates them."""
    return [unicodedata.normalize("NFC", name) for name in names]


def _listed(classes: Sequence[str]) -> str:
    noun = "class" if len(classes) == 1 else "classes"
    return f"{len(classes)} {noun} ({first_few(classes, _MAX_LISTED)})"


def relabel(
    dataset: ImageDataset, outputs: Sequence[str], name: str = "the dataset", network: str = "the network"
) -> ImageDataset:
    """Return the dataset with the class indices of a network's outputs, and log one line if they differ.

    Raises:
        ClassMismatchError: the dataset has a class that the network lacks.
    """
    classes = dataset.classes
    if list(classes) == list(outputs):
        _log_classes_without_images(dataset, name)
        return dataset
    indices = match_classes(classes, outputs, name, network)
    absent = sorted(set(range(len(outputs))) - set(indices))
    if absent:
        names = first_few([outputs[index] for index in absent], _MAX_LISTED)
        logger.info(
            "%s has %d of the %d classes of %s, matched by name; it lacks %s",
            name,
            len(classes),
            len(outputs),
            network,
            names,
        )
    elif indices != list(range(len(outputs))):
        logger.info("%s has its classes in another order than %s; they are matched by name", name, network)
    return (
        dataset
        if indices == list(range(len(classes))) and not absent
        else RelabeledDataset(dataset, outputs, indices)
    )
