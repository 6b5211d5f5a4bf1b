"""Nested mappings and dotted keys: {"SOLVER": {"LR": 0.1}} and {"SOLVER.LR": 0.1}; KEY VALUE pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fbnetv3.errors import UsageError


class Difference(NamedTuple):
    """A key with different values in two mappings."""

    key: str
    saved: Any
    current: Any


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn a nested mapping into one with dotted keys. An empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into a nested mapping; the inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *sections, leaf = dotted.split(".")
        # Descend to the section that holds the last key
        section = nested
        for name in sections:
            section = section.setdefault(name, {})
        section[leaf] = value
    return nested


def merge(
    base: Mapping[str, Any], update: Mapping[str, Any], where: str = "", prefix: str = ""
) -> dict[str, Any]:
    """Return `base` with the values of `update` on top, section by section.

    Error messages start with `where` and the dotted key, which begins with `prefix`.
    """
    merged = dict(base)
    for key, value in update.items():
        dotted = f"{prefix}{key}"
        is_section = isinstance(value, Mapping)
        if key in merged and is_section != isinstance(merged[key], Mapping):
            new, old = ("a section", "a single value") if is_section else ("a single value", "a section")
            raise UsageError(f"{where}{dotted} is {new} in this file but {old} in its _BASE_ file")
        merged[key] = (
            merge(merged[key], value, where, f"{dotted}.") if is_section and key in merged else value
        )
    return merged


def parse_pairs(overrides: Sequence[str]) -> dict[str, str]:
    """Split command-line overrides, KEY VALUE KEY VALUE ..., into a mapping of texts."""
    if len(overrides) % 2:
        raise UsageError(f"{overrides[-1]} has no value: pass overrides as KEY VALUE pairs")
    return dict(zip(overrides[::2], overrides[1::2], strict=True))


def first_difference(saved: Mapping[str, Any], current: Mapping[str, Any]) -> Difference | None:
    """Return the first key of `current` whose value differs in `saved`, where a missing key counts as None."""
    for key, value in current.items():
        if saved.get(key) != value:
            return Difference(key, saved.get(key), value)
    return None
