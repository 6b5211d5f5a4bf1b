"""Fields of settings dataclasses, each declared with its default and the type or bounds of its values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from fbnetv3.utils.checks import check_int, check_number, check_type


def integer_field(default: int | None, low: int, high: float = math.inf) -> Any:
    """Declare a setting: an integer in [low, high], or None if that is its default."""
    return field(
        default=default,
        metadata={"check": check_int, "low": low, "high": high, "optional": default is None},
    )


def number_field(default: float | None, low: float, high: float = math.inf, optional: bool = False) -> Any:
    """Declare a setting: a number in [low, high], or None if that is its default or it is optional."""
    optional = optional or default is None
    return field(
        default=default, metadata={"check": check_number, "low": low, "high": high, "optional": optional}
    )


def string_field() -> Any:
    """Declare a setting: a string, or None."""
    return field(default=None, metadata={"type": (str, type(None)), "noun": "a string"})


def names_field(default: str) -> Any:
    """Declare a setting: a name, or a list of names."""
    return field(
        default=default, metadata={"type": (str, list, tuple), "noun": "a name or a list of names"}
    )


def mapping_field() -> Any:
    """Declare a setting: a mapping."""
    return field(default_factory=dict, metadata={"type": Mapping, "noun": "a mapping"})


def sequence_field() -> Any:
    """Declare a setting: a list."""
    return field(default=(), metadata={"type": (list, tuple), "noun": "a list"})


def check_fields(settings: Any, section: str = "") -> None:
    """Check the declared fields of a settings dataclass; `section`, such as "predictor.", precedes their names."""
    for setting in fields(settings):
        value = getattr(settings, setting.name)
        name = f"{section}{setting.name}"
        metadata = setting.metadata
        if "type" in metadata:
            check_type(value, name, metadata["type"], metadata["noun"])
        elif "check" in metadata and not (value is None and metadata["optional"]):
            metadata["check"](value, name, metadata["low"], metadata["high"])
