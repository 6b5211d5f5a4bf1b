"""What a search is asked to do: the arguments of `search`, from Python or from a YAML file."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from fbnetv3.arch.latency_table import load_latency_table
from fbnetv3.errors import FieldError, UsageError, suggest
from fbnetv3.nars.algorithm.early_stopping import THRESHOLD
from fbnetv3.nars.algorithm.evolution import EvolutionSettings
from fbnetv3.nars.execution.executors import EXECUTORS
from fbnetv3.nars.predictor.accuracy_predictor import PredictorSettings
from fbnetv3.nars.space.constraints import Column, Constraint, Constraints
from fbnetv3.nars.space.cost_model import COLUMNS
from fbnetv3.nars.space.latency_model import LATENCY, LatencyModel, shapes_in
from fbnetv3.nars.space.search_space import ARCHITECTURE, PARTS, RECIPE, Space, load_space, space_from_dict
from fbnetv3.utils.imports import find_callable
from fbnetv3.utils.yaml_files import NotYAMLError, check_keys, number_of, parse, read_mapping

JOINT = "joint"
# Beyond what anybody means, where it is not a million; the seed is numpy's and torch's.
SCALING = ("depth", "width", "resolution", "tolerance")
"""Settings of `scaled` that `scale_to_macs` takes."""
_MOST = {"pool": 10**7, "workers": 10**4, "seed": 2**32 - 1}
MODES = (JOINT, *PARTS)
# Rounds of the paper's searches: of recipes alone (Sec. 4.1), and of architectures too (Sec. 4.2).
_ROUNDS_RECIPE, _ROUNDS_JOINT = 4, 5


class SettingsError(FieldError):
    """Settings of a search that make no sense."""


_LARGEST = 10**300
# Bounds by column: [lowest, highest], either of them null, or a number, which is the highest.
Bounds = Mapping[str, Any]


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search; Sec. 4.1 and 4.2 give the defaults that are the paper's.

    Attributes:
        mode: "joint", or "architecture" or "recipe" to search that part of the space alone.
        constraints: bounds of every candidate that is considered, by column: `{"macs": [400e6, 800e6]}`.
        columns: more columns than the space's own, by name: a function from candidates (N, variables) to (N,), or its
            name as `package.module:function`.
        latency: file of a latency table, made by `tools/measure_net.py --space`, which gives the column `latency_ms`.
        budgets: bounds of each result besides; none means one result inside the constraints alone.
        epochs: of a whole evaluation (150 in the paper).
        pool: candidates to choose from (20,000).
        rounds: of trials (T); None is 5, or 4 where only recipes are searched.
        batch: trials of a round (m).
        stop_above: rank correlation with the last epoch above which evaluations end early after the first round;
            None for none.
        labels: free labels that the predictor is pretrained on: a choice of `fbnetv3.nars.predictor.architecture_statistics`, or columns.
        seed: of all chances.
        predictor, evolution: their own settings.
        evaluator_args: arguments of an evaluator that goes by name.
        executor: "local" (processes of this machine), "serial" (the calling process) or "ray".
        workers: evaluations at a time.
        address: of a Ray cluster; None starts one on this machine.
        resources: what an evaluation needs of it, such as `{"num_cpus": 4, "num_gpus": 1}`.
        time_limit: most seconds of an evaluation; None for no limit.
        retries: more attempts at an evaluation that fails.
        max_failures: failed trials that a search survives.
        num_classes: outputs of the networks whose cost is counted.
        scaled: networks that compound scaling makes of results, by name: `{"from": "macs_450M", "macs": 357e6}`, and
            where wanted `recipe` (fields that change), `depth`, `width`, `resolution` and `tolerance` (see
            `scale_to_macs`).
        training: config keys, `_BASE_` among them, that the emitted training configs begin with.
        known: networks to compare with in the report, by name: `{"macs": ..., "accuracy": ...}`.
    """

    mode: str = JOINT
    constraints: Bounds = field(default_factory=dict)
    columns: Mapping[str, str | Column] = field(default_factory=dict)
    latency: str | None = None
    budgets: Sequence[Bounds] = ()
    epochs: int = 150
    pool: int = 20_000
    rounds: int | None = None
    batch: int = 48
    stop_above: float | None = THRESHOLD
    labels: str | Sequence[str] = "paper"
    seed: int = 0
    predictor: PredictorSettings = PredictorSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    evaluator_args: Mapping[str, Any] = field(default_factory=dict)
    executor: str = "local"
    workers: int = 1
    address: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    time_limit: float | None = None
    retries: int = 1
    max_failures: int = 10
    num_classes: int = 1000
    scaled: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in (("mode", MODES), ("executor", EXECUTORS)):
            if getattr(self, name) not in choices:
                raise SettingsError(f"{getattr(self, name)!r} is not one of {', '.join(choices)}", name)
        for name, least in (
            ("epochs", 1),
            ("pool", 10),
            ("rounds", 1),
            ("batch", 2),
            ("seed", 0),
            ("workers", 1),
            ("retries", 0),
            ("max_failures", 0),
            ("num_classes", 1),
        ):
            value = getattr(self, name)
            if name == "rounds" and value is None:
                continue
            if type(value) is not int or value < least:
                raise SettingsError(f"{value!r} is not a whole number of at least {least}", name)
            if value > _MOST.get(name, 10**6):
                raise SettingsError(f"{value!r} is more than {_MOST.get(name, 10**6):,}", name)
        if self.stop_above is not None and not _is_number(self.stop_above, -1, 1):
            raise SettingsError(f"{self.stop_above!r} is not a correlation", "stop_above")
        if self.time_limit is not None and not _is_number(self.time_limit, 1e-9):
            raise SettingsError(f"{self.time_limit!r} is not a number of seconds", "time_limit")
        if self.latency is not None and not isinstance(self.latency, str):
            raise SettingsError(f"{self.latency!r} is not a file's name", "latency")
        if not isinstance(self.labels, (str, list, tuple)):
            raise SettingsError(f"{self.labels!r} is neither a choice nor a list of columns", "labels")
        for name in ("constraints", "columns", "evaluator_args", "resources", "training", "known", "scaled"):
            if not isinstance(getattr(self, name), Mapping):
                raise SettingsError(f"{getattr(self, name)!r} is not a mapping", name)
        if not isinstance(self.budgets, Sequence) or not all(isinstance(b, Mapping) and b for b in self.budgets):
            raise SettingsError("is not a list of bounds such as [{macs: 4.5e+8}]", "budgets")
        for name, place in self.known.items():
            numbers = isinstance(place, Mapping) and all(_is_number(number_of(value)) for value in place.values())
            if not numbers or "accuracy" not in place:
                raise SettingsError("needs numbers: accuracy, and macs or whatever the budgets are of", f"known.{name}")
        for name, how in self.scaled.items():
            _check_scaled(how, f"scaled.{name}")
        bounds_of(self.constraints, "constraints")
        for i, budget in enumerate(self.budgets):
            bounds_of(budget, f"budgets[{i}]")
        names = [budget_name(budget) for budget in self.budgets]
        if len(set(names)) < len(names):
            raise SettingsError(f"two of them are called {max(names, key=names.count)}", "budgets")
        for name in (*names, *self.scaled):
            check_file_name(name, "scaled" if name in self.scaled else "budgets")

    def rounds_in(self, space: Space) -> int:
        """How many rounds a search of that space has."""
        if self.rounds is not None:
            return self.rounds
        return _ROUNDS_JOINT if len(space.columns_of(ARCHITECTURE)) else _ROUNDS_RECIPE

    def constraints_in(self, space: Space) -> Constraints:
        """The constraints on all candidates of a space.

        Raises:
            UserError: a column that nobody computes, bounds that contradict each other.
        """
        columns = {
            name: find_callable(column, "column") if isinstance(column, str) else column
            for name, column in self.columns.items()
        }
        for name, column in columns.items():
            if not callable(column):
                raise SettingsError(f"{column!r} is neither a function nor its name", f"columns.{name}")
        if self.latency is not None:
            columns[LATENCY] = self._latency_in(space)
        return Constraints(space, self.bounds_in(space, self.constraints, "constraints"), columns, self.num_classes)

    def _latency_in(self, space: Space) -> Column:
        """Latency of candidates of a space, whose table has to have all that they consist of."""
        if space.architecture is None:
            raise SettingsError("what is searched has no networks: leave it out", "latency")
        assert self.latency is not None
        table = load_latency_table(Path(self.latency).expanduser())
        for shape in shapes_in(space, self.num_classes):
            table.of_block(shape)
        return LatencyModel(space, table, self.num_classes)

    def bounds_in(self, space: Space, bounds: Bounds, where: str) -> list[Constraint]:
        """Bounds as constraints on candidates of a space.

        Raises:
            UserError: bounds that make no sense, or on costs of networks where there are none.
        """
        found = bounds_of(bounds, where)
        for bound in found:
            if space.architecture is None and bound.column in COLUMNS and bound.column not in self.columns:
                why = f"recipes cost no {bound.column}" if self.mode == RECIPE else f"{space.name} has no networks"
                raise SettingsError(f"{why}: leave these bounds out, or compute it in columns", bound.column)
        return found


