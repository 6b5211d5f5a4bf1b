"""Settings of a search: the keyword arguments of `search`, and keys of a search's YAML file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fbnetv3.errors import FieldError
from fbnetv3.nars.evaluators.evaluator_registry import evaluator_name
from fbnetv3.nars.evolution.evolution import EvolutionSettings
from fbnetv3.nars.execution.executors import EXECUTORS
from fbnetv3.nars.predictor.accuracy_predictor import PredictorSettings
from fbnetv3.nars.proposals.early_stopping import MIN_RANK_CORRELATION
from fbnetv3.nars.setting_fields import (
    check_fields,
    integer_field,
    mapping_field,
    names_field,
    number_field,
    sequence_field,
    string_field,
)
from fbnetv3.nars.space.constraints import Column
from fbnetv3.nars.space.feasibility import FeasibilityFunction
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.variables import ARCHITECTURE, PARTS
from fbnetv3.utils.checks import check_choice, check_keys, check_number, check_type, error_context
from fbnetv3.utils.imports import import_modules
from fbnetv3.utils.yaml_files import parse_number

JOINT = "joint"
DEFAULT_LABELS = "paper"
MAXIMIZE = "maximize"
MINIMIZE = "minimize"
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
    """Settings of a search.

    By default, trials are proposed one after another; `paper=True` runs Algorithm 1 instead, whose settings have the
    paper's defaults (Sec. 4.1 and 4.2).

    Attributes:
        mode: "joint", or "architecture" or "recipe" to search only that part of the space.
        direction: "maximize", or "minimize" if lower values are better.
        objectives: several objectives and the direction of each: `{"accuracy": "maximize", "latency": "minimize"}`.
            Evaluators then return a mapping with these names. The search spreads over the Pareto set; recommendations
            are the best in the first objective.
        constraints: bounds of all candidates by column: `{"macs": [400e6, 800e6]}`.
        feasible: functions of several variables that all candidates must fulfill, or their names,
            `package.module:function`; see `fbnetv3.nars.space.feasibility`.
        columns: additional columns by name: a function from candidates (N, variables) to (N,), or its name,
            `package.module:function`.
        latency: file of a latency table, written by `tools/measure_net.py --space`; adds the column `latency_ms`.
        budgets: additional bounds, one mapping for each recommendation; if empty, there is one recommendation.
        epochs: length of a full evaluation, in epochs (150 in the paper).
        evaluations: number of full evaluations; the epochs of all trials, of which some are stopped early, are at most
            this times `epochs`.
        initial_trials: number of quasi-random trials at the start.
        first_candidates: candidates to try first, each a mapping from variables to values.
        warm_start: earlier measurements that tell where to look: folders of searches, CSV files, data frames or lists
            of mappings, with a column for each variable and "value". They may be of other spaces with some variables in
            common.
        window: number of trials that may run at a time; a proposal is based on the results of all trials before those.
        final_share: share of the evaluations, at the end, that train the candidates predicted to be best for the
            budgets; at least one for each budget.
        early_stopping: whether trials are paused where others are expected to gain more per epoch, and continued when
            that changes.
        max_trials: number of candidates after which the search ends; None for no limit.
        max_seconds: seconds after which the search ends; trials that run at that time are interrupted. None for no
            limit.
        min_gain: the search ends when the expected gain of the best value by any candidate has been less than this for
            several proposals; None to use all evaluations.
        time_limit: seconds after which an evaluation is killed; None for no limit.
        pretraining_labels: "paper" or "rich", see `fbnetv3.nars.predictor.architecture_statistics`, or a list of
            columns.
        pool_size: number of candidates for pretraining, and of those from which Algorithm 1 chooses (20,000).
        paper: whether to run Algorithm 1: rounds of trials that are chosen from a fixed pool, and recommendations that
            are predicted only.
        rounds: with `paper`, number of rounds of trials (T); None for 5, or 4 if only recipes are searched.
        round_size: with `paper`, number of trials per round (m).
        early_stopping_correlation: with `paper`, the rank correlation with the final ranking of the candidates above
            which trials after the first round are stopped; None disables early stopping.
        seed: random seed.
        predictor: settings of the accuracy predictor.
        evolution: settings of the evolutionary search.
        evaluator_args: keyword arguments of the evaluator, see `build_evaluator`.
        imports: modules of yours that register evaluators, blocks and so on; workers import them too.
        executor: "local" (processes on this machine), "serial" (this process), "ray", or another registered name.
        workers: number of evaluations to run at a time.
        address: address of a Ray cluster; None starts one on this machine.
        resources: resources per evaluation, such as `{"num_cpus": 4, "num_gpus": 1}`: those of Ray, or `num_gpus` of
            local workers. If the evaluator trains on GPUs, each evaluation has one by default, or a share of one.
        retries: number of additional attempts at a failed trial; at most one, alone on its GPU, after running out of
            GPU memory.
        max_failures: number of failed trials that a search tolerates; one more stops it.
        num_classes: number of classes of the networks whose cost is counted.
        scaled_networks: networks made from recommendations by compound scaling, by name:
            `{"from": "macs_450M", "macs": 357e6}`, and optionally `recipe` (fields to change), `depth`, `width`,
            `resolution` and `tolerance` (see `scale_to_macs`).
        training_config: keys, such as `_BASE_`, that all recommended training configs share; default: those of the
            trials.
        reference_networks: networks to compare with in the report, by name: `{"macs": ..., "accuracy": ...}`.
    """

    mode: str = JOINT
    direction: str = MAXIMIZE
    objectives: Mapping[str, str] = mapping_field()
    constraints: Bounds = mapping_field()
    feasible: Sequence[str | FeasibilityFunction] = sequence_field()
    columns: Mapping[str, str | Column] = mapping_field()
    latency: str | None = string_field()
    budgets: Sequence[Bounds] = sequence_field()
    epochs: int = integer_field(150, 1)
    evaluations: int = integer_field(100, 1)
    initial_trials: int = integer_field(8, 1)
    first_candidates: Sequence[Mapping[str, Any]] = sequence_field()
    warm_start: Sequence[Any] = sequence_field()
    window: int = integer_field(4, 1)
    final_share: float = number_field(0.08, 0, 1)
    early_stopping: bool = True
    max_trials: int | None = integer_field(None, 2)
    max_seconds: float | None = number_field(None, 1e-3)
    min_gain: float | None = number_field(None, 0)
    time_limit: float | None = number_field(None, 1e-3)
    pretraining_labels: str | Sequence[str] = names_field(DEFAULT_LABELS)
    pool_size: int = integer_field(20_000, 10, 10**7)
    paper: bool = False
    rounds: int | None = integer_field(None, 1)
    round_size: int = integer_field(48, 2)
    early_stopping_correlation: float | None = number_field(MIN_RANK_CORRELATION, -1, 1, optional=True)
    early_stopping_confidence: float | None = number_field(0.95, 0.5, 0.9999, optional=True)
    seed: int = integer_field(0, 0, 2**32 - 1)
    predictor: PredictorSettings = PredictorSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    evaluator_args: Mapping[str, Any] = mapping_field()
    imports: Sequence[str] = sequence_field()
    executor: str = "local"
    workers: int = integer_field(1, 1)
    address: str | None = string_field()
    resources: Mapping[str, float] = mapping_field()
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
        self._check_directions()
        for name in ("paper", "early_stopping"):
            check_type(getattr(self, name), name, bool, "true or false")
        # Check now what is used only after the trials, so that errors surface early
        for name, network in self.reference_networks.items():
            check_type(network, f"reference_networks.{name}", Mapping, "a mapping")
            if "accuracy" not in network:
                raise FieldError(
                    "is missing; each reference network needs one", f"reference_networks.{name}.accuracy"
                )
            for key, value in network.items():
                check_number(value, f"reference_networks.{name}.{key}")
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

    def __repr__(self) -> str:
        default = SearchSettings()
        changed = [
            f"{name}={value!r}" for name, value in vars(self).items() if value != getattr(default, name)
        ]
        return f"SearchSettings({', '.join(changed)})"

    def _check_directions(self) -> None:
        check_choice(self.direction, "direction", (MAXIMIZE, MINIMIZE))
        for name, direction in self.objectives.items():
            check_choice(direction, f"objectives.{name}", (MAXIMIZE, MINIMIZE))
        if len(self.objectives) == 1:
            raise FieldError(
                "must have at least two objectives; for a single one, use direction", "objectives"
            )
        if self.objectives and self.paper:
            raise FieldError(
                "Algorithm 1 has a single objective; remove this setting, or paper", "objectives"
            )
        if self.objectives and self.direction != MAXIMIZE:
            raise FieldError("each objective has its own direction; remove this setting", "direction")

    @property
    def signs(self) -> tuple[float, ...]:
        """Factors that make higher values of each objective better."""
        directions = self.objectives.values() or (self.direction,)
        return tuple(1.0 if direction == MAXIMIZE else -1.0 for direction in directions)

    @property
    def sign(self) -> float:
        """Factor that makes higher values better, of the first objective if there are several."""
        return self.signs[0]

    def num_rounds(self, space: Space) -> int:
        """Return the number of rounds of Algorithm 1 in `space`."""
        # In the paper, 5 rounds (Sec. 4.2), and 4 of recipe-only search (Sec. 4.1)
        return self.rounds or (5 if len(space.variable_indices(ARCHITECTURE)) else 4)


SETTING_NAMES = tuple(setting.name for setting in fields(SearchSettings))


def parse_settings(data: Mapping[str, Any]) -> SearchSettings:
    """Build settings from a mapping, such as a YAML file's; `predictor` and `evolution` are mappings in it."""
    check_keys(data, FieldError, SETTING_NAMES)
    values = dict(data)
    # Numbers that YAML reads as text, then the nested settings
    for name in _WITH_NUMBERS & set(values):
        values[name] = _parse_numbers(values[name])
    for name, settings_class in (("predictor", PredictorSettings), ("evolution", EvolutionSettings)):
        section = values.get(name) or {}
        if not isinstance(section, settings_class):
            check_type(section, name, Mapping, "a mapping")
            with error_context(name):
                names = tuple(setting.name for setting in fields(settings_class))
                check_keys(section, FieldError, names)
            section = settings_class(**_parse_numbers(section))
        values[name] = section
    return SearchSettings(**values)


def settings_as_data(settings: SearchSettings) -> dict[str, Any]:
    """Return settings as JSON data that `parse_settings` reads; functions are written as `package.module:function`."""
    values = dict(vars(settings))
    for name in ("predictor", "evolution"):
        values[name] = asdict(values[name])
    # Only the names of files can be written
    values["warm_start"] = [
        str(item) for item in settings.warm_start if isinstance(item, (str, os.PathLike))
    ]
    return json.loads(json.dumps(values, default=_as_data))


def _as_data(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else evaluator_name(value)


def _parse_numbers(value: Any) -> Any:
    """Parse numbers that YAML reads as text, such as 450e6, anywhere in a value."""
    if isinstance(value, Mapping):
        return {key: _parse_numbers(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_parse_numbers(item) for item in value]
    return parse_number(value)
