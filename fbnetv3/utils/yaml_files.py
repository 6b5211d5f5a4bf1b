"""YAML files that hold one mapping and inherit through `_BASE_`. Errors name the file and the line or key."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.errors import FieldError
from fbnetv3.utils.checks import check_type, error_context
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.nested_keys import flatten, merge, nest
from fbnetv3.utils.text import one_line

BASE_KEY = "_BASE_"


class NotYAMLError(ValueError):
    """Text that is not valid YAML, or has a duplicate key. `line` counts from 1; None if it is not known."""

    def __init__(self, problem: object, line: int | None = None) -> None:
        super().__init__(one_line(problem))
        self.line = line


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, which also refuses duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in keys:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key '{key_node.value}'", problem_mark=key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML text; raise `NotYAMLError` if it is invalid or has a duplicate key."""
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        mark = getattr(error, "problem_mark", None)
        raise NotYAMLError(getattr(error, "problem", error), mark and mark.line + 1) from None


def read_mapping(
    path: str | os.PathLike, error: type[FieldError], keys: Iterable[str] = ()
) -> dict[str, Any]:
    """Read the mapping that a YAML file holds, or raise `error`.

    `keys` that the mapping may have are named in the message about a file that holds something else.
    """
    file = os.fspath(path)
    try:
        data = parse_yaml(expand_path(file).read_bytes())
    except NotYAMLError as problem:
        raise error(f"not YAML: {problem}", f"line {problem.line}" if problem.line else "", file) from None
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror or problem}", "", file) from None
    if not isinstance(data, dict):
        with_keys = f" with the keys {', '.join(keys)}" if keys else ""
        raise error(f"must be a mapping{with_keys}", "", file)
    return data


def read_with_bases(
    file: str | os.PathLike, path_keys: Sequence[str] = (), inherited_by: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read a config file on top of the files that it names as `_BASE_`.

    The values of `path_keys` such as "MODEL.ARCH" are resolved relative to the file that sets them.
    `inherited_by` lists the files that inherit from this one, to detect cycles.
    """
    file = str(expand_path(file))
    data = read_mapping(file, FieldError)
    merged: dict[str, Any] = {}
    # Later bases override earlier ones, and the file overrides all of them
    for base in pop_bases(data, file, FieldError, inherited_by):
        merged = merge(merged, read_with_bases(base, path_keys, (*inherited_by, file)), f"{file}: ")
    for key in path_keys:
        value = flatten(data).get(key)
        if isinstance(value, str):
            data = merge(data, nest({key: resolve_in_folder(value, Path(file).parent)}))
    return merge(merged, data, f"{file}: ")


def pop_bases(
    data: dict[str, Any], file: str, error: type[FieldError], inherited_by: tuple[str, ...] = ()
) -> list[str]:
    """Remove `_BASE_` from what a file holds, and return the paths that it names, relative to the file's folder.

    Raise `error` if one does not exist, or leads back to the file or to `inherited_by`, the files that inherit from it.
    """
    value = data.pop(BASE_KEY, [])
    bases = []
    for name in value if isinstance(value, list) else [value]:
        with error_context(file=file):
            check_type(name, BASE_KEY, str, "a path or a list of paths", error)
        base = os.path.join(os.path.dirname(file), expand_path(name))
        if not os.path.isfile(base):
            raise error(f"{base} does not exist", BASE_KEY, file)
        if any(os.path.samefile(base, path) for path in (*inherited_by, file)):
            raise error(f"circular inheritance: {' -> '.join((*inherited_by, file, base))}", BASE_KEY, file)
        bases.append(base)
    return bases


def resolve_in_folder(value: str, folder: str | os.PathLike) -> str:
    """Return the path of the file `value` in `folder` if it exists there, else `value` unchanged."""
    path = Path(folder, value)
    # os.path.isfile is False for text that cannot be a file name; Path.is_file would raise
    return str(path) if os.path.isfile(path) else value


def parse_number(value: Any) -> Any:
    """Convert text that YAML does not parse as a number, such as 1e-5 or 400e6; return anything else unchanged."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
