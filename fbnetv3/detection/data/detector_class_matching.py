"""Match the classes of datasets with those of a detector by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from detectron2.config import CfgNode

from fbnetv3.data.classes.class_matching import match_classes
from fbnetv3.detection.data.detection_datasets import (
    Classes,
    dataset_classes,
    num_classes_setting,
)
from fbnetv3.errors import UsageError
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

_MAX_LISTED = 10


def model_classes(cfg: CfgNode, names: Sequence[str], recorded: Classes | None = None) -> Classes:
    """Return the category ids and names of a detector's classes, and require that loaded datasets have no others.

    They are those of its checkpoint, if it records them, else those of the first of the datasets that names its
    classes; empty if none does. Datasets may have some of the classes, in any order, which is logged.

    Args:
        cfg: detectron2's config.
        names: loaded datasets, those that define the classes first.
        recorded: classes that a checkpoint records.

    Raises:
        UsageError: a dataset has other classes, or the network has another number of classes.
    """
    by_dataset = {name: classes for name in names if (classes := dataset_classes(name))}
    source = "the detector" if recorded else next(iter(by_dataset), "")
    classes = recorded or by_dataset.get(source, {})
    key, num_classes = num_classes_setting(cfg)
    if classes and len(classes) != num_classes:
        listed = first_few(list(classes.values()))
        raise UsageError(
            f"{source} has {len(classes)} classes ({listed}), but the network has {num_classes}: "
            f"set {key} {len(classes)}"
        )
    for name, dataset in by_dataset.items():
        if name != source:
            _match(list(dataset.values()), list(classes.values()), name, source)
    return classes


def _match(classes: Sequence[str], outputs: Sequence[str], name: str, source: str) -> None:
    """Require that all classes of a dataset are among the outputs; log one line if they are not the same."""
    indices = match_classes(classes, outputs, name, source)
    if len(indices) < len(outputs):
        absent = [output for index, output in enumerate(outputs) if index not in indices]
        logger.info(
            "%s has %d of the %d classes of %s, matched by name; it lacks %s",
            name,
            len(indices),
            len(outputs),
            source,
            first_few(absent, _MAX_LISTED),
        )
    elif indices != list(range(len(outputs))):
        logger.info("%s has its classes in another order than %s; they are matched by name", name, source)
