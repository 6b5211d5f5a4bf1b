"""Losses by name (config key SOLVER.LOSS), and the objective of training on labels alone."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from fbnetv3.registry import Registry

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (N, classes) and targets, class indices (N,) or probabilities (N, classes), to the mean loss."""

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Maps a network, images (N, C, H, W) and targets to the mean loss of a batch."""

LOSSES = Registry("loss")
"""Loss functions. Those that accept them get `label_smoothing` (SOLVER.LABEL_SMOOTHING), `class_weights`
(SOLVER.CLASS_WEIGHTS, a tensor) and `focal_gamma` (SOLVER.FOCAL_GAMMA)."""


@LOSSES.register(name="cross_entropy")
def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy; `label_smoothing` is the probability that is spread evenly over all classes.

    With `class_weights` (classes,), the weighted losses are still divided by the number of images, so the loss does not
    depend on how images are divided among batches.
    """
    if class_weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    total = F.cross_entropy(
        logits, targets, class_weights, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / len(targets)


@LOSSES.register(name="focal")
def focal_loss(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Tensor:
    """Return the mean focal loss: the terms of cross-entropy times (1 - p) ** focal_gamma, with softmax's p."""
    log_probabilities = logits.log_softmax(1)
    targets = to_probabilities(targets, logits.shape[1], label_smoothing)
    terms = -targets * (1 - log_probabilities.exp()) ** focal_gamma * log_probabilities
    if class_weights is not None:
        terms = terms * class_weights
    return terms.sum(1).mean()


@LOSSES.register(name="binary_cross_entropy")
def binary_cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return the mean over images and classes of the binary cross-entropy, as in timm and "ResNet strikes back".

    Every class is a question of its own, so an image may have several labels. `class_weights` (classes,) multiply the
    terms of the labels that an image has.
    """
    targets = to_probabilities(targets, logits.shape[1], label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=class_weights)


@LOSSES.register(name="sigmoid_focal")
def sigmoid_focal(
    logits: Tensor,
    targets: Tensor,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
) -> Tensor:
    """Return the mean over images and classes of torchvision's sigmoid focal loss, without its factor alpha."""
    targets = to_probabilities(targets, logits.shape[1], label_smoothing)
    terms = sigmoid_focal_loss(logits, targets, alpha=-1, gamma=focal_gamma)
    if class_weights is not None:
        terms = terms * (targets * class_weights + 1 - targets)
    return terms.mean()


def to_probabilities(targets: Tensor, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """Return targets (N, classes), smoothed, from these or from class indices (N,)."""
    if targets.ndim == 1:
        targets = F.one_hot(targets, num_classes)
    return targets.float() * (1 - label_smoothing) + label_smoothing / num_classes


def supervised_objective(
    model: nn.Module, images: Tensor, targets: Tensor, loss: Loss = cross_entropy
) -> Tensor:
    """Return the mean loss of a batch on the labels alone."""
    return loss(model(images).float(), targets)
