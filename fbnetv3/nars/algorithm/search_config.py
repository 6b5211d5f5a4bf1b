"""A search's YAML file: space, evaluator, output folder and settings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.algorithm.search_settings import SearchSettings, SettingsError, parse_settings
from fbnetv3.nars.space.search_space import Space, load_space, space_from_dict
from fbnetv3.utils.checks import check_keys, check_type, error_context
from fbnetv3.utils.imports import import_modules
from fbnetv3.utils.nested_keys import parse_pairs
from fbnetv3.utils.yaml_files import NotYAMLError, parse_yaml, read_mapping, resolve_in_folder

_KEYS = ("space", "evaluator", "output", *(field.name for field in fields(SearchSettings)))
_FILE_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class SearchConfig:
    """A search as described by its YAML file."""

    space: Space
    evaluator: str
    output: str
    settings: SearchSettings


def load_search_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search from YAML.

    Keys are `space` (a file, or its content), `evaluator`, `output` (default: "output/" and the name of the YAML file)
    and the fields of `SearchSettings`. Files are looked for in the YAML file's folder first.

    Args:
        path: the YAML file.
        overrides: KEY VALUE pairs such as `rounds 3` or `predictor.members 4`.

    Raises:
        UserError: the message names the file and the field.
    """
    path = Path(path)
    data = read_mapping(path, SettingsError, _KEYS)
    data = _apply_overrides(data, overrides)
    with error_context(file=str(path)):
        return _parse_config(data, path)


def _parse_config(data: dict[str, Any], path: Path) -> SearchConfig:
    check_keys(data, SettingsError, _KEYS, required=("space", "evaluator"))
    folder = path.resolve().parent
    # Paths are relative to the YAML file
    for key in ("evaluator_args", "training_config"):
        data[key] = _resolve_files(data.get(key) or {}, folder)
    if isinstance(data.get("latency"), str):
        data["latency"] = resolve_in_folder(data["latency"], folder)
    imports = data.get("imports", ())
    check_type(imports, "imports", (list, tuple), "a list", SettingsError)
    import_modules(imports, "imports")  # they may register blocks of the space
    space = _parse_space(data.pop("space"), folder)
    evaluator = data.pop("evaluator")
    output = data.pop("output", None) or f"output/{path.stem}"
    check_type(evaluator, "evaluator", str, "a name", SettingsError)
    check_type(output, "output", str, "a folder", SettingsError)
    return SearchConfig(space, evaluator, output, parse_settings(data))


def _parse_space(space: Any, folder: Path) -> Space:
    if isinstance(space, Mapping):
        return space_from_dict(space)
    check_type(space, "space", str, "a file or a space", SettingsError)
    return load_space(resolve_in_folder(space, folder))


def _apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a search with KEY VALUE pairs on top; values are parsed as YAML."""
    updated = dict(data)
    for key, text in parse_pairs(overrides).items():
        # Everything after the first dot is one key, because keys of a training config have dots themselves
        name, _, inner = key.partition(".")
        if name not in _KEYS:
            raise UsageError(f"unknown key {key}: {suggest(name, _KEYS)}")
        try:
            value = parse_yaml(text)
        except NotYAMLError:
            raise UsageError(f"{key} {text!r} must be a YAML value") from None
        if not inner:
            updated[name] = value
            continue
        section = updated.get(name) or {}
        if not isinstance(section, Mapping):
            raise UsageError(f"{key}: {name} is {section!r}, which has no nested settings")
        updated[name] = {**section, inner: value}
    return updated


def _resolve_files(value: Any, folder: Path) -> Any:
    """Replace names of YAML and JSON files that exist in `folder` with their paths, anywhere in a value."""
    if isinstance(value, Mapping):
        return {key: _resolve_files(each, folder) for key, each in value.items()}
    if isinstance(value, str) and value.endswith(_FILE_SUFFIXES):
        return resolve_in_folder(value, folder)
    return value
