"""fvcore's Registry with explicit names, lazy entries, the origin of each entry, and suggestions for unknown names."""

from __future__ import annotations

import sys
from typing import Any

from fvcore.common.registry import Registry as _FvcoreRegistry

from fbnetv3.errors import FieldError, UnknownNameError, UsageError, suggest
from fbnetv3.utils.imports import find_callable


class Registry(_FvcoreRegistry):
    """Maps names to objects. Users' packages can register their own.

    An entry is an object, or the text "package.module:attribute" of one that `get` imports on demand. `kind` is the
    noun for an entry in error messages, such as "block" or "dataset".
    """

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self._origins: dict[str, str] = {}

    def register(self, obj: Any = None, *, name: str | None = None) -> Any:
        """Register `obj` under `name` (default: its `__name__`, which a lazy entry lacks).

        Without `obj`, act as a decorator.
        """
        origin = caller_location()
        if isinstance(obj, str) and name is None:
            raise UsageError(f"{self._name} {obj!r} from {origin} has no name: register it with name=...")

        def add(entry: Any) -> Any:
            self.add(name or entry.__name__, entry, origin)
            return entry

        return add if obj is None else add(obj)

    def add(self, name: str, obj: Any, origin: str) -> None:
        """Register `obj` under `name`; `origin` says where it comes from (a file, or file:line)."""
        if name in self:
            raise UsageError(
                f"{self._name} '{name}' from {origin} is already registered by {self._origins[name]}"
            )
        self._do_register(name, obj)
        self._origins[name] = origin

    def entry(self, name: object) -> Any:
        """Return the entry registered under `name`, without importing a lazy one."""
        if not isinstance(name, str) or name not in self:
            raise UnknownNameError(f"unknown {self._name} {name!r}: {suggest(str(name), self.names())}")
        return self._obj_map[name]

    def get(self, name: object) -> Any:
        """Return the entry registered under `name`, importing it if it is lazy."""
        entry = self.entry(name)
        return find_callable(entry, self._name, current_folder=False) if isinstance(entry, str) else entry

    def check(self, name: object, field: str, error: type[FieldError]) -> None:
        """Raise `error`, naming `field`, unless `name` is registered."""
        try:
            self.entry(name)
        except UnknownNameError as unknown:
            raise error(str(unknown), field) from None

    def origin(self, name: str) -> str:
        """Return where the entry was registered, as a file or file:line."""
        return self._origins[name]

    def remove(self, name: str) -> None:
        """Remove an entry."""
        del self._obj_map[name]
        del self._origins[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._obj_map)


def caller_location() -> str:
    """Return the file and line of the code that called the calling function."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
