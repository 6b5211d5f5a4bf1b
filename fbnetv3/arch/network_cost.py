"""Exact cost of a network from its definition alone: in total, by stage and by block."""

from __future__ import annotations

from dataclasses import dataclass

from fbnetv3.arch.definition import ArchDef, BlockCost
from fbnetv3.arch.layer_cost import Cost, avg_pool_cost, conv_cost
from fbnetv3.errors import UsageError
from fbnetv3.utils.checks import check_int


@dataclass(frozen=True)
class NetworkCost(Cost):
    """Cost of a network for one image: totals, and the parts they are made of."""

    blocks: tuple[BlockCost, ...] = ()
    head: Cost = Cost()

    def by_stage(self) -> list[Cost]:
        """Return the cost of each stage, in order, without the head."""
        stages = [Cost()] * (1 + self.blocks[-1].block.stage)
        for part in self.blocks:
            stages[part.block.stage] += part.cost
        return stages


def compute_cost(
    arch: ArchDef,
    resolution: int | tuple[int, int] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
) -> NetworkCost:
    """Compute the cost of a classifier; see `fbnetv3.cost`, which also takes names and files."""
    check_int(num_classes, "num_classes", 0)
    check_int(in_chans, "in_chans", 1)
    resolution = arch.resolution if resolution is None else resolution
    sides = tuple(resolution) if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    if len(sides) != 2:
        raise UsageError(f"resolution: {resolution} must be an integer or (height, width)")
    height, width = sides
    for side in sides:
        check_int(side, "resolution", 1)
    blocks = tuple(arch.block_costs(height, width, in_chans))
    # The head pools the last map and is a 1x1 convolution on one pixel
    head = Cost()
    if num_classes:
        head = avg_pool_cost(blocks[-1].height, blocks[-1].width, arch.out_channels)
        head += conv_cost(1, 1, arch.out_channels, num_classes, bias=True)
    total = sum((part.cost for part in blocks), head)
    return NetworkCost(**vars(total), blocks=blocks, head=head)
