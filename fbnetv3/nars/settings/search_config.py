"""A search as described by its YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fbnetv3.errors import FieldError, UsageError, suggest
from fbnetv3.nars.settings.search_settings import SETTING_NAMES, SearchSettings, parse_settings
from fbnetv3.nars.space.search_space import Space, load_space, space_from_dict
from fbnetv3.utils.checks import check_keys, check_type, error_context
from fbnetv3.utils.files import expand_path, find_config
from fbnetv3.utils.nested_keys import parse_pairs
from fbnetv3.utils.yaml_files import NotYAMLError, parse_yaml, read_mapping, resolve_in_folder

_KEYS = ("space", "evaluator", "output", *SETTING_NAMES)


@dataclass(frozen=True)
class SearchConfig:
    """Space, evaluator, output folder and settings of a search."""

    space: Space
    evaluator: str | None  # None for candidates that are evaluated elsewhere
    output: str
    settings: SearchSettings


def load_search_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search from YAML.

    Keys are `space` (a file, or its content), `evaluator` (optional), `output` (default: "output/" and the name of the
    YAML file) and the fields of `SearchSettings`. Files are looked for in the YAML file's folder first. `overrides` are
    KEY VALUE pairs such as `rounds 3` or `predictor.members 4`.
    """
    path = expand_path(find_config(path))
    folder = path.resolve().parent
    data = _apply_overrides(read_mapping(path, FieldError, _KEYS), overrides)
    with error_context(file=str(path)):
        check_keys(data, FieldError, _KEYS, required=("space",))
        # Paths are relative to the YAML file
        for key in ("space", "latency"):
            if isinstance(data.get(key), str):
                data[key] = resolve_in_folder(data[key], folder)
        for key in ("evaluator_args", "training_config"):
            data[key] = _resolve_files(data.get(key) or {}, folder)
        if isinstance(data.get("warm_start"), list):
            data["warm_start"] = [
                resolve_in_folder(source, folder) if isinstance(source, str) else source
                for source in data["warm_start"]
            ]
        space = data.pop("space")
        evaluator = data.pop("evaluator", None)
        output = data.pop("output", None) or f"output/{path.stem}"
        check_type(space, "space", (str, Mapping), "a file or a space")
        check_type(evaluator, "evaluator", (str, type(None)), "a name")
        check_type(output, "output", str, "a folder")
        settings = parse_settings(data)  # before the space, which may use blocks that they import
        space = load_space(space) if isinstance(space, str) else space_from_dict(space)
        return SearchConfig(space, evaluator, output, settings)


def _apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply KEY VALUE overrides to the keys of a search; values are parsed as YAML."""
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
        if inner:
            section = updated.get(name) or {}
            check_type(section, name, Mapping, f"a mapping to have the key {inner}")
            value = {**section, inner: value}
        updated[name] = value
    return updated


def _resolve_files(value: Any, folder: Path) -> Any:
    """Replace names of YAML and JSON files that exist in `folder` with their paths, anywhere in a value."""
    if isinstance(value, Mapping):
        return {key: _resolve_files(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_resolve_files(item, folder) for item in value]
    if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):
        return resolve_in_folder(value, folder)
    return value