def bounds_of(bounds: Bounds, where: str) -> list[Constraint]:
    """Bounds by column as constraints.

    Raises:
        SettingsError: one that is neither a number nor a pair.
    """
    found = []
    for column, value in bounds.items():
        pair = value if isinstance(value, (list, tuple)) else [None, value]
        numbers = [None if bound is None else number_of(bound) for bound in pair]
        if len(pair) != 2 or numbers == [None, None] or any(n is not None and not _is_number(n) for n in numbers):
            raise SettingsError(f"{value!r} is neither [lowest, highest] nor the highest alone", f"{where}.{column}")
        low, high = numbers
        found.append(Constraint(str(column), -math.inf if low is None else low, math.inf if high is None else high))
    return found


def budget_name(budget: Bounds) -> str:
    """What to call a budget in files: macs_450M, macs_from_400M, macs_400M_to_450M; or best for none."""
    parts = []
    for constraint in bounds_of(budget, "budgets"):
        low, high = (_short(bound) if math.isfinite(bound) else "" for bound in (constraint.low, constraint.high))
        bounds = f"{low}_to_{high}" if low and high else high or f"from_{low}"
        parts.append(f"{constraint.column}_{bounds}")
    return "_".join(parts) or "best"


def check_file_name(name: str, where: str) -> None:
    """Refuse a name that is to be a file's and cannot be one.

    Raises:
        SettingsError: it has other signs than letters, digits, and . _ - inside.
    """
    if not re.fullmatch(r"\w[\w.+-]{,99}", str(name)):
        raise SettingsError(f"{name!r} is to name files: at most 100 letters, digits, _, - and . will do", where)


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{letter}"
    return f"{value:.6g}"


