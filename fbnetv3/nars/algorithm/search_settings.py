"""Settings of a search: the keyword arguments of `search`, and the keys of a search's YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fbnetv3.errors import FieldError, UsageError, suggest
from fbnetv3.nars.algorithm.early_stopping import MIN_RANK_CORRELATION
from fbnetv3.nars.algorithm.evolution import EvolutionSettings
from fbnetv3.nars.execution.executors import EXECUTORS
from fbnetv3.nars.predictor.accuracy_predictor import PredictorSettings
from fbnetv3.nars.setting_fields import (
    check_fields,
    integer_field,
    mapping_field,
    names_field,
    number_field,
    sequence_field,
    text_field,
)
from fbnetv3.nars.space.constraints import Column
from fbnetv3.nars.space.search_space import ARCHITECTURE, PARTS, Space, load_space, space_from_dict
from fbnetv3.utils.checks import check_choice, check_keys, check_number, check_type, error_context
from fbnetv3.utils.imports import import_modules
from fbnetv3.utils.nested_keys import parse_pairs
from fbnetv3.utils.yaml_files import NotYAMLError, parse_number, parse_yaml, read_mapping, resolve_in_folder

JOINT = "joint"
SCALING_ARGUMENTS = ("depth", "width", "resolution", "tolerance")
"""Keys of `scaled_networks` that are passed on to `scale_to_macs`."""
# Settings in which numbers may be written as 450e6
_WITH_NUMBERS = {
    *("constraints", "budgets", "early_stopping_correlation", "time_limit"),
    *("reference_networks", "scaled_networks"),
}

Bounds = Mapping[str, Any]
"""Bounds by column: [lowest, highest], either of which may be None, or a number, the highest."""


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search. Defaults are the paper's (Sec. 4.1 and 4.2) where it gives them.

    Attributes:
        mode: "joint", or "architecture" or "recipe" to search only that part of the space.
        constraints: bounds of all candidates by column: `{"macs": [400e6, 800e6]}`.
        columns: additional columns by name: a function from candidates (N, variables) to (N,), or its name,
            `package.module:function`.
        latency: file of a latency table, written by `tools/measure_net.py --space`; adds the column `latency_ms`.
        budgets: additional bounds, each for a separate recommendation; without any there is one recommendation.
        epochs: length of a full evaluation, in epochs (150 in the paper).
        pool: number of candidates to choose from (20,000).
        rounds: rounds of trials (T); None: 5, or 4 if only recipes are searched.
        batch: trials per round (m).
        early_stopping_correlation: after the first round, trials end at the epoch whose rank correlation with the
            last exceeds this; None disables early stopping.
        pretraining_labels: "paper" or "rich", see `fbnetv3.nars.predictor.architecture_statistics`, or a list of
            columns.
        seed: random seed.
        predictor: settings of the accuracy predictor.
        evolution: settings of the evolutionary search.
        evaluator_args: arguments of the evaluator if it is given by name.
        imports: your modules that register evaluators, blocks and so on; workers import them too.
        executor: "local" (processes on this machine), "serial" (the calling process), "ray", or your own.
        workers: evaluations to run at a time.
        address: address of a Ray cluster; None starts one on this machine.
        resources: Ray resources per evaluation, such as `{"num_cpus": 4, "num_gpus": 1}`.
        time_limit: seconds after which an evaluation is killed; None for no limit.
        retries: additional attempts at a failed trial.
        max_failures: the search stops when more than this many trials have failed.
        num_classes: number of classes of the networks whose cost is counted.
        scaled_networks: networks made from recommendations by compound scaling, by name:
            `{"from": "macs_450M", "macs": 357e6}`, and optionally `recipe` (fields to change), `depth`, `width`,
            `resolution` and `tolerance` (see `scale_to_macs`).
        training_config: config keys, such as `_BASE_`, to begin the recommended training configs with; default: those
            of the trials.
        reference_networks: networks to compare with in the report, by name: `{"macs": ..., "accuracy": ...}`.
    """

    mode: str = JOINT
    constraints: Bounds = mapping_field()
    columns: Mapping[str, str | Column] = mapping_field()
    latency: str | None = text_field()
    budgets: Sequence[Bounds] = sequence_field()
    epochs: int = integer_field(150, 1)
    pool: int = integer_field(20_000, 10, 10**7)
    rounds: int | None = integer_field(None, 1)
    batch: int = integer_field(48, 2)
    early_stopping_correlation: float | None = number_field(MIN_RANK_CORRELATION, -1, 1, optional=True)
    pretraining_labels: str | Sequence[str] = names_field("paper")
    seed: int = integer_field(0, 0, 2**32 - 1)
    predictor: PredictorSettings = PredictorSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    evaluator_args: Mapping[str, Any] = mapping_field()
    imports: Sequence[str] = sequence_field()
    executor: str = "local"
    workers: int = integer_field(1, 1)
    address: str | None = text_field()
    resources: Mapping[str, float] = mapping_field()
    time_limit: float | None = number_field(None, 1e-3)
    retries: int = integer_field(1, 0)
    max_failures: int = integer_field(10, 0)
    num_classes: int = integer_field(1000, 1, 10**6)
    scaled_networks: Mapping[str, Mapping[str, Any]] = mapping_field()
    training_config: Mapping[str, Any] = mapping_field()
    reference_networks: Mapping[str, Mapping[str, float]] = mapping_field()

    def __post_init__(self) -> None:
        check_fields(self)
        import_modules(self.imports, "imports")  # they may register the executor
        check_choice(self.executor, "executor", EXECUTORS.names())
        check_choice(self.mode, "mode", (JOINT, *PARTS))
        # Fail before the trials on errors in what is needed only after them
        for name, network in self.reference_networks.items():
            check_type(network, f"reference_networks.{name}", Mapping, "a mapping")
            for key in ("accuracy", *network):
                check_number(network.get(key), f"reference_networks.{name}.{key}")
        for name, network in self.scaled_networks.items():
            with error_context(f"scaled_networks.{name}"):
                check_type(network, "", Mapping, "a mapping")
                check_keys(
                    network, FieldError, ("from", "macs", "recipe", *SCALING_ARGUMENTS), ("from", "macs")
                )
                check_type(network.get("recipe", {}), "recipe", Mapping, "a mapping of recipe fields")
                check_number(network.get("tolerance", 0), "tolerance", 0)
                for key in ("macs", "depth", "width", "resolution"):
                    check_number(network.get(key, 1), key, 1)

    def num_rounds(self, space: Space) -> int:
        """Return the number of rounds of a search in `space`."""
        # In the paper, 5 rounds (Sec. 4.2), and 4 of recipe-only search (Sec. 4.1)
        return self.rounds or (5 if len(space.variable_indices(ARCHITECTURE)) else 4)


