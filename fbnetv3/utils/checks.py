"""Value checks for architectures, settings and configs. Each function raises `error`, whose message names the field."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fbnetv3.errors import FieldError, suggest


def is_int(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether `value` is an integer in [low, high]; bools do not count."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether `value` is an int or float in [low, high]; bools and NaN do not count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


@contextlib.contextmanager
def error_context(field: str = "", file: str = "") -> Iterator[None]:
    """Add context to any `FieldError` raised within the block: prefix its field with `field`, and set its file."""
    try:
        yield
    except FieldError as error:
        error.field = ".".join(part for part in (field, error.field) if part)
        error.file = error.file or file
        raise


def check_int(
    value: Any, field: str, low: int, high: float = math.inf, error: type[FieldError] = FieldError
) -> None:
    """Require an integer in [low, high]."""
    if not is_int(value):
        raise error(f"{value!r} must be an integer", field)
    check_number(value, field, low, high, error)


def check_number(
    value: Any,
    field: str,
    low: float = -math.inf,
    high: float = math.inf,
    error: type[FieldError] = FieldError,
) -> None:
    """Require an int or float in [low, high]."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise error(f"{value!r} must be a number", field)
    if not low <= value <= high:
        raise error(f"{value!r} must be {_range_text(low, high)}", field)


def check_choice(
    value: Any, field: str, choices: Iterable[Any], error: type[FieldError] = FieldError
) -> None:
    """Require one of `choices`."""
    choices = list(choices)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise error(f"{value!r} must be one of {', '.join(map(str, choices))}", field)


def check_type(
    value: Any,
    field: str,
    expected_type: type | tuple[type, ...],
    noun: str,
    error: type[FieldError] = FieldError,
) -> None:
    """Require an instance of `expected_type`, which the message calls `noun` ("a mapping", "a list")."""
    if not isinstance(value, expected_type):
        raise error(f"{value!r} must be {noun}", field)


def check_keys(
    data: Mapping, error: type[FieldError], allowed: tuple[str, ...], required: tuple[str, ...] = ()
) -> None:
    """Require all `required` keys and none outside `allowed`, with suggestions for an unknown one."""
    for key in data:
        if key not in allowed:
            raise error(f"unknown key: {suggest(str(key), allowed)}", str(key))
    for key in required:
        if key not in data:
            raise error(f"is missing; required keys: {', '.join(required)}", key)


def _range_text(low: float, high: float) -> str:
    low_text, high_text = (
        f"{bound:,g}" if isinstance(bound, float) else f"{bound:,}" for bound in (low, high)
    )
    if high == math.inf:
        return f"at least {low_text}"
    return f"at most {high_text}" if low == -math.inf else f"in [{low_text}, {high_text}]"
