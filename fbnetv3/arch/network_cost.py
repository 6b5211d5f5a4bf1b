"""The exact cost of a network from its definition alone: whole, by stage and by block."""

from __future__ import annotations

from dataclasses import dataclass

from fbnetv3.arch.complexity import Cost, avg_pool, conv
from fbnetv3.arch.definition import ArchDef, Block
from fbnetv3.errors import UsageError


@dataclass(frozen=True)
class BlockCost:
    """A block, what it costs, and the height and width of its output."""

    block: Block
    cost: Cost
    height: int
    width: int


@dataclass(frozen=True)
class NetworkCost(Cost):
    """A network's cost for one image; the totals are those of `Cost`, the parts lie in `blocks` and `head`."""

    blocks: tuple[BlockCost, ...] = ()
    head: Cost = Cost()

    def by_stage(self) -> list[Cost]:
        """Cost of each stage, in order, without the head."""
        stages = [Cost()] * (1 + max(part.block.stage for part in self.blocks))
        for part in self.blocks:
            stages[part.block.stage] += part.cost
        return stages


def cost_of(
    defn: ArchDef,
    resolution: int | tuple[int, int] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
) -> NetworkCost:
    """Cost of the classifier that `defn` describes.

    Args:
        defn: the definition.
        resolution: pixels of the square input, or (height, width); default: the definition's own.
        num_classes: outputs of the head; 0 for the trunk alone.
        in_chans: channels of the input.

    Raises:
        UsageError: the input is too small for the network, or an argument is out of range.
    """
    check_counts(num_classes, in_chans)
    height, width = _height_width(defn.resolution if resolution is None else resolution)
    parts = []
    for block in defn.blocks(in_chans):
        cost, height, width = block.spec.cost(height, width)
        if height < 1 or width < 1:
            raise UsageError(f"{defn.name}: an input of {resolution} pixels is too small, block {block.name} gets none")
        parts.append(BlockCost(block, cost, height, width))
    channels = defn.out_channels
    head = avg_pool(height, width, channels) + conv(1, 1, channels, num_classes, bias=True) if num_classes else Cost()
    total = sum((part.cost for part in parts), head)
    return NetworkCost(**vars(total), blocks=tuple(parts), head=head)


def check_counts(num_classes: object, in_chans: object) -> None:
    """Refuse numbers of classes and channels that are none.

    Raises:
        UsageError: `num_classes` is not a whole number of at least 0, or `in_chans` of at least 1.
    """
    for what, value, low in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise UsageError(f"{what} {value!r} is not a whole number of at least {low}")


def _height_width(resolution: int | tuple[int, int]) -> tuple[int, int]:
    sides = resolution if isinstance(resolution, (tuple, list)) else (resolution, resolution)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in sides):
        raise UsageError(f"resolution {resolution!r} is neither a positive number of pixels nor (height, width)")
    height, width = sides
    return height, width
