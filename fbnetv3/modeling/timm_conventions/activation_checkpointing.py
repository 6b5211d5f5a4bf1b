"""Less memory in training: layers whose activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """Run a layer without keeping its activations; the backward pass computes them again.

    Gradients are the same, dropout and stochastic depth included, and BatchNorm counts the batch only once.
    """
    if not torch.is_grad_enabled():
        return layer(x)
    contexts = partial(_contexts, layer)
    return checkpoint(layer, x, use_reentrant=False, context_fn=contexts)


def _contexts(layer: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return contexts for the first and the second computation."""
    return nullcontext(), _frozen_statistics(layer)


@contextmanager
def _frozen_statistics(layer: nn.Module) -> Iterator[None]:
    """Leave the running statistics of BatchNorms unchanged, although they normalize by those of the batch."""
    norms: list[Any] = [m for m in layer.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    # Switching off `track_running_stats` would save other tensors for the backward pass, which torch refuses
    momenta = [norm.momentum for norm in norms]
    counts = [norm.num_batches_tracked for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, count in zip(norms, momenta, counts, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count
