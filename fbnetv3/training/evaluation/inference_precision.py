"""Reduced precision of forward passes without gradients, in evaluation and of teachers; on GPUs only."""

from __future__ import annotations

import torch
from torch import nn

# Layers whose weights autocast casts in every forward pass
_CAST_LAYERS = (nn.Conv2d, nn.Linear)


def reduces_precision(device: torch.device, precision: torch.dtype) -> bool:
    """Return whether inference on this device uses the precision of training rather than float32.

    CPUs compute in float32: without special instructions, they are slower in any other precision.
    """
    return device.type == "cuda" and precision != torch.float32


def inference_autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return the autocast in which networks are evaluated: on a GPU, as they are trained (SOLVER.PRECISION)."""
    return torch.autocast(device.type, precision, enabled=reduces_precision(device, precision))


def cast_weights(model: nn.Module, precision: torch.dtype) -> None:
    """Cast the weights of convolutions and linear layers, so that autocast need not do it in every forward pass.

    Under autocast with this precision, the outputs stay the same. It is for frozen networks: small updates would be
    lost in rounding.
    """
    for module in model.modules():
        if isinstance(module, _CAST_LAYERS):
            module.to(precision)