_SETTING_NAMES = tuple(each.name for each in fields(SearchSettings))
_KEYS = ("space", "evaluator", "output", *_SETTING_NAMES)  # of a YAML file


def parse_settings(data: Mapping[str, Any]) -> SearchSettings:
    """Build settings from a mapping, such as a YAML file's; `predictor` and `evolution` are mappings in it."""
    check_keys(data, FieldError, _SETTING_NAMES)
    values = dict(data)
    # Numbers that YAML reads as text, then the nested settings
    for name in _WITH_NUMBERS & set(values):
        values[name] = _parse_numbers(values[name])
    for name, settings_class in (("predictor", PredictorSettings), ("evolution", EvolutionSettings)):
        section = values.get(name) or {}
        if not isinstance(section, settings_class):
            check_type(section, name, Mapping, "a mapping")
            with error_context(name):
                check_keys(section, FieldError, tuple(each.name for each in fields(settings_class)))
            section = settings_class(**_parse_numbers(section))
        values[name] = section
    return SearchSettings(**values)


def _parse_numbers(value: Any) -> Any:
    """Parse numbers that YAML reads as text, such as 450e6, anywhere in a value."""
    if isinstance(value, Mapping):
        return {key: _parse_numbers(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_parse_numbers(each) for each in value]
    return parse_number(value)


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
    and the fields of `SearchSettings`. Files are looked for in the YAML file's folder first. `overrides` are KEY VALUE
    pairs such as `rounds 3` or `predictor.members 4`.
    """
    path = Path(path)
    folder = path.resolve().parent
    data = _apply_overrides(read_mapping(path, FieldError, _KEYS), overrides)
    with error_context(file=str(path)):
        check_keys(data, FieldError, _KEYS, required=("space", "evaluator"))
        # Paths are relative to the YAML file
        for key in ("space", "latency"):
            if isinstance(data.get(key), str):
                data[key] = resolve_in_folder(data[key], folder)
        for key in ("evaluator_args", "training_config"):
            data[key] = _resolve_files(data.get(key) or {}, folder)
        space = data.pop("space")
        evaluator = data.pop("evaluator")
        output = data.pop("output", None) or f"output/{path.stem}"
        check_type(space, "space", (str, Mapping), "a file or a space")
        check_type(evaluator, "evaluator", str, "a name")
        check_type(output, "output", str, "a folder")
        settings = parse_settings(data)  # first, because the space may use blocks of the `imports`
        space = load_space(space) if isinstance(space, str) else space_from_dict(space)
        return SearchConfig(space, evaluator, output, settings)


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
        if inner:
            section = updated.get(name) or {}
            check_type(section, name, Mapping, f"a mapping to have the key {inner}")
            value = {**section, inner: value}
        updated[name] = value
    return updated


def _resolve_files(value: Any, folder: Path) -> Any:
    """Replace names of YAML and JSON files that exist in `folder` with their paths, anywhere in a value."""
    if isinstance(value, Mapping):
        return {key: _resolve_files(each, folder) for key, each in value.items()}
    if isinstance(value, str) and value.endswith((".yaml", ".yml", ".json")):
        return resolve_in_folder(value, folder)
    return value
