"""The result of a search: its trials, the predictor trained on them, and a recommendation for each budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fbnetv3.nars.algorithm.recommendations import OutputFiles, Recommendation, Recommender
from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PretrainingReport
from fbnetv3.nars.proposals.multi_objective import hypervolume, objective_values, pareto_indices
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.trials.history import stack_candidates
from fbnetv3.nars.trials.progress import comparison_epoch, rank_trials
from fbnetv3.nars.trials.trial_store import FINISHED, OUTPUTS, Trial, TrialStore


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Attributes:
        space: the searched space; in the modes "architecture" and "recipe", only that part.
        settings: settings of the search.
        constraints: constraints of all candidates.
        folder: output folder.
        trials: all trials.
        comparison_epoch: epoch after which trials are compared: the last, or Algorithm 1's stopping epoch.
        pretraining: how well the predictor learned the pretraining labels; None without pretraining.
        predictor: predictor trained on all trials that reached this epoch; it predicts any candidate.
        recommendations: one for each budget.
        scaled_networks: files of the scaled networks, by name.
    """

    space: Space
    settings: SearchSettings
    constraints: Constraints
    folder: Path
    trials: tuple[Trial, ...]
    comparison_epoch: int
    pretraining: PretrainingReport | None
    predictor: AccuracyPredictor
    recommendations: tuple[Recommendation, ...] = ()
    scaled_networks: Mapping[str, OutputFiles] = field(default_factory=dict)

    def __repr__(self) -> str:
        recommended = ", ".join(map(repr, self.recommendations))
        return f"SearchResult({self.space.name}: {len(self.trials)} trials in {self.folder}; {recommended})"

    @property
    def best(self) -> Trial:
        """The trial with the best measured value."""
        return rank_trials(self.trials, self.comparison_epoch, self.settings.sign)[0]

    @property
    def pareto_front(self) -> list[Trial]:
        """The completed trials that no other exceeds in all objectives, best in the first objective first."""
        trials, values = self._completed()
        return [trials[index] for index in pareto_indices(values)]

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """Return the volume of objectives between the Pareto front and a reference point, which it should exceed."""
        signs = self.settings.signs
        point = np.array([reference[name] for name in self.settings.objectives]) * signs
        return hypervolume(self._completed()[1], point)

    def _completed(self) -> tuple[list[Trial], np.ndarray]:
        """Return the completed trials and their objectives, higher is better."""
        trials = [trial for trial in self.trials if len(trial.curve) == self.settings.epochs]
        return trials, objective_values(trials, self.settings.signs)


def conclude_search(plan: SearchPlan, store: TrialStore, trials: Sequence[Trial]) -> SearchResult:
    """Train the final predictor, and recommend a candidate for each budget (Sec. 3.4)."""
    settings = plan.settings
    epoch = comparison_epoch(trials, settings.epochs)
    reached = rank_trials(trials, epoch, settings.sign)
    predictor, pretraining = plan.pretrain_predictor()
    predictor.fit(stack_candidates(reached), np.array([trial.value(epoch) for trial in reached]))
    recommender = Recommender(plan.space, settings, store.folder, trials, predictor)
    recommendations = {
        name: recommender.recommend(name, constraints) for name, constraints in plan.budgets.items()
    }
    scaled_networks = recommender.scale_networks(recommendations)
    outputs = [*(item.files.name for item in recommendations.values()), *scaled_networks]
    store.update_metadata({FINISHED: time.time(), OUTPUTS: outputs})
    return SearchResult(
        space=plan.space,
        settings=settings,
        constraints=plan.constraints,
        folder=store.folder,
        trials=tuple(trials),
        comparison_epoch=epoch,
        pretraining=pretraining,
        predictor=predictor,
        recommendations=tuple(recommendations.values()),
        scaled_networks=scaled_networks,
    )
