"""The moving average of a network's weights and BatchNorm statistics over training (Sec. 5, Table 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ModelEMA(AveragedModel):
    """Exponential moving average of a model, its floating-point buffers included.

    Early in training the average is short, min(decay, (1 + n) / (10 + n)) after n steps, so that it does not
    hang on to the first, random weights.

    Args:
        model: the model to average; the average starts as a copy of it.
        decay: weight of the past in each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        def average(averages: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
            n = int(steps)
            keep = min(decay, (1 + n) / (10 + n))
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, values, 1 - keep)
            else:  # counters of BatchNorm
                torch._foreach_copy_(averages, values)

        super().__init__(model, multi_avg_fn=average, use_buffers=True)
