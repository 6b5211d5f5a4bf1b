"""Copy a trained classifier into one for other classes: the trunk, and the head's rows of classes that both have."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn

from fbnetv3.data.classes.class_matching import output_names
from fbnetv3.data.classes.class_names import repeated_names
from fbnetv3.modeling.weights import head_tensors
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)


@torch.no_grad()
def transfer_by_class(
    trained: nn.Module, model: nn.Module, trained_classes: Sequence[str], classes: Sequence[str]
) -> None:
    """Copy the weights of `trained` into `model`, which has the same layers, and log which classes it keeps.

    WordNet IDs match the names of ImageNet's classes.

    Rows of the head whose class has no counterpart, or shares its name with another one, keep the values
    that they have in `model`.
    """
    weights = dict(trained.state_dict())
    own_weights = model.state_dict()
    outputs = output_names(trained_classes, classes)
    ambiguous = {*repeated_names(outputs), *repeated_names(classes)}
    row_of = {name: row for row, name in enumerate(outputs) if name not in ambiguous}
    shared = [index for index, name in enumerate(classes) if name in row_of]
    rows = [row_of[classes[index]] for index in shared]
    for key in head_tensors(model):
        head = own_weights[key].clone()
        head[shared] = weights[key][rows]
        weights[key] = head
    model.load_state_dict(weights)
    new_classes = [name for name in classes if name not in row_of]
    if not new_classes:
        logger.info("the head has all %d classes from the weights, matched by name", len(classes))
    elif shared:
        logger.info(
            "the head has %d of %d classes from the weights, matched by name; new: %s",
            len(shared),
            len(classes),
            first_few(new_classes, 5),
        )
    else:
        logger.info("the weights have other classes than the dataset: the head starts from random values")
