"""Regions of a map for a box head whose first layer is a 1x1 convolution: that goes first, where it is less work."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.modeling.cpu.inference_blocks import FusedConv

# Samples along a side of a bin, beyond which torchvision's operator takes over: it needs no memory for them.
_MOST_SAMPLES = 8


class ExpandingPooler(nn.Module):
    """A pooler, and the 1x1 convolution that follows it, in whichever order is less work.

    ROIAlign is linear, and it treats all channels alike: a 1x1 convolution can as well go over the map as over the
    regions cut from it, of which 75 have more places than the map of a small image. The bias goes after it, since
    samples beyond the map count as zero.

    Args:
        pooler: a pooler of detectron2's, for one map; see `can_expand`.
        expand: the convolution, with its norm folded in, and its activation.
    """

    def __init__(self, pooler: ROIPooler, expand: FusedConv) -> None:
        super().__init__()
        self.pooler, self.expand = pooler, expand
        linear = nn.Conv2d(expand.weight.shape[1], expand.weight.shape[0], 1, bias=False)
        linear.weight = nn.Parameter(expand.weight, requires_grad=False)
        self.linear = FusedConv(linear)

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """One map (N, C, H, W) and N lists of boxes, R altogether, to (R, C', side, side)."""
        x, rois = features[0], convert_boxes_to_pooler_format(box_lists)
        align = self.pooler.level_poolers[0]
        side = align.output_size[0]
        samples = ((rois[:, 3:] - rois[:, 1:3]) * (align.spatial_scale / side)).ceil().amax(dim=1)
        if (
            x[:, 0].numel() >= len(rois) * side * side
            or x.device.type != "cpu"
            or x.dtype not in (torch.float32, torch.float64)
            or samples.max() > _MOST_SAMPLES
        ):
            return self.expand(self.pooler(features, box_lists))
        expanded = self.linear(x)
        regions = roi_align_channels_last(expanded, rois, samples, side, align.spatial_scale)
        if self.expand.bias is not None:
            regions += self.expand.bias[:, None, None]
        return regions if self.expand.act is None else self.expand.act(regions)


def can_expand(pooler: nn.Module) -> bool:
    """Whether a pooler is one that `ExpandingPooler` can take the place of: aligned, for one map, square."""
    levels: Any = getattr(pooler, "level_poolers", ())
    if type(pooler) is not ROIPooler or len(levels) != 1 or type(levels[0]) is not ROIAlign:
        return False
    align = levels[0]
    return align.aligned and align.sampling_ratio == 0 and align.output_size[0] == align.output_size[1]


def roi_align_channels_last(x: Tensor, rois: Tensor, samples: Tensor, side: int, scale: float) -> Tensor:
    """ROIAlign, aligned and with as many samples as a bin has places, for maps that lie channels-last.

    torchvision's operator goes through a map channel by channel; this one takes all channels of a place at once.

    Args:
        x: maps (N, C, H, W), float32 or float64, on a CPU.
        rois: regions (R, 5): which map, and x0, y0, x1, y1 in pixels of the image.
        samples: samples along a side of each region's bins (R,); more than it needs do no harm.
        side: bins along a region's side.
        scale: places of the map in a pixel.

    Returns:
        (R, C, side, side), channels-last.
    """
    channels, height, width = x.shape[1:]
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    counts, members = samples.clamp(min=1).unique(return_counts=True)
    most = int(counts[-1]) if len(counts) else 1
    image, x0, y0, x1, y1 = rois.unbind(1)
    line, line_weight = _along(y0 * scale, y1 * scale, side, height, most)
    place, place_weight = _along(x0 * scale, x1 * scale, side, width, most)
    line = (line + image.long()[:, None, None, None] * height) * width

    def summed(which: Tensor | slice, count: int) -> Tensor:
        """Regions of so many samples; each lies between two lines and between two places."""
        lines, places, line_weights, place_weights = (
            part[which][..., :count].flatten(2) for part in (line, place, line_weight, place_weight)
        )
        index = lines[:, :, None, :, None] + places[:, None, :, None, :]
        weight = line_weights[:, :, None, :, None] * place_weights[:, None, :, None, :]
        bags = (index.shape[0] * side * side, index.shape[3] * index.shape[4])
        found = F.embedding_bag(index.reshape(bags), rows, per_sample_weights=weight.reshape(bags), mode="sum")
        return found.view(-1, side * side, channels)

    common = int(counts[members.argmax()]) if len(counts) else 1
    found = summed(slice(None), common)  # of all, and those that need another number again
    for count in counts.tolist():
        if int(count) != common:
            which = (samples.clamp(min=1) == count).nonzero().squeeze(1)
            found.index_copy_(0, which, summed(which, int(count)))
    return found.view(len(rois), side, side, channels).permute(0, 3, 1, 2)


def _along(start: Tensor, end: Tensor, side: int, size: int, most: int) -> tuple[Tensor, Tensor]:
    """Which places of a map's side each bin takes from, and with which weights.

    Args:
        start, end: of the regions (R,), in places.
        side: bins of a region.
        size: places of the map.
        most: samples of a bin at most.

    Returns:
        Places and weights, (R, side, 2, most): each sample lies between two places.
    """
    step = ((end - start) / side)[:, None, None]
    samples = step.ceil()
    number = torch.arange(most, dtype=step.dtype)
    position = (start - 0.5)[:, None, None] + step * torch.arange(side, dtype=step.dtype)[:, None]
    position = position + (number + 0.5) * step / samples.clamp(min=1)
    counts = (position >= -1) & (position <= size) & (number < samples)
    weight = counts / samples.clamp(min=1)
    position = position.clamp(0, size - 1)
    below = position.floor()
    share = position - below
    below = below.long()
    return (
        torch.stack((below, (below + 1).clamp(max=size - 1)), dim=2),
        torch.stack(((1 - share) * weight, share * weight), dim=2),
    )
