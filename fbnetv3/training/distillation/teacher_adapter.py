"""Give a teacher the input and the outputs of its student: other normalization, other order or number of classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fbnetv3.data.classes.class_matching import match_classes
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.network_record import NetworkRecord


class AdaptedTeacher(nn.Module):
    """A teacher that takes images normalized for its student, and returns logits of the student's classes.

    Args:
        teacher: maps (N, C, H, W) to logits (N, outputs).
        scale: factor of each channel.
        shift: added to each channel after the factor.
        outputs: indices of the teacher's outputs, one for each class of the student.
    """

    scale: Tensor
    shift: Tensor
    outputs: Tensor

    def __init__(
        self, teacher: nn.Module, scale: Sequence[float], shift: Sequence[float], outputs: Sequence[int]
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.register_buffer("scale", torch.tensor(scale)[:, None, None])
        self.register_buffer("shift", torch.tensor(shift)[:, None, None])
        self.register_buffer("outputs", torch.tensor(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes of the student)."""
        return self.teacher(images * self.scale + self.shift)[:, self.outputs]


def adapt_teacher(
    teacher: nn.Module,
    record: NetworkRecord,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """Return the teacher, adapted if its record differs from the student's classes, mean and std.

    Raises:
        ClassMismatchError: the student has a class that the teacher lacks.
        UsageError: the teacher takes another number of channels.
    """
    own = record.preprocessing
    if len(own.mean) != len(mean):
        raise UsageError(f"the teacher takes {len(own.mean)} channels, the student {len(mean)}")
    outputs = record.classes or classes
    indices = match_classes(classes, outputs, "the dataset", "the teacher")
    is_same_input = (own.mean, own.std) == (tuple(mean), tuple(std))
    if is_same_input and indices == list(range(len(outputs))):
        return teacher
    # x = pixel * std + mean is the image in [0, 1]; the teacher takes (x - its mean) / its std
    scale = [s / t for s, t in zip(std, own.std, strict=True)]
    shift = [(m - n) / t for m, n, t in zip(mean, own.mean, own.std, strict=True)]
    return AdaptedTeacher(teacher, scale, shift, indices)
