"""Round float tensors to the values that int8 can represent, with gradients that ignore the rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# A hard swish is 0 below -3 and has no limit above; a hard sigmoid is 0 below -3 and 1 above 3
HARD_SWISH_RANGE = (-3.0, math.inf)
HARD_SIGMOID_RANGE = (-3.0, 3.0)
# Largest integer of weights by their number of bits; ONNX Runtime's 7-bit weights are in [-64, 64]
_WEIGHT_LIMITS = {7: 64, 8: 127}
_MAP_LEVELS = 255  # of feature maps, which are unsigned
_MOMENTUM = 0.01  # weight of a batch in the moving averages of its smallest and largest value


def fake_quantize_weight(weight: Tensor, bits: int = 8) -> Tensor:
    """Round a weight (out_channels, ...) with one scale per output channel, chosen for its largest value."""
    limit = _WEIGHT_LIMITS[bits]
    with torch.no_grad():
        scale = weight.abs().flatten(1).amax(1) / limit
        scale = scale.clamp(min=torch.finfo(scale.dtype).tiny)
        zero_points = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -limit, limit)


def fake_quantize_map(x: Tensor, ends: Tensor) -> Tensor:
    """Round a feature map to 256 values in a range that includes 0; `ends` (2,) are its lowest and highest value."""
    low, high = ends[0].clamp(max=0), ends[1].clamp(min=0)
    scale = ((high - low) / _MAP_LEVELS).clamp(min=torch.finfo(torch.float32).tiny)
    zero_point = (-low / scale).round().clamp(0, _MAP_LEVELS).int()
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, zero_point, 0, _MAP_LEVELS)


class MapQuantizer(nn.Module):
    """Rounds a feature map within a range that follows the map during training.

    The range is a moving average of each batch's smallest and largest value. It is not part of the state dict, so that
    checkpoints have the same tensors as without quantization.

    Args:
        limits: values beyond which the next operator does not change; the range stays within them.
    """

    ends: Tensor  # (2,): lowest and highest value; infinite before the first batch

    def __init__(self, limits: tuple[float, float] = (-math.inf, math.inf)) -> None:
        super().__init__()
        self.limits = limits
        self.observing = True  # whether the range follows the map in training mode
        self.register_buffer("ends", torch.tensor([math.inf, -math.inf]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Round a tensor of any shape."""
        if self.training and self.observing:
            self._observe(x.detach())
        return fake_quantize_map(x, self.ends)

    def _observe(self, x: Tensor) -> None:
        ends = torch.stack(torch.aminmax(x)).float().clamp(*self.limits)
        average = torch.lerp(self.ends, ends, _MOMENTUM)
        self.ends.copy_(torch.where(self.ends.isinf(), ends, average))
