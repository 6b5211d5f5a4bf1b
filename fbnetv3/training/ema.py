"""Exponential moving average of weights and BatchNorm statistics (EMA; Sec. 5, Table 8)."""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class ModelEMA(AveragedModel):
    """Exponential moving average of a model, including its floating-point buffers; it starts as a copy of the model.

    `decay` is the weight of the previous average. The first update copies the model; after n updates, min(decay,
    (1 + n) / (10 + n)) is used, so that the average soon forgets early weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        # Pairs of (average, value) as two lists each: tensors to average, and counters to copy
        self._averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._copied: tuple[list[Tensor], list[Tensor]] = ([], [])

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the model's current weights. Every call must pass the same model.

        The base class with a `multi_avg_fn` gives the same bits, but collects the tensors again in each step. On one
        CPU thread (torch 2.14) that takes 15 ms instead of 4.5 ms for fbnetv3_a.
        """
        if not self._averaged[0]:
            # The same order as in torch's AveragedModel with use_buffers=True
            averages = chain(self.module.parameters(), self.module.buffers())
            values = chain(model.parameters(), model.buffers())
            for average, value in zip(averages, values, strict=True):
                pairs = self._averaged if value.is_floating_point() else self._copied
                pairs[0].append(average.detach())
                pairs[1].append(value.detach())
        num_updates = int(self.n_averaged)
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates)) if num_updates else 0.0
        # One fused call for all tensors of a kind
        if self._averaged[0]:
            torch._foreach_lerp_(*self._averaged, 1 - decay)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
        self.n_averaged += 1
