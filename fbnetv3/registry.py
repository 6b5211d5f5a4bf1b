"""fvcore's Registry, with explicit names, the origin of every entry, and suggestions for unknown names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fvcore.common.registry import Registry as _FvcoreRegistry

from fbnetv3.errors import UnknownNameError, UsageError, suggest
from fbnetv3.utils.imports import find_callable


class Registry(_FvcoreRegistry):
    """Maps names to objects; a user's own package adds entries without touching ours.

    Args:
        kind: what an entry is, as the error messages should call it ("block", "dataset").
        shipped: gives name, object and origin of the first entries; called when the registry is first used.
    """

    def __init__(self, kind: str, shipped: Callable[[], Iterable[tuple[str, Any, str]]] | None = None) -> None:
        super().__init__(kind)
        self._origins: dict[str, str] = {}
        self._shipped = shipped

    def _fill(self) -> None:
        """Add what is shipped, once, before anything else looks at or adds to the registry."""
        if self._shipped is not None:
            entries = list(self._shipped())
            self._shipped = None
            for name, obj, origin in entries:
                self.add(name, obj, origin)

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Register `obj` under `name` (default: its `__name__`). Without `obj`, a decorator.

        Raises:
            UsageError: the name is taken; the text says where the first entry came from.
        """
        origin = caller()
        if obj is not None:
            self.add(name or obj.__name__, obj, origin)
            return obj

        def decorator(decorated: Callable) -> Callable:
            self.add(name or decorated.__name__, decorated, origin)
            return decorated

        return decorator

    def add(self, name: str, obj: Any, origin: str) -> None:
        """Register `obj` under `name`, saying where it comes from (a file, or file:line)."""
        self._fill()
        if name in self._obj_map:
            raise UsageError(
                f"{self._name} '{name}' from {origin} is registered already, from {self._origins[name]}: "
                "choose another name"
            )
        self._do_register(name, obj)
        self._origins[name] = origin

    def get(self, name: str) -> Any:
        """The entry of that name.

        Raises:
            UnknownNameError: no such entry; the text suggests close names.
        """
        if name not in self:
            raise UnknownNameError(f"unknown {self._name} '{name}': {suggest(str(name), self._obj_map)}")
        return self._obj_map[name]

    def resolve(self, name: str) -> Any:
        """Return the entry of that name; a lazy entry, "package.module:attribute", is imported.

        Raises:
            UnknownNameError: no such entry; the message suggests similar names.
            UsageError: a lazy entry cannot be imported.
        """
        entry = self.get(name)
        return find_callable(entry, self._name) if isinstance(entry, str) else entry

    def __contains__(self, name: str) -> bool:
        self._fill()
        return super().__contains__(name)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        self._fill()
        return super().__iter__()

    def origin(self, name: str) -> str:
        """Where the entry of that name was registered."""
        self.get(name)
        return self._origins[name]

    def remove(self, name: str) -> None:
        """Take an entry out again."""
        self.get(name)
        del self._obj_map[name], self._origins[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self._fill()
        return sorted(self._obj_map)


def caller(depth: int = 2) -> str:
    """File and line of the code that called the function that asks."""
    frame = sys._getframe(depth)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
