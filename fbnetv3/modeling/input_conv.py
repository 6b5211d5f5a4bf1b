"""Adapt the first convolution of pretrained weights to a different number of input channels."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

logger = logging.getLogger(__name__)


def adapt_input_weights(weight: Tensor, in_chans: int) -> Tensor:
    """Return the weight (O, I, h, w) of an input convolution for `in_chans` channels, as timm does.

    One channel gets the sum over all: a gray image then gives the same result as its copies in I channels. Otherwise
    the channels are repeated, cut off after `in_chans`, and scaled by I / in_chans, which keeps the size of outputs.
    """
    channels = weight.shape[1]
    if in_chans == channels:
        return weight
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeats = -(-in_chans // channels)
    repeated = weight.float().repeat(1, repeats, 1, 1)[:, :in_chans]
    return (repeated * (channels / in_chans)).to(weight.dtype)


def adapt_to_network(weights: Mapping[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """Return weights whose input convolution fits the model's, with a warning if it had to be adapted.

    `source` is the name of the weights for the warning.
    """
    adapted = dict(weights)
    convs = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not convs:
        return adapted
    name, conv = convs[0]
    weight = adapted.get(f"{name}.weight")
    # All other dimensions must be equal; otherwise the weights belong to a different network
    if (
        weight is None
        or weight.ndim != 4
        or conv.groups != 1
        or weight.shape[1] in (0, conv.in_channels)
        or (weight.shape[0], *weight.shape[2:]) != (conv.out_channels, *conv.kernel_size)
    ):
        return adapted
    logger.warning(
        "%s has %d input channels, the network %d: its first convolution is adapted",
        source,
        weight.shape[1],
        conv.in_channels,
    )
    adapted[f"{name}.weight"] = adapt_input_weights(weight, conv.in_channels)
    return adapted
