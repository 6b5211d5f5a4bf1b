"""Imports by name: lazy package attributes, users' modules, `package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fbnetv3.errors import UsageError, UserError, suggest
from fbnetv3.utils.text import describe_error

# Modules of the user that this process has imported
_user_modules: list[str] = []


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Build a package's module-level `__getattr__`, which imports attributes on first use.

    `modules` has the full name of the module that defines each attribute; for a subpackage, its own full name.
    """

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        module = importlib.import_module(modules[name])
        return module if modules[name] == f"{package}.{name}" else getattr(module, name)

    return get_attribute


def import_modules(names: Iterable[str], source: str = "IMPORTS") -> None:
    """Import users' modules, also from the current folder, so that what they register can be used by name.

    `source` is the config key or option that lists them; it begins error messages.
    """
    for name in names:
        import_user_module(name, source)
        if name not in _user_modules:
            _user_modules.append(name)


def user_modules() -> list[str]:
    """Return what `import_modules` has imported in this process, so that worker processes can import it too."""
    return list(_user_modules)


def import_user_module(name: str, source: str, current_folder: bool = True) -> Any:
    """Import one module; with `current_folder`, also from there: it is added to `sys.path`.

    `source` begins the error message, which ends with the line that failed.
    """
    if current_folder and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # a user's module may raise anything
        # Only the frames of the user's code
        lines = [
            f"{frame.filename}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)[1:]
            if "importlib" not in frame.filename
        ]
        where = f" at {lines[-1]}" if lines else ""
        raise UsageError(
            f"{source} {name!r} cannot be imported ({describe_error(error)}{where})"
        ) from error


def find_callable(name: str, source: str, current_folder: bool = True) -> Any:
    """Return the callable that `package.module:function` names. See `import_user_module` for the other arguments."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{source} {name!r} must have the form package.module:function")
    # Follow the attributes from the module to the callable
    target = import_user_module(module_name, source, current_folder)
    for part in attribute.split("."):
        if not hasattr(target, part):
            public_names = [public for public in dir(target) if not public.startswith("_")]
            raise UsageError(
                f"{source} {name!r}: {module_name} has no {attribute}: {suggest(part, public_names)}"
            )
        target = getattr(target, part)
    if not callable(target):
        raise UsageError(f"{source} {name!r} is not callable: name a function or class")
    return target


def accepted_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a function's signature accepts; a user's function may leave out some."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(settings)
    names = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    return {name: value for name, value in settings.items() if name in names}
