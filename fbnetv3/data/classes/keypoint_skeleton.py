"""The keypoints that a detector finds: their names, mirror images, and the lines that connect them in pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NamePair = tuple[str, str]


@dataclass(frozen=True)
class KeypointSkeleton:
    """Keypoints by index.

    Raises:
        ValueError: names are repeated, or a pair names other keypoints.
    """

    names: tuple[str, ...]
    flip_pairs: tuple[NamePair, ...] = ()  # what a horizontal flip exchanges
    lines: tuple[NamePair, ...] = ()  # what is connected in pictures

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError("names of keypoints are repeated")
        for pair in (*self.flip_pairs, *self.lines):
            if len(pair) != 2 or not set(pair) <= set(self.names):
                raise ValueError(f"{list(pair)} are not two of the keypoints")

    @property
    def line_indices(self) -> list[tuple[int, int]]:
        """Indices of the keypoints that each line connects."""
        return [(self.names.index(start), self.names.index(end)) for start, end in self.lines]

    def to_dict(self) -> dict[str, Any]:
        """Return the skeleton as plain values; `skeleton_from_dict` reads them."""
        return {
            "names": list(self.names),
            "flip_pairs": [list(pair) for pair in self.flip_pairs],
            "lines": [list(pair) for pair in self.lines],
        }


def skeleton_from_dict(values: Mapping[str, Any] | None) -> KeypointSkeleton | None:
    """Build a skeleton from the result of `KeypointSkeleton.to_dict`; None stays None.

    Raises:
        KeyError, TypeError or ValueError: a value is missing or invalid.
    """
    if values is None:
        return None
    pairs = (tuple(tuple(map(str, pair)) for pair in values[key]) for key in ("flip_pairs", "lines"))
    return KeypointSkeleton(tuple(map(str, values["names"])), *pairs)  # type: ignore[arg-type]
