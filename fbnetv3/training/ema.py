"""The moving average of a network's weights and BatchNorm statistics over training (Sec. 5, Table 8)."""

from __future__ import annotations

from itertools import chain

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
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self._pairs: dict[bool, tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model after another step; always the same model.

        The base class would walk through both networks each time, which takes longer than averaging them.
        """
        if not self._pairs:
            self._pairs = {True: ([], []), False: ([], [])}
            mine, theirs = (chain(m.parameters(), m.buffers()) for m in (self.module, model))
            for average, value in zip(mine, theirs, strict=True):
                for place, tensor in zip(self._pairs[value.is_floating_point()], (average, value), strict=True):
                    place.append(tensor.detach())
        n = int(self.n_averaged)
        keep = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        if self._pairs[True][0]:
            torch._foreach_lerp_(*self._pairs[True], 1 - keep)
        if self._pairs[False][0]:  # counters of BatchNorm
            torch._foreach_copy_(*self._pairs[False])
        self.n_averaged += 1