def _check_scaled(how: Any, name: str) -> None:
    """Refuse what `emit_scaled` could not do after all trials."""
    if (
        not isinstance(how, Mapping)
        or not {"from", "macs"} <= set(how)
        or not isinstance(how["from"], str)
        or not _is_number(number_of(how["macs"]), 1)
    ):
        raise SettingsError("needs from, a budget's name, and macs", name)
    for key, value in how.items():
        if key not in ("from", "macs", "recipe", *SCALING):
            raise SettingsError(f"unknown key: {suggest(str(key), ('recipe', *SCALING))}", f"{name}.{key}")
        if key == "recipe" and not isinstance(value, Mapping):
            raise SettingsError(f"{value!r} is not a mapping of a recipe's fields", f"{name}.recipe")
        if key in SCALING and not (_is_number(number_of(value)) and number_of(value) > 0):
            raise SettingsError(f"{value!r} is not a number above 0", f"{name}.{key}")


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    if isinstance(value, int) and abs(value) > _LARGEST:  # no number of floating point
        return False
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def settings_from_dict(data: Mapping[str, Any]) -> SearchSettings:
    """Settings from a plain mapping; `predictor` and `evolution` are mappings in it.

    Raises:
        UserError: names the field at fault.
    """
    check_keys(data, SettingsError, tuple(f.name for f in fields(SearchSettings)))
    values = dict(data)
    for name, kind in (("predictor", PredictorSettings), ("evolution", EvolutionSettings)):
        inner = values.get(name)
        if inner is None or isinstance(inner, kind):
            values.pop(name, None) if inner is None else None
            continue
        if not isinstance(inner, Mapping):
            raise SettingsError("is not a mapping", name)
        try:
            check_keys(inner, SettingsError, tuple(f.name for f in fields(kind)))
            types = {f.name: type(f.default) for f in fields(kind)}
            values[name] = kind(**{key: _as(types[key], key, number_of(value)) for key, value in inner.items()})
        except SettingsError as error:
            raise error.within(name) from None
    known = values.get("known")
    if isinstance(known, Mapping) and all(isinstance(place, Mapping) for place in known.values()):
        values["known"] = {n: {key: number_of(v) for key, v in place.items()} for n, place in known.items()}
    for name in ("stop_above", "time_limit"):
        values[name] = number_of(values.get(name, getattr(SearchSettings, name)))
    return SearchSettings(**values)


