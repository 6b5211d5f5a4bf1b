"""Weights of a network's first convolution for another number of input channels."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

logger = logging.getLogger(__name__)


def adapt_first_conv(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a network with that of its first convolution adapted to the network's input channels."""
    name, conv = next((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    weight = weights.get(f"{name}.weight")
    if weight is None or weight.ndim != 4 or conv.groups != 1 or weight.shape[1] == conv.in_channels:
        return dict(weights)
    logger.info("%s.weight: adapted from %d to %d input channels", name, weight.shape[1], conv.in_channels)
    return {**weights, f"{name}.weight": adapt_input_conv(weight, conv.in_channels)}


def adapt_input_conv(weight: Tensor, in_chans: int) -> Tensor:
    """Return the weight of a first convolution for `in_chans` channels, as timm adapts it.

    One channel takes the sum over the channels, so that a gray image gives the outputs that it would give as RGB. More
    channels repeat them in their order, scaled so that the sum over the channels stays the same on average.

    Args:
        weight: weight (C, channels, K, K).
        in_chans: channels of the input.

    Returns:
        A weight (C, in_chans, K, K) of the same type; `weight` itself if it has these channels.
    """
    channels = weight.shape[1]
    if channels == in_chans:
        return weight
    full = weight.float()  # half precision is too coarse for the sum
    if in_chans == 1:
        adapted = full.sum(1, keepdim=True)
    else:
        repeats = -(-in_chans // channels)
        adapted = full.repeat(1, repeats, 1, 1)[:, :in_chans] * (channels / in_chans)
    return adapted.to(weight.dtype)
