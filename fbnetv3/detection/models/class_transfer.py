"""Start a detector from one with other classes: keep the rows of the last layers whose classes have equal names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

State = Mapping[str, Tensor]

# Last layers of detectron2's heads, whose rows depend on the classes; cascades number their stages
_CLASS_LAYER = re.compile(
    r"roi_heads\.box_predictor\.(?:\d+\.)?(?P<roi>cls_score|bbox_pred)\.(?:weight|bias)"
    r"|roi_heads\.mask_head\.(?P<mask>predictor)\.(?:weight|bias)"
    r"|head\.(?P<dense>cls_score)\.(?:weight|bias)"
)


def is_class_layer(name: str) -> bool:
    """Return whether a tensor's number of rows depends on the classes."""
    return _CLASS_LAYER.fullmatch(name) is not None


def transfer_class_rows(
    trained: State, model: State, trained_classes: Sequence[str], classes: Sequence[str]
) -> dict[str, Tensor]:
    """Return the trained state dict with the last layers of a model for other classes, and log which ones it keeps.

    Rows of classes that both have, and of the background, come from `trained`; the others from `model`. A layer that
    is the same for all classes is kept, and one that only one side has per class is left as it is.

    Args:
        trained: state dict of the trained detector.
        model: state dict of the model to start.
        trained_classes: names of the trained detector's classes, by class index.
        classes: names of the model's classes.
    """
    row_of = {name: row for row, name in enumerate(trained_classes)}
    pairs = [(index, row_of[name]) for index, name in enumerate(classes) if name in row_of]
    state = dict(trained)
    for key in filter(is_class_layer, trained):
        old_groups = _group_rows(key, trained[key], len(trained_classes))
        new_groups = _group_rows(key, model[key].clone(), len(classes)) if key in model else None
        if old_groups is None or new_groups is None:
            continue
        outer, _, *rest = new_groups.shape
        if old_groups.shape[0] != outer or list(old_groups.shape[2:]) != rest:
            continue  # another kind of head, which loading reports
        for new, old in pairs:
            new_groups[:, new] = old_groups[:, old]
        if _has_background(key):
            new_groups[:, -1] = old_groups[:, -1]
        state[key] = new_groups.reshape(model[key].shape)
    _log_transfer(classes, row_of)
    return state


def _group_rows(key: str, tensor: Tensor, num_classes: int) -> Tensor | None:
    """View a last layer as (anchors, classes, rows per class, ...); None if it is the same for all classes."""
    match = _CLASS_LAYER.fullmatch(key)
    assert match is not None
    rows = len(tensor)
    if match["dense"]:  # of RetinaNet: anchors in the outer, classes in the inner position
        groups = (rows // num_classes, num_classes, 1)
    elif match["roi"] == "bbox_pred":
        groups = (1, num_classes, 4)
    else:
        groups = (1, num_classes + _has_background(key), 1)
    is_divided = groups[0] * groups[1] * groups[2] == rows
    return tensor.reshape(*groups, *tensor.shape[1:]) if is_divided else None


def _has_background(key: str) -> bool:
    match = _CLASS_LAYER.fullmatch(key)
    return match is not None and match["roi"] == "cls_score"


def _log_transfer(classes: Sequence[str], trained: Mapping[str, int]) -> None:
    new = [name for name in classes if name not in trained]
    if not new:
        logger.info("the last layers have all %d classes from the weights, matched by name", len(classes))
    elif len(new) < len(classes):
        logger.info(
            "the last layers have %d of %d classes from the weights, matched by name; new: %s",
            len(classes) - len(new),
            len(classes),
            first_few(new, 5),
        )
    else:
        logger.info("the weights have other classes than the dataset: these start from random values")