def _as(kind: type, key: str, value: Any) -> Any:
    if kind is float and type(value) in (int, float):
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"{value!r} is not of the kind of its default", key)
    return value


@dataclass(frozen=True)
class SearchConfig:
    """A search as a file describes it: space, evaluator, folder of its output, and settings."""

    space: Space
    evaluator: str
    output: str
    settings: SearchSettings


_KEYS = ("space", "evaluator", "output")


def load_search_config(path: str | os.PathLike, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a search from YAML: `space` (a file, or its content), `evaluator`, `output`, and `SearchSettings` by name.

    Files are looked for beside the config first.

    Args:
        path: the file.
        overrides: KEY VALUE pairs on top, such as `rounds 3` or `predictor.members 4`.

    Raises:
        UserError: names file and field.
    """
    known = (*_KEYS, *(f.name for f in fields(SearchSettings)))
    data = read_mapping(path, SettingsError, known)
    try:
        _override(data, overrides, known)
        check_keys(data, SettingsError, known, required=("space", "evaluator"))
        folder = Path(path).resolve().parent
        for key in ("evaluator", "output"):
            if not isinstance(data.get(key, ""), str) or "\0" in data.get(key, ""):
                raise SettingsError(f"{data[key]!r} is not text", key)
        for key in ("evaluator_args", "training"):
            data[key] = _beside({} if data.get(key) is None else data[key], folder)
        if isinstance(latency := data.get("latency"), str) and os.path.isfile(folder / latency):
            data["latency"] = str(folder / latency)
        space = data["space"]
        if not isinstance(space, (str, Mapping)):
            raise SettingsError(f"{space!r} is neither a file nor a space", "space")
        space = space_from_dict(space) if isinstance(space, Mapping) else load_space(_beside(space, folder))
        settings = settings_from_dict({key: value for key, value in data.items() if key not in _KEYS})
    except FieldError as error:
        raise error.in_file(str(path)) from None
    output = data.get("output") or f"output/{Path(path).stem}"
    return SearchConfig(space, data["evaluator"], output, settings)


def _override(data: dict[str, Any], overrides: Sequence[str], known: Sequence[str]) -> None:
    if len(overrides) % 2:
        raise UsageError(f"{overrides[-1]}: has no value; overrides come as KEY VALUE pairs")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        first, *inner = key.split(".")
        if first not in known:
            raise UsageError(f"unknown key {key}: {suggest(first, known)}")
        try:
            value = parse(text)
        except NotYAMLError:
            raise UsageError(f"{key} {text!r}: is no value in YAML") from None
        if not inner:
            data[first] = value
            continue
        if not isinstance(data.get(first) or {}, Mapping):
            raise UsageError(f"{key}: {first} is {data[first]!r}, which has no settings inside")
        place = data[first] = dict(data.get(first) or {})
        # keys of a training config have dots themselves
        rest = ".".join(inner)
        place[rest] = value


def _beside(value: Any, folder: Path) -> Any:
    """Names of files that lie beside a config as paths."""
    if isinstance(value, Mapping):
        return {key: _beside(inner, folder) for key, inner in value.items()}
    if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")) and os.path.isfile(folder / value):
        return str(folder / value)
    return value
