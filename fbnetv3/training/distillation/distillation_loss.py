"""The objective of distillation: a teacher's probabilities and labels (Sec. 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.training.losses import Loss, cross_entropy


@dataclass(eq=False)
class Distillation:
    """Weighted sum of the cross-entropy with a frozen teacher and the loss on the labels (Sec. 4.2: 0.8 and 0.2).

    Teacher and student see the same crop and the same mixup, each at its own resolution.

    Args:
        teacher: pretrained classifier of the same classes; it is frozen.
        resolution: side of the student's input in pixels; larger images are resized.
        teacher_resolution: side of the teacher's input in pixels.
        alpha: weight of the teacher's loss.
        loss: loss on the labels.
    """

    teacher: nn.Module
    resolution: int
    teacher_resolution: int
    alpha: float = 0.8
    loss: Loss = cross_entropy

    def __post_init__(self) -> None:
        self.teacher.eval().requires_grad_(False)

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        with torch.no_grad():
            teacher_logits = self.teacher(resize_images(images, self.teacher_resolution)).float()
        logits = model(resize_images(images, self.resolution)).float()
        # Cross-entropy with soft targets: up to a constant, the divergence from the teacher
        teacher_loss = F.cross_entropy(logits, teacher_logits.softmax(1))
        return self.alpha * teacher_loss + (1 - self.alpha) * self.loss(logits, targets)


def resize_images(images: Tensor, side: int) -> Tensor:
    """Resize square images (N, C, H, H), bilinear and antialiased; return those of the right size unchanged."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
