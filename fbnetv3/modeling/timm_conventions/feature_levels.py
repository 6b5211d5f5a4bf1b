"""Descriptions of a network's feature maps, and the choice among them by index, as in timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fbnetv3.arch import ArchDef
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.errors import UsageError

Indices = int | Sequence[int] | None

_ADVICE = "pass a list of indices from {lowest} to {highest}, or a number of last maps"


def describe_levels(arch: ArchDef, output_stride: int, prefix: str = "") -> list[dict[str, Any]]:
    """Describe the last map at every stride of an architecture, finest first.

    Each description has timm's keys: `num_chs`, the channels; `reduction`, the stride; `module`, the name of the
    module that returns the map, after `prefix`; `stage`, the index of its stage; and `index`, that of the description.
    """
    return [
        {
            "index": index,
            "stage": block.stage,
            "module": f"{prefix}stages.{block.name}",
            "num_chs": block.spec.out_channels,
            "reduction": min(stride, output_stride),
        }
        for index, (block, stride) in enumerate(feature_blocks(arch))
    ]


def resolve_indices(indices: Indices, count: int, argument: str) -> tuple[int, ...]:
    """Return indices from 0 to `count` - 1: all for None, the last n for an integer, else those of the sequence.

    Negative indices count from the end.

    Raises:
        UsageError: an index is out of range or repeated, or there is none; the message names the argument.
    """
    advice = _ADVICE.format(lowest=-count, highest=count - 1)
    if indices is None:
        return tuple(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise UsageError(f"{argument} {indices}: the network has {count} maps; {advice}")
        return tuple(range(count - indices, count))
    resolved = tuple(index + count if index < 0 else index for index in indices)
    if any(not 0 <= index < count for index in resolved):
        raise UsageError(f"{argument} {list(indices)}: the network has {count} maps; {advice}")
    if not resolved or len(set(resolved)) < len(resolved):
        raise UsageError(f"{argument} {list(indices)}: is empty or names a map twice; {advice}")
    return resolved


class FeatureInfo:
    """Descriptions of all maps, and which of them a network returns; the accessors are those of timm's class.

    Args:
        info: descriptions as `describe_levels` returns them.
        out_indices: indices of the maps that the network returns, in its order.
    """

    def __init__(self, info: list[dict[str, Any]], out_indices: tuple[int, ...]) -> None:
        self.info = info
        self.out_indices = out_indices

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return a value of each returned map; of the map `idx`, or of the maps `idx`, whether returned or not."""
        if isinstance(idx, int):
            return self.info[idx][key]
        return [self.info[i][key] for i in (self.out_indices if idx is None else idx)]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Return the descriptions of the maps that `get` would choose, with all keys or those in `keys`."""
        if isinstance(idx, int):
            return {key: self.info[idx][key] for key in (keys or self.info[idx])}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return numbers of channels; see `get` for `idx`."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return strides; see `get` for `idx`."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return names of the modules that compute the maps; see `get` for `idx`."""
        return self.get("module", idx)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.info[item]

    def __len__(self) -> int:
        return len(self.info)
