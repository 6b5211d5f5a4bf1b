"""What a training step minimises: cross-entropy with the labels, or with a teacher besides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# From the network, images (N, C, H, W), and targets (N,) or (N, classes), to the mean loss.
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


class CrossEntropy:
    """Cross-entropy with the labels, or with mixed ones.

    Args:
        label_smoothing: share of the target spread over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(images).float(), targets, label_smoothing=self.label_smoothing)


class Distillation:
    """A share of cross-entropy with a frozen teacher's answers, the rest with the labels (Sec. 4.2: 0.8 and 0.2).

    Teacher and student see the same crop and the same mixture, each at its own resolution.

    Args:
        teacher: a trained classifier of the same classes; it is frozen.
        resolution: side of the student's input in pixels; larger images are scaled down to it.
        teacher_resolution: side of the teacher's input.
        share: weight of the teacher's answers.
        label_smoothing: of the labels' part.
    """

    def __init__(
        self,
        teacher: nn.Module,
        resolution: int,
        teacher_resolution: int,
        share: float = 0.8,
        label_smoothing: float = 0.0,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.resolution, self.teacher_resolution = resolution, teacher_resolution
        self.share, self.label_smoothing = share, label_smoothing

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            answers = self.teacher(scaled_to(images, self.teacher_resolution)).float().softmax(1)
        logits = model(scaled_to(images, self.resolution)).float()
        by_teacher = F.cross_entropy(logits, answers)
        by_labels = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return self.share * by_teacher + (1 - self.share) * by_labels


def scaled_to(images: Tensor, side: int) -> Tensor:
    """Square images at another resolution, bilinear and antialiased; as they are where it is theirs already."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
