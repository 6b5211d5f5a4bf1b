"""Definition of a space as plain data, from which `space_from_dict` builds it again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.variables import ContinuousValues, SpaceError, Variable, parse_variable


def space_definition(space: Space) -> dict[str, Any]:
    """Return a space as a mapping with the keys of a space file, which can be written as YAML or JSON."""
    definition: dict[str, Any] = {
        "name": space.name,
        "source": space.source,
        "variables": {variable.name: _define_variable(variable) for variable in space.variables},
    }
    templates = {"architecture": space.architecture, "recipe": space.recipe}
    return definition | {part: template for part, template in templates.items() if template is not None}


def _define_variable(variable: Variable) -> dict[str, Any]:
    entry: dict[str, Any] = {"part": variable.part}
    if isinstance(variable.values, ContinuousValues):
        entry["range"] = [variable.values.low, variable.values.high]
        entry["log"] = variable.log
    elif (bounds := _find_range(variable)) is not None:
        entry["range"] = bounds
        entry["log"] = variable.log
    else:
        entry["choices"] = list(variable.values)
        entry["ordered"] = not variable.is_categorical
    if variable.when:
        entry["when"] = {condition.parent: list(condition.values) for condition in variable.when}
    return entry


def _find_range(variable: Variable) -> list[float] | None:
    """Return the range whose numbers are the variable's values, or None if there is none."""
    values = tuple(variable.values)
    if variable.is_categorical:
        return None
    low, high = values[0], values[-1]
    try:
        step = values[1] - low if len(values) > 1 else 1
        bounds = [low, high] if len(values) == 1 and isinstance(low, float) else [low, high, step]
        parsed = parse_variable(variable.name, {"range": bounds, "log": variable.log})
    except (TypeError, SpaceError):  # choices in an order that is not that of numbers in even steps
        return None
    return bounds if repr(parsed.values) == repr(values) else None


def space_digest(space: Space) -> str:
    """Return a SHA-256 of a space's definition in hex."""
    definition = json.dumps(asdict(space), sort_keys=True, default=str)
    return hashlib.sha256(definition.encode()).hexdigest()
