"""Imports by name: lazy package attributes, users' modules, `package.module:function`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fbnetv3.errors import UsageError, suggest


def lazy_attributes(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """Build a package's module-level `__getattr__`, which imports attributes on first use.

    Args:
        package: the package's `__name__`.
        home: the full name of the module that defines each attribute; an attribute that is itself a subpackage maps
            to its own full name.
    """

    def get_attribute(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module = importlib.import_module(home[name])
        return module if home[name] == f"{package}.{name}" else getattr(module, name)

    return get_attribute


def import_modules(names: Iterable[str]) -> None:
    """Import users' modules, so that what they register can be used by name.

    Modules are also looked up in the current folder.

    Raises:
        UsageError: a module cannot be imported.
    """
    for name in names:
        import_module(name, "IMPORTS")


def import_module(name: str, purpose: str) -> Any:
    """Import one user module; `purpose` begins the error message."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise UsageError(f"{purpose} {name!r}: cannot be imported ({type(error).__name__}: {error})") from None


def find_callable(name: str, purpose: str) -> Any:
    """Return the callable that `package.module:function` names.

    Raises:
        UsageError: it does not exist or is not callable; `purpose` begins the message.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{purpose} {name!r}: is not of the form package.module:function")
    target = import_module(module_name, purpose)
    for part in attribute.split("."):
        if not hasattr(target, part):
            raise UsageError(
                f"{purpose} {name!r}: {module_name} has no {attribute}: {suggest(part, public_names(target))}"
            )
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(f"{purpose} {name!r}: is not callable")
    return target


def public_names(module: Any) -> list[str]:
    """Return the names of a module or class that do not begin with an underscore."""
    return [name for name in dir(module) if not name.startswith("_")]
