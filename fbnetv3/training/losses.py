"""Losses by name (config key SOLVER.LOSS), and the objective of training on labels alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, classes) and targets, class indices (N,) or probabilities (N, classes), to the mean loss."""

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Maps a network, images (N, C, H, W) and targets to the mean loss of a batch."""

LOSSES = Registry("loss")
"""Loss functions; `label_smoothing` (SOLVER.LABEL_SMOOTHING) is passed to those that accept it."""


@LOSSES.register(name="cross_entropy")
def cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy; `label_smoothing` is the probability that is spread evenly over all classes."""
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)


def supervised_objective(
    model: nn.Module, images: Tensor, targets: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """Return the mean loss of a batch on the labels alone."""
    return loss(model(images).float(), targets)
