"""ROI pooling for a box head that begins with a 1x1 convolution, which runs first where that is cheaper."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.modeling.cpu.inference_blocks import FusedConv

# Samples along a side of a bin above which torchvision's operator is used, which needs no memory for them
_MAX_SAMPLES = 8


class ExpandingPooler(nn.Module):
    """A pooler and the 1x1 convolution that follows it, run in whichever order is cheaper.

    ROIAlign is linear and treats all channels alike, so a 1x1 convolution can be applied to the map instead of the
    regions cut from it: 75 regions have more positions than the map of a small image. The bias is added at the end,
    because samples outside the map count as zero. The pooler must be one that `can_expand` accepts.
    """

    def __init__(self, pooler: ROIPooler, expand: FusedConv) -> None:
        super().__init__()
        self.pooler = pooler
        self.expand = expand
        out_channels, in_channels = expand.weight.shape[:2]
        linear = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        linear.weight = nn.Parameter(expand.weight, requires_grad=False)
        self.linear = FusedConv(linear)

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Map one map (N, C, H, W) and the boxes of each image, R in total, to (R, C', side, side)."""
        x = features[0]
        rois = convert_boxes_to_pooler_format(box_lists)
        align = self.pooler.level_poolers[0]
        side = align.output_size[0]
        sizes = rois[:, 3:] - rois[:, 1:3]
        samples = (sizes * (align.spatial_scale / side)).ceil().amax(dim=1)
        # Compare the two orders, and check that this implementation supports the input
        map_positions = x[:, 0].numel()
        region_positions = len(rois) * side * side
        if (
            map_positions >= region_positions
            or x.device.type != "cpu"
            or x.dtype != rois.dtype
            or samples.max() > _MAX_SAMPLES
        ):
            return self.expand(self.pooler(features, box_lists))
        # Convolve the map without bias, pool, then add the bias
        expanded = self.linear(x)
        regions = roi_align_channels_last(expanded, rois, samples, side, align.spatial_scale)
        if self.expand.bias is not None:
            regions += self.expand.bias[:, None, None]
        return regions if self.expand.act is None else self.expand.act(regions)


def can_expand(pooler: nn.Module) -> bool:
    """Return whether `ExpandingPooler` supports a pooler: aligned, for one map, with square output."""
    levels: Any = getattr(pooler, "level_poolers", ())
    if type(pooler) is not ROIPooler or len(levels) != 1:
        return False
    align = levels[0]
    is_supported_kind = type(align) is ROIAlign and align.aligned and align.sampling_ratio == 0
    return is_supported_kind and align.output_size[0] == align.output_size[1]


def roi_align_channels_last(x: Tensor, rois: Tensor, samples: Tensor, side: int, scale: float) -> Tensor:
    """Apply aligned ROIAlign with an adaptive number of samples to channels-last maps.

    torchvision's operator traverses the map channel by channel; this one reads all channels of a position at once, by
    summing rows of the map with `embedding_bag`.

    Args:
        x: maps (N, C, H, W), float32 or float64, on a CPU.
        rois: regions (R, 5): index of the map, and x0, y0, x1, y1 in pixels of the image.
        samples: samples along a side of each region's bins (R,); more than needed do no harm.
        side: bins along a region's side: the result is (R, C, side, side), channels-last.
        scale: positions of the map per pixel.
    """
    channels, height, width = x.shape[1:]
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)  # a row per position of all maps
    samples = samples.clamp(min=1)
    counts, regions_per_count = samples.unique(return_counts=True)
    max_count = int(counts[-1]) if len(counts) else 1
    map_index, x0, y0, x1, y1 = rois.unbind(1)
    line, line_weight = _interpolate(y0 * scale, y1 * scale, side, height, max_count)
    column, column_weight = _interpolate(x0 * scale, x1 * scale, side, width, max_count)
    line_start = (line + map_index.long()[:, None, None, None] * height) * width  # row of the table

    def pool(selection: Tensor | slice, count: int) -> Tensor:
        """Pool the selected regions with this number of samples to (selected, side * side, channels)."""
        lines, columns, line_weights, column_weights = (
            part[selection][..., :count].flatten(2)
            for part in (line_start, column, line_weight, column_weight)
        )
        # All combinations of bin rows and bin columns, and of samples and neighbors in both directions
        index = lines[:, :, None, :, None] + columns[:, None, :, None, :]
        weight = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        bags = (index.shape[0] * side * side, index.shape[3] * index.shape[4])
        weight = weight.reshape(bags)
        sums = F.embedding_bag(index.reshape(bags), table, per_sample_weights=weight, mode="sum")
        return sums.view(-1, side * side, channels)

    # Pool all regions with the most frequent number of samples, then again those that need a different number
    common_count = int(counts[regions_per_count.argmax()]) if len(counts) else 1
    regions = pool(slice(None), common_count)
    for count in map(int, counts.tolist()):
        if count != common_count:
            selected = (samples == count).nonzero().squeeze(1)
            regions.index_copy_(0, selected, pool(selected, count))
    return regions.view(len(rois), side, side, channels).permute(0, 3, 1, 2)


def _interpolate(start: Tensor, end: Tensor, side: int, size: int, max_count: int) -> tuple[Tensor, Tensor]:
    """Compute which positions along one axis of a map of this size each bin reads, and with which weights.

    The regions extend from `start` to `end` (R,), in positions of the map. Positions and weights are
    (R, side, 2, max_count): each sample is interpolated between two neighbors.
    """
    bin_size = ((end - start) / side)[:, None, None]
    samples = bin_size.ceil()
    number = torch.arange(max_count, dtype=bin_size.dtype)
    bins = torch.arange(side, dtype=bin_size.dtype)[:, None]
    bin_start = (start - 0.5)[:, None, None] + bin_size * bins
    position = bin_start + (number + 0.5) * bin_size / samples.clamp(min=1)
    # Samples outside the map count as zero
    is_counted = (position >= -1) & (position <= size) & (number < samples)
    weight = is_counted / samples.clamp(min=1)
    # Linear interpolation between the neighbors
    position = position.clamp(0, size - 1)
    lower = position.long()  # rounded down, because positions are not negative
    fraction = position - lower
    neighbors = torch.stack((lower, (lower + 1).clamp(max=size - 1)), dim=2)
    return neighbors, torch.stack(((1 - fraction) * weight, fraction * weight), dim=2)
