"""Ids of images and categories: their order, and finding the entry that an annotation refers to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Id = int | float | str


class IdIndex:
    """Positions of entries by their ids.

    A reference is an equal id (1 and 1.0 are equal), or else the same in text: "1" refers to 1 if no entry has the
    id "1". This is how files refer whose writer turned some of the ids into text.
    """

    def __init__(self, ids: Sequence[Id]) -> None:
        self._positions = {entry_id: position for position, entry_id in enumerate(ids)}
        self._positions_by_text: dict[str, int] = {}
        for entry_id, position in self._positions.items():
            self._positions_by_text.setdefault(_text(entry_id), position)

    def find(self, reference: Any) -> tuple[int | None, bool]:
        """Return the position of the entry, None if there is none, and whether its id is equal, not only in text."""
        if not is_id(reference):
            return None, True
        position = self._positions.get(reference)
        if position is not None:
            return position, True
        position = self._positions_by_text.get(_text(reference))
        return position, position is None


def is_id(value: object) -> bool:
    """Return whether a value can be the id of an image or a category: a string or a finite number."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def sort_by_id(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Sort entries by id, as detectron2 does; numbers come before text."""
    return sorted(entries, key=lambda entry: (isinstance(entry["id"], str), entry["id"]))


def repeated_ids(entries: Sequence[Mapping[str, Any]]) -> list[Id]:
    """Return the ids that more than one entry has."""
    return [entry_id for entry_id, count in Counter(entry["id"] for entry in entries).items() if count > 1]


def _text(entry_id: Id) -> str:
    """Return an id as text; a float with an integer value as an integer."""
    return str(int(entry_id)) if isinstance(entry_id, float) and entry_id.is_integer() else str(entry_id)
