"""Recommendations: the candidate for each budget, and its files (stage 3, Sec. 3.4).

The files are an architecture, a recipe, a training config, and the provenance.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import fbnetv3
from fbnetv3.arch import ArchDef, dump_arch, register_arch, scale_to_macs
from fbnetv3.config.recipe import Recipe, dump_recipe, recipe_from_dict
from fbnetv3.errors import UsageError
from fbnetv3.nars.evolution.evolution import evolve
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor
from fbnetv3.nars.settings.search_settings import SCALING_ARGUMENTS, SearchSettings
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.space_definition import space_digest
from fbnetv3.nars.trials.history import stack_candidates
from fbnetv3.nars.trials.progress import comparison_epoch, rank_trials
from fbnetv3.nars.trials.trial_store import FINAL, Trial
from fbnetv3.utils.files import expand_path, make_folder, write_json, write_text
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
    """The candidate that a search recommends for a budget.

    Unless no trial is within the budget, it is a trial that ran to the last epoch: the one with the best value, after
    correction for noise. Algorithm 1 recommends the candidate that is predicted to be best, without a trial.
    """

    name: str  # name of the budget, such as macs_450M
    candidate: Candidate
    columns: Mapping[str, float]  # costs, such as "macs"
    epoch: int  # epoch to which all values refer
    measured: float | None  # measured value; None if it was not tried
    predicted: float  # predicted value
    predicted_std: float  # standard deviation of the prediction
    broken: tuple[str, ...]  # bounds that its columns do not meet when they are computed again
    trial: Trial | None  # the trial that tried the candidate
    best_measured: (
        Trial | None
    )  # trial with the best measured value within the budget (stage 2 alone, Table 7)
    best_predicted: Trial | None  # best of the final trials, which were predicted to be best for the budget
    files: OutputFiles
    provenance: Mapping[str, Any]  # content of its file

    def __repr__(self) -> str:
        measured = "" if self.measured is None else f"measured {self.measured:.5g}, "
        predicted = f"predicted {self.predicted:.5g} ± {self.predicted_std:.2g}"
        trial = "" if self.trial is None else f", trial {self.trial.number}"
        return f"Recommendation({self.name}: {measured}{predicted}{trial})"


class Recommender:
    """Recommends candidates after the trials of a search, and writes their files."""

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        folder: Path,
        trials: Sequence[Trial],
        predictor: AccuracyPredictor,
    ) -> None:
        self.space = space
        self.settings = settings
        self.folder = folder / "recommendations"
        self.predictor = predictor
        self.epoch = comparison_epoch(trials, settings.epochs)
        self._num_trials = len(trials)
        self._ranked = rank_trials(trials, self.epoch, settings.sign)
        self._training_config = _training_config(settings, self.folder)

    def recommend(self, name: str, constraints: Constraints) -> Recommendation:
        """Choose the candidate for the budget `name`, and write its files; register its architecture."""
        is_feasible = constraints.feasible(stack_candidates(self._ranked))
        trials = [trial for trial, feasible in zip(self._ranked, is_feasible, strict=True) if feasible]
        trial = None if self.settings.paper or not trials else self._best_trial(trials)
        vector = self._evolve(constraints) if trial is None else trial.candidate
        final_trials = [item for item in trials if item.phase == FINAL and item.budget == name]
        prediction = self.predictor.predict(vector[None])
        candidate = Candidate(self.space, vector, seed=self.settings.seed, full_epochs=self.settings.epochs)
        values = constraints.column_values(vector[None], *constraints.column_names)
        columns = {column: float(value[0]) for column, value in values.items()}
        broken = constraints.find_broken(columns)
        if broken:
            logger.warning(
                "%s: the recommended candidate is outside the budget: %s", name, ", ".join(broken)
            )
        figures: dict[str, Any] = {
            "columns": columns,
            "epoch": self.epoch,
            "measured": None if trial is None else trial.value(self.epoch),
            "predicted": float(prediction.mean[0]),
            "predicted_std": float(prediction.std[0]),
            "broken": broken,
        }
        related: dict[str, Trial | None] = {
            "trial": trial,
            "best_measured": trials[0] if trials else None,
            "best_predicted": final_trials[0] if final_trials else None,
        }
        provenance = {
            "space": self.space.name,
            "space_sha256": space_digest(self.space),
            "fbnetv3": fbnetv3.__version__,
            "seed": self.settings.seed,
            "constraints": [str(constraint) for constraint in constraints.constraints],
            **figures,
            **{key: item and self._describe_trial(item) for key, item in related.items()},
            "trials": self._num_trials,
        }
        record = {"values": dict(candidate), "candidate": vector.tolist(), **provenance}
        files = self._write(
            f"{self.space.name}_{name}",
            candidate.arch,
            candidate.recipe,
            record,
            _describe_source(provenance),
        )
        return Recommendation(
            name=name,
            candidate=candidate,
            **figures,
            trial=trial,
            best_measured=related["best_measured"],
            best_predicted=related["best_predicted"],
            files=files,
            provenance=provenance,
        )

    def _best_trial(self, trials: Sequence[Trial]) -> Trial:
        """Return the trial with the best posterior mean: a measured value with its noise averaged out."""
        means = self.predictor.posterior_means(stack_candidates(trials))
        return trials[int(np.argmax(self.settings.sign * means))]

    def _evolve(self, constraints: Constraints) -> np.ndarray:
        """Return the candidate within the budget that is predicted to be best (Sec. 3.4)."""
        evolution = evolve(
            lambda candidates: self.settings.sign * self.predictor(candidates),
            constraints,
            stack_candidates(self._ranked),
            self.settings.evolution,
            self.settings.seed,
        )
        return evolution.candidates[0]

    def _describe_trial(self, trial: Trial) -> dict[str, Any]:
        return {
            "number": trial.number,
            "value": trial.value(self.epoch),
            "predicted": trial.predicted,
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
        os.path.relpath(expand_path(path).resolve(), folder.resolve())
        for path in (base if isinstance(base, list) else [base])
    ]
    return {BASE_KEY: paths if isinstance(base, list) else paths[0], **config}


def _describe_source(provenance: Mapping[str, Any]) -> str:
    measured = provenance["measured"]
    value = f"predicted {provenance['predicted']:.4g}"
    if measured is not None:
        value = f"measured {measured:.4g} after epoch {provenance['epoch']}, {value}"
    return (
        f"NARS in {provenance['space']}, seed {provenance['seed']}, {provenance['trials']} trials: {value}"
    )
