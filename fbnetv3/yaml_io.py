"""YAML files that hold one mapping, read strictly: errors are of one line and name the file and the place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.errors import FieldError, suggest


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, which besides refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_mapping(path: str | os.PathLike, error: type[FieldError], keys: Iterable[str]) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Args:
        path: the file.
        error: what to raise.
        keys: keys that the mapping can have, for the message about a file that holds none.

    Raises:
        FieldError: `error`; the file is missing, is not YAML, has a key twice, or holds no mapping.
    """
    path = str(path)
    try:
        with Path(path).open() as f:
            data = yaml.load(f, _StrictLoader)
    except yaml.MarkedYAMLError as problem:
        line = f"line {problem.problem_mark.line + 1}" if problem.problem_mark else ""
        raise error(f"not YAML: {problem.problem}", line, path) from None
    except (yaml.YAMLError, ValueError) as problem:
        raise error(f"not YAML: {' '.join(str(problem).split())}", "", path) from None
    except RecursionError:
        raise error("not YAML: nested too deeply", "", path) from None
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror or problem}", "", path) from None
    if not isinstance(data, dict):
        raise error(f"is not a mapping with the keys {', '.join(keys)}", "", path)
    return data


def check_keys(
    data: Mapping,
    error: type[FieldError],
    known: tuple[str, ...],
    required: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> None:
    """Refuse keys that are unknown or missing.

    Args:
        data: the mapping.
        error: what to raise.
        known: keys that it may have.
        required: keys that it must have.
        also: more keys to suggest.

    Raises:
        FieldError: `error`, naming the key.
    """
    for key in data:
        if key not in known:
            raise error(f"unknown key: {suggest(str(key), (*known, *also))}", str(key))
    for key in required:
        if key not in data:
            raise error("missing", key)
