"""Stage 3 (Sec. 3.4): an evolutionary search over the predicted scores recommends a candidate for each budget.

A recommendation becomes files: an architecture, a recipe, a training config, and its provenance.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import fbnetv3
from fbnetv3.arch import ArchDef, dump_arch, register_arch, scale_to_macs
from fbnetv3.config.recipe import Recipe, dump_recipe, recipe_from_dict
from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.evolution import EvolutionResult, evolve
from fbnetv3.nars.algorithm.rounds import RoundRunner, rank_trials
from fbnetv3.nars.algorithm.search_settings import SCALING_ARGUMENTS, SearchSettings
from fbnetv3.nars.algorithm.trial_store import Trial
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.files import make_folder, write_json, write_text
from fbnetv3.utils.nested_keys import flatten, merge, nest
from fbnetv3.utils.yaml_files import BASE_KEY

logger = logging.getLogger(__name__)

_SCALING_RESULTS = ("depth", "width", "resolution", "macs")


@dataclass(frozen=True)
class OutputFiles:
    """Files of a recommendation, and the name under which its architecture is registered."""

    name: str
    provenance: Path  # JSON with the candidate's values, prediction and origin
    arch: Path | None = None  # None if the space has no architectures
    recipe: Path | None = None  # None if the space has no recipes
    config: Path | None = None  # training config that names both; None if the space has neither


@dataclass(frozen=True)
class Recommendation:
    """The candidate that a search recommends for a budget."""

    name: str  # name of the budget, such as macs_450M
    candidate: Candidate
    predicted: float  # predicted accuracy
    columns: Mapping[str, float]  # costs, such as "macs"
    best_trial: Trial | None  # best trial within the budget, the result of stage 2 alone (Table 7)
    evolution: EvolutionResult = field(repr=False)  # the evolutionary search that produced it
    files: OutputFiles = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)  # content of its file


class Recommender:
    """Recommends candidates after the rounds of a search, and writes their files."""

    def __init__(self, space: Space, runner: RoundRunner) -> None:
        self.space = space
        self.runner = runner
        self.settings = runner.settings
        self.folder = runner.store.folder / "recommendations"
        self._ranked = rank_trials(runner.trials, runner.stopping_epoch)
        self._ranked_candidates = np.array([trial.candidate for trial in self._ranked])
        self._training_config = _training_config(self.settings, self.folder)

    def recommend(self, name: str, constraints: Constraints) -> Recommendation:
        """Evolve candidates within the budget `name`, and write the files of the best; register its architecture."""
        settings = self.settings
        # Evolve from the best trials, and recommend the best result
        predictor = self.runner.predictor
        evolution = evolve(
            predictor, constraints, self._ranked_candidates, settings.evolution, settings.seed
        )
        vector = evolution.candidates[0]
        candidate = Candidate(self.space, vector, seed=settings.seed, full_epochs=settings.epochs)
        values = constraints.column_values(vector[None], *constraints.column_names)
        columns = {column: float(value[0]) for column, value in values.items()}
        # Trials within the budget, best first; the first of them are in the first generation
        within_budget = np.flatnonzero(constraints.feasible(self._ranked_candidates))
        trials = [self._ranked[index] for index in within_budget]
        provenance = {
            "space": self.space.name,
            "space_sha256": space_digest(self.space),
            "fbnetv3": fbnetv3.__version__,
            "seed": settings.seed,
            "constraints": [str(constraint) for constraint in constraints.constraints],
            "predicted": float(evolution.scores[0]),
            "predicted_after_epoch": self.runner.stopping_epoch,
            "columns": columns,
            "best_trial": self._describe_trial(trials[0]) if trials else None,
            "trials": len(self.runner.trials),
            "inherited_trials": [trial.number for trial in trials[: settings.evolution.inherited]],
        }
        record = {"values": dict(candidate), "candidate": vector.tolist(), **provenance}
        source = _describe_source(provenance)
        return Recommendation(
            name=name,
            candidate=candidate,
            predicted=float(evolution.scores[0]),
            columns=columns,
            best_trial=trials[0] if trials else None,
            evolution=evolution,
            files=self._write(
                f"{self.space.name}_{name}", candidate.arch, candidate.recipe, record, source
            ),
            provenance=provenance,
        )

    def _describe_trial(self, trial: Trial) -> dict[str, Any]:
        return {
            "number": trial.number,
            "accuracy": trial.accuracy(self.runner.stopping_epoch),
            "values": self.space.decode(trial.candidate),
        }

    def scale_networks(self, recommendations: Mapping[str, Recommendation]) -> dict[str, OutputFiles]:
        """Write the networks of `scaled_networks` (Sec. 4.2: A from B, F and G from E) and register them.

        Networks that cannot be scaled are skipped with a warning. The keys of `recommendations` are names of budgets.
        """
        scaled = {}
        for name, network in self.settings.scaled_networks.items():
            try:
                scaled[name] = self._write_scaled_network(name, network, recommendations[network["from"]])
            except UsageError as error:  # one network must not cost the rest of the result
                logger.warning("scaled_networks.%s is skipped: %s", name, error)
        return scaled

    def _write_scaled_network(
        self, name: str, network: Mapping[str, Any], origin: Recommendation
    ) -> OutputFiles:
        candidate = origin.candidate
        if candidate.arch is None:
            raise UsageError("the space has no architectures to scale")
        arguments: dict[str, Any] = {key: network[key] for key in SCALING_ARGUMENTS if key in network}
        num_classes = self.settings.num_classes
        scaled = scale_to_macs(
            candidate.arch, network["macs"], name=name, num_classes=num_classes, **arguments
        )
        source = f"scaled to {scaled.macs / 1e6:.1f} M MACs from a result of {_describe_source(origin.provenance)}"
        # The candidate's recipe with some fields changed
        recipe = candidate.recipe
        if recipe is not None:
            recipe = recipe_from_dict({**asdict(recipe), **network.get("recipe", {})})
        record = {
            "columns": {"macs": scaled.macs},
            "scaled_by": {"multiplier": scaled.phi}
            | {key: getattr(scaled, key) for key in _SCALING_RESULTS},
            "scaled_from": dict(origin.provenance),
        }
        return self._write(name, scaled.arch, recipe, record, source)

    def _write(
        self, name: str, arch: ArchDef | None, recipe: Recipe | None, record: Mapping[str, Any], source: str
    ) -> OutputFiles:
        # The config refers to the other files by relative paths, so the folder can be moved
        files = {"provenance": make_folder(self.folder) / f"{name}.json"}
        config = self._training_config
        write_json(files["provenance"], {"name": name, **record})
        if recipe is not None:
            files["recipe"] = make_folder(self.folder / "recipes") / f"{name}.yaml"
            write_text(files["recipe"], dump_recipe(recipe))
            config = merge(config, {"RECIPE": f"recipes/{name}.yaml"})
        if arch is not None:
            files["arch"] = make_folder(self.folder / "archs") / f"{name}.yaml"
            write_text(files["arch"], dump_arch(replace(arch, name=name, source=source)))
            config = merge(config, {"MODEL": {"ARCH": f"archs/{name}.yaml"}})
            try:
                register_arch(files["arch"])
            except UsageError as error:  # an earlier search of this process has registered the name
                logger.warning("%s; it is not registered", error)
        if config:
            files["config"] = self.folder / f"{name}.yaml"
            config = {"OUTPUT_DIR": f"output/{name}", **config}
            write_text(files["config"], f"# {source}\n{yaml.safe_dump(config, sort_keys=False)}")
        return OutputFiles(name, **files)


def _training_config(settings: SearchSettings, folder: Path) -> dict[str, Any]:
    """Return the keys that all recommended training configs share: by default, those of the trials.

    The paths in `_BASE_`, one or a list, are relative to `folder`.
    """
    keys = dict(settings.training_config)
    if not keys:
        arguments = settings.evaluator_args
        if isinstance(arguments.get("config"), str):
            keys = {BASE_KEY: arguments["config"], "SOLVER.EPOCHS": settings.epochs}
        if isinstance(arguments.get("overrides"), Mapping):
            keys |= arguments["overrides"]
    config = nest(flatten(keys))
    base = config.pop(BASE_KEY, None)
    if not base:
        return config
    paths = [
        os.path.relpath(Path(path).expanduser().resolve(), folder.resolve())
        for path in (base if isinstance(base, list) else [base])
    ]
    return {BASE_KEY: paths if isinstance(base, list) else paths[0], **config}


def _describe_source(provenance: Mapping[str, Any]) -> str:
    return (
        f"NARS in {provenance['space']}, seed {provenance['seed']}, {provenance['trials']} trials: "
        f"predicted {provenance['predicted']:.4g}"
    )


def space_digest(space: Space) -> str:
    """Return a SHA-256 of a space's definition in hex."""
    definition = json.dumps(asdict(space), sort_keys=True, default=str)
    return hashlib.sha256(definition.encode()).hexdigest()
