"""Stage 3 (Sec. 3.4): an evolutionary search over the predicted scores recommends a candidate for each budget."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fbnetv3
from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.evolution import EvolutionResult, evolve
from fbnetv3.nars.algorithm.rounds import rank_trials
from fbnetv3.nars.algorithm.search_output import OutputFiles, OutputFolder
from fbnetv3.nars.algorithm.search_settings import SearchSettings
from fbnetv3.nars.algorithm.trial_store import Trial
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space
from fbnetv3.utils.yaml_files import BASE_KEY

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recommendation:
    """The candidate that a search recommends for a budget.

    Attributes:
        name: name of the budget, such as macs_450M.
        candidate: its network and recipe.
        predicted: its predicted accuracy.
        columns: its cost by column, such as "macs".
        best_trial: the best trial within the budget, the result of stage 2 alone (Table 7); None if there is none.
        evolution: the evolutionary search that produced it.
        files: paths of architecture, recipe, training config and provenance.
        provenance: content of the provenance file.
    """

    name: str
    candidate: Candidate
    predicted: float
    columns: Mapping[str, float]
    best_trial: Trial | None
    evolution: EvolutionResult = field(repr=False)
    files: OutputFiles = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)


class Recommender:
    """Recommends candidates after the trials, and writes their files.

    Args:
        settings: settings of the search.
        space: search space.
        predictor: predictor trained on the trials.
        trials: all trials.
        stopping_epoch: epoch at which their accuracies are compared.
        folder: folder to write the files to.
    """

    def __init__(
        self,
        settings: SearchSettings,
        space: Space,
        predictor: AccuracyPredictor,
        trials: Sequence[Trial],
        stopping_epoch: int,
        folder: Path,
    ) -> None:
        self.settings = settings
        self.space = space
        self.predictor = predictor
        self.stopping_epoch = stopping_epoch
        self._num_trials = len(trials)
        self._ranked = rank_trials(trials, stopping_epoch)
        self._ranked_candidates = np.array([trial.candidate for trial in self._ranked])
        self._output = OutputFolder(folder, _default_training_config(settings))

    def recommend(self, name: str, constraints: Constraints) -> Recommendation:
        """Evolve candidates within a budget, and write the files of the best.

        Args:
            name: name of the budget.
            constraints: bounds of the budget.
        """
        settings = self.settings
        # The best of the candidates that evolved from the best trials
        evolution = evolve(self.predictor, constraints, self._ranked_candidates, settings.evolution, settings.seed)
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
            "predicted_after_epoch": self.stopping_epoch,
            "columns": columns,
            "best_trial": self._describe_trial(trials[0]) if trials else None,
            "trials": self._num_trials,
            "inherited_trials": [trial.number for trial in trials[: settings.evolution.inherited]],
        }
        return Recommendation(
            name=name,
            candidate=candidate,
            predicted=float(evolution.scores[0]),
            columns=columns,
            best_trial=trials[0] if trials else None,
            evolution=evolution,
            files=self._output.write_recommendation(f"{self.space.name}_{name}", candidate, provenance),
            provenance=provenance,
        )

    def scale_networks(self, recommendations: Mapping[str, Recommendation]) -> dict[str, OutputFiles]:
        """Write the networks of `scaled_networks`; those that cannot be scaled are skipped with a warning.

        Args:
            recommendations: recommendations by the name of their budget.
        """
        scaled = {}
        for name, network in self.settings.scaled_networks.items():
            origin = recommendations[network["from"]]
            try:
                scaled[name] = self._output.write_scaled_network(
                    name, origin.candidate, network, origin.provenance, self.settings.num_classes
                )
            except UsageError as error:  # must not lose the rest of the result
                logger.warning("scaled_networks.%s is skipped: %s", name, error)
        return scaled

    def _describe_trial(self, trial: Trial) -> dict[str, Any]:
        return {
            "number": trial.number,
            "accuracy": trial.accuracy(self.stopping_epoch),
            "values": self.space.decode(trial.candidate),
        }


def space_digest(space: Space) -> str:
    """Return a SHA-256 of a space's definition in hex."""
    definition = json.dumps(asdict(space), sort_keys=True, default=str)
    return hashlib.sha256(definition.encode()).hexdigest()


def _default_training_config(settings: SearchSettings) -> dict[str, Any]:
    """Return the keys that recommended training configs begin with; by default, those of the trials."""
    if settings.training_config:
        return dict(settings.training_config)
    config: dict[str, Any] = {}
    # The evaluator's config and overrides, if it trains
    if isinstance(settings.evaluator_args.get("config"), str):
        config = {BASE_KEY: settings.evaluator_args["config"], "SOLVER.EPOCHS": settings.epochs}
    overrides = settings.evaluator_args.get("overrides")
    return {**config, **overrides} if isinstance(overrides, Mapping) else config
