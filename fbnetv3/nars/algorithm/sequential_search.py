"""Sequential search: one proposal at a time, from a Gaussian process that is refitted to all trials before.

This takes the place of stage 2 of Algorithm 1, whose rounds of many trials learn less from each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fbnetv3.nars.algorithm.acquisition import log_expected_improvement, upper_confidence_bound
from fbnetv3.nars.algorithm.candidate_search import CandidateSearch, ScoreFunction
from fbnetv3.nars.algorithm.history import History
from fbnetv3.nars.algorithm.search_model import SearchModel
from fbnetv3.nars.algorithm.trial_store import FINAL, GIVEN, INITIAL, PROPOSED, Proposal
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.sampling import sample_quasi_random

_MIN_COMPLETED = 2  # trials needed to fit the model
# Deviations that the two upper confidence bounds add to the mean. The larger one keeps a search from staying at a peak
# that is not the highest.
_KAPPA = 2.0
_LARGE_KAPPA = 4.0
# Standard deviation of the log length scales under other hypotheses
_HYPOTHESIS_DEVIATION = 0.7


@dataclass(frozen=True)
class SequentialSearch:
    """Proposes trials one after another. Proposals depend only on the history and the seed."""

    constraints: Constraints
    budgets: Mapping[str, Constraints]  # for each of which the last trials look for the best candidate
    epochs: int  # length of a full evaluation
    evaluations: int  # budget of the search, in full evaluations
    num_initial: int  # quasi-random trials at the start
    window: int  # number of trials that may run at a time
    final_share: float  # share of the evaluations that verify what is predicted to be best
    seed: int
    sign: float = 1.0  # -1 if lower values are better
    continues: bool = True  # whether evaluators continue trials from where they stopped
    first_candidates: np.ndarray | None = None  # tried before all others, integers (N, variables)

    def num_required(self, number: int) -> int:
        """Return how many of the first segments must have ended before segment `number` is proposed."""
        return 0 if number < self._num_first else max(0, number - self.window + 1)

    @property
    def _num_first(self) -> int:
        """Number of trials that depend on no results."""
        return self.num_initial + (0 if self.first_candidates is None else len(self.first_candidates))

    def propose(self, history: History) -> list[Proposal]:
        """Return what to run next; nothing if the budget is spent or no candidate is left."""
        left = self.evaluations * self.epochs - history.spent_epochs(self.continues)
        if left < self.epochs:
            return []
        number = history.num_segments
        rng = np.random.default_rng([self.seed, number])
        if number < self._num_first or len(history.completed) < _MIN_COMPLETED:
            return self._propose_initial(history)
        model = SearchModel(self.constraints.space, history, self.sign)
        num_final = max(len(self.budgets), round(self.final_share * self.evaluations))
        if left <= num_final * self.epochs:
            return self._propose_final(history, model, rng)
        found = self._search(history, self.constraints, rng).maximize(
            self._acquisition(number, model, rng), model.rank_trials()
        )
        return self._describe(PROPOSED, model, found)

    def _propose_initial(self, history: History) -> list[Proposal]:
        """Propose a candidate of the user's, or the next of a quasi-random sequence."""
        tried = {trial.candidate.tobytes() for trial in history.trials}
        samples = sample_quasi_random(self.constraints, len(tried) + 1, self.seed)
        given = samples[:0] if self.first_candidates is None else self.first_candidates
        for phase, candidates in ((GIVEN, given), (INITIAL, samples)):
            for candidate in candidates:
                if candidate.tobytes() not in tried:
                    return [Proposal(self.epochs, candidate, phase=phase)]
        return []

    def _propose_final(
        self, history: History, model: SearchModel, rng: np.random.Generator
    ) -> list[Proposal]:
        """Propose the candidate that is predicted to be best for the next of the budgets."""
        num_before = sum(trial.phase == FINAL for trial in history.trials)
        names = list(self.budgets)
        for offset in range(len(names)):
            name = names[(num_before + offset) % len(names)]
            search = self._search(history, self.budgets[name], rng)
            found = search.maximize(lambda candidates: model.predict(candidates).mean, model.rank_trials())
            if found is not None:
                return self._describe(FINAL, model, found, name)
        return []

    def _search(
        self, history: History, constraints: Constraints, rng: np.random.Generator
    ) -> CandidateSearch:
        tried = frozenset(trial.candidate.tobytes() for trial in history.trials)
        return CandidateSearch(constraints, tried, rng)

    def _acquisition(self, number: int, model: SearchModel, rng: np.random.Generator) -> ScoreFunction:
        """Return the acquisition function whose turn it is."""
        turn = (number - self._num_first) % 4
        if turn in (0, 2):
            return lambda candidates: log_expected_improvement(model.predict(candidates), model.best)
        if turn == 1:
            process = model.process.perturbed(_HYPOTHESIS_DEVIATION, rng)
            return lambda candidates: upper_confidence_bound(process.predict(candidates), _KAPPA)
        return lambda candidates: upper_confidence_bound(model.predict(candidates), _LARGE_KAPPA)

    def _describe(
        self,
        phase: str,
        model: SearchModel,
        found: tuple[np.ndarray, float] | None,
        budget: str | None = None,
    ) -> list[Proposal]:
        if found is None:
            return []
        candidate, _ = found
        mean, std = model.predict_value(candidate)
        return [
            Proposal(
                self.epochs,
                candidate,
                phase=phase,
                budget=budget,
                predicted=mean,
                predicted_std=std,
                state=model.parameters,
            )
        ]
