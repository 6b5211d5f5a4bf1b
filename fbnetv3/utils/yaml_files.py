"""YAML files that hold one mapping, read strictly: errors are of one line and name the file and the place."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.errors import FieldError, UsageError, suggest

MAX_BYTES = 10_000_000
"""Of a file; architectures, spaces and configs take a few thousand."""
_BASE = "_BASE_"
_MOST_BASES = 50  # below each other
_MOST_VALUES = 100_000  # of a file, those that stand behind an alias counted each time
_MOST_BITS = 1_000  # of a whole number, so that it is one of floating point too


class NotYAMLError(ValueError):
    """Text that is not YAML, or none that anybody means: an alias of itself, a key that stands twice, endless values.

    Attributes:
        line: where, from 1; None where nobody can say.
    """

    def __init__(self, problem: object, line: int | None = None) -> None:
        super().__init__(" ".join(str(problem).split()))
        self.line = line


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The safe loader, which besides refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.MarkedYAMLError(problem="is marked as a mapping and is none", problem_mark=node.start_mark)
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            # 1, 0x1 and "1" are one key to whoever takes it for a name
            names = {key_node.value, str(self.construct_object(key_node))}
            if names & seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key_node.value}' stands twice", problem_mark=key_node.start_mark
                )
            seen |= names
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if value.bit_length() > _MOST_BITS:
            raise yaml.MarkedYAMLError(problem="a whole number without end", problem_mark=node.start_mark)
        return value


_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_whole_number)


def parse(text: str | bytes) -> Any:
    """What YAML text holds.

    Raises:
        NotYAMLError: it is none.
    """
    try:
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except NotYAMLError:
        raise
    except yaml.MarkedYAMLError as problem:
        raise NotYAMLError(problem.problem, problem.problem_mark and problem.problem_mark.line + 1) from None
    except RecursionError:
        raise NotYAMLError("nested too deeply") from None
    except (yaml.YAMLError, ValueError) as problem:
        raise NotYAMLError(problem) from None
    except (TypeError, KeyError, IndexError, AttributeError, ArithmeticError) as problem:
        # PyYAML's answers to values that are not what their tag says
        raise NotYAMLError(f"a value is not what its tag says ({type(problem).__name__})") from None


def _count(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values stand in a node, those behind an alias each time.

    Raises:
        NotYAMLError: too many to be meant, or the node stands in itself.
    """
    line = node.start_mark.line + 1
    if id(node) in known:
        if (count := known[id(node)]) is None:
            raise NotYAMLError("an alias of what it stands in", line)
        return count
    known[id(node)] = None
    if isinstance(node, yaml.ScalarNode):
        count = 1 + len(node.value) // 100  # long text counts for more
    else:
        inner = (part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,)))
        count = 1
        for part in inner:
            count += _count(part, known)
            if count > _MOST_VALUES:
                raise NotYAMLError(f"more than {_MOST_VALUES} values, those behind aliases counted each time", line)
    known[id(node)] = count
    return count


def read_yaml(path: str | os.PathLike) -> Any:
    """What a YAML file holds.

    Raises:
        NotYAMLError: it is none, or larger than any that is meant.
        OSError: it cannot be read.
    """
    with Path(path).open("rb") as f:
        text = f.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise NotYAMLError(f"more than {MAX_BYTES // 10**6} MB")
    try:
        return parse(text.decode())
    except UnicodeDecodeError as problem:
        raise NotYAMLError(problem) from None


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
        data = read_yaml(path)
    except NotYAMLError as problem:
        raise error(f"not YAML: {problem}", f"line {problem.line}" if problem.line else "", path) from None
    except OSError as problem:
        raise error(f"cannot be read: {problem.strerror or problem}", "", path) from None
    except ValueError as problem:  # a name that no file can have
        raise error(f"cannot be read: {problem}", "", path) from None
    if not isinstance(data, dict):
        raise error(f"is not a mapping with the keys {', '.join(keys)}", "", path)
    return data


def read_with_bases(file: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """What a config file holds, on top of what its `_BASE_` files do, which lie beside it.

    Args:
        file: the file.
        files: keys such as "MODEL.ARCH" whose values are looked for beside the file that has them, base or not.

    Raises:
        UsageError: no such file, or not YAML, or no mapping; the text names the file that the user has named.
    """
    return _with_bases(file, file, (), files)


def _with_bases(file: str, first: str, above: tuple[str, ...], files: Sequence[str]) -> dict[str, Any]:
    """What a file holds, on top of what its `_BASE_` files do; they lie beside it.

    Args:
        file: the file.
        first: the one that the user has named, for messages.
        above: the files that lead here.
        files: as for `read_with_bases`.
    """
    place = os.path.realpath(file)
    if place in above or len(above) > _MOST_BASES:
        raise UsageError(f"{first}: its _BASE_ files form a circle, or are more than {_MOST_BASES} below each other")
    if not os.path.isfile(file):
        missing = f"its _BASE_ {file} is not there" if above else "no such config file"
        raise UsageError(f"{first}: {missing}")
    where = f"{first}: its _BASE_ {file}" if above else file
    try:
        data = read_yaml(file)
    except NotYAMLError as error:
        raise UsageError(f"{where}: not YAML: {error}{f' in line {error.line}' if error.line else ''}") from None
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror or error}") from None
    bases = data.pop(_BASE, None) if isinstance(data, dict) else None
    names = bases if isinstance(bases, list) else [] if bases is None else [bases]
    if not isinstance(data, dict) or not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise UsageError(f"{where}: is not a mapping of config keys, or its _BASE_ is not a file name")
    found: dict[str, Any] = {}
    for name in names:
        base = os.path.join(os.path.dirname(file), os.path.expanduser(name))
        _put(_with_bases(base, first, (*above, place), files), found, where)
    _put(_beside(data, Path(file).parent, files), found, where)
    return found


def _beside(values: Mapping[str, Any], folder: Path, files: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """The values of a config file; files that it names and that lie beside it are found there."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            value = _beside(value, folder, files, f"{prefix}{key}.")
        elif f"{prefix}{key}" in files and isinstance(value, str) and _is_file(folder, value):
            value = str(folder / value)
        found[key] = value
    return found


def _is_file(folder: Path, name: str) -> bool:
    try:
        return bool(name) and (folder / name).is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _put(values: Mapping[str, Any], into: dict[str, Any], where: str) -> None:
    """Values on top of those of a base, section by section."""
    for key, value in values.items():
        if isinstance(value, dict) and key in into:
            if not isinstance(into[key], dict):
                raise UsageError(f"{where}: {key} is a section here and a value in its _BASE_")
            _put(value, into[key], where)
        else:
            into[key] = value


def number_of(value: Any) -> Any:
    """A number that YAML takes for text, such as 1e-5 or 400e6, as one; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


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
