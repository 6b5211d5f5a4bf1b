"""Text for messages: durations, lists of names, one-line errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def format_duration(seconds: float) -> str:
    """Format seconds as hours, minutes and seconds: 1:02:03, or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def one_line(message: object, limit: int = 300) -> str:
    """Collapse a message, such as a third-party error, to one line; a long one is shortened in the middle."""
    line = " ".join(str(message).split())
    if len(line) <= limit:
        return line
    return f"{line[: limit // 2]} ... {line[-limit // 4 :]}"


def shorten(name: object, limit: int = 40) -> str:
    """Return a name of at most `limit` characters for tables and figures; unprintable characters become "?"."""
    text = "".join(character if character.isprintable() else "?" for character in str(name))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def describe_error(error: BaseException, limit: int = 200) -> str:
    """Format an exception as "ValueError: its message" on one line."""
    return f"{type(error).__name__}: {one_line(error, limit)}"


def first_few(names: Sequence[object], count: int = 3, separator: str = ", ") -> str:
    """Join names, shortened to "a, b, c and 4 more"."""
    shown = separator.join(map(str, names[:count]))
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Pick at most `count` items, evenly spaced and in order."""
    if count >= len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
