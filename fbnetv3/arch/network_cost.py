"""Exact cost of a network from its definition alone: in total, by stage and by block."""

from __future__ import annotations

from dataclasses import dataclass

from fbnetv3.arch.definition import ArchDef, Block
from fbnetv3.arch.layer_cost import Cost, avg_pool_cost, conv_cost
from fbnetv3.errors import UsageError
from fbnetv3.utils.checks import check_int, is_int


@dataclass(frozen=True)
class BlockCost:
    """A block, its cost, and the height and width of its output."""

    block: Block
    cost: Cost
    height: int
    width: int


@dataclass(frozen=True)
class NetworkCost(Cost):
    """Cost of a network for one image: totals, and the parts they are made of."""

    blocks: tuple[BlockCost, ...] = ()
    head: Cost = Cost()

    def by_stage(self) -> list[Cost]:
        """Return the cost of each stage, in order, without the head."""
        stages = [Cost()] * (1 + max(part.block.stage for part in self.blocks))
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
    """Compute the cost of a classifier.

    Args:
        arch: the architecture.
        resolution: side of the square input in pixels, or (height, width); default: the architecture's own.
        num_classes: outputs of the head; 0 for the trunk alone.
        in_chans: channels of the input.

    Raises:
        UsageError: the input is too small for the network, or an argument is out of range.
    """
    check_int(num_classes, "num_classes", 0)
    check_int(in_chans, "in_chans", 1)
    input_height, input_width = _height_width(arch.resolution if resolution is None else resolution)
    # Follow the size of the feature map from block to block
    height = input_height
    width = input_width
    parts = []
    for block in arch.blocks(in_chans):
        cost, height, width = block.spec.cost(height, width)
        if height < 1 or width < 1:
            raise UsageError(
                f"{arch.name}: an input of {input_height}x{input_width} pixels is too small: "
                f"block {block.name} has an empty output; use a higher resolution"
            )
        parts.append(BlockCost(block, cost, height, width))

    # The head pools the last map and is a 1x1 convolution on one pixel
    head = Cost()
    if num_classes:
        head = avg_pool_cost(height, width, arch.out_channels)
        head += conv_cost(1, 1, arch.out_channels, num_classes, bias=True)
    total = sum((part.cost for part in parts), head)
    return NetworkCost(**vars(total), blocks=tuple(parts), head=head)


def _height_width(resolution: int | tuple[int, int]) -> tuple[int, int]:
    sides = resolution if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    if len(sides) != 2 or not all(is_int(side, 1) for side in sides):
        raise UsageError(f"resolution {resolution!r} must be a positive number of pixels or (height, width)")
    height, width = sides
    return height, width
