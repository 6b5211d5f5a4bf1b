"""Sequential search: one proposal at a time, from a Gaussian process that is refitted to all trials before.

This takes the place of stage 2 of Algorithm 1, whose rounds of many trials learn less from each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fbnetv3.nars.evolution.evolution import ScoreFunction
from fbnetv3.nars.predictor.accuracy_predictor import MIN_TRIALS
from fbnetv3.nars.proposals.acquisition import log_expected_improvement, upper_confidence_bound
from fbnetv3.nars.proposals.candidate_search import CandidateSearch
from fbnetv3.nars.proposals.search_model import SearchModel
from fbnetv3.nars.proposals.warm_start import WarmStart
from fbnetv3.nars.space.constraints import Constraints
from fbnetv3.nars.space.sampling import sample_quasi_random
from fbnetv3.nars.trials.history import History, stack_candidates
from fbnetv3.nars.trials.trial_store import FINAL, GIVEN, INITIAL, PROPOSED, Proposal, Trial

# Acquisition functions have turns: the expected improvement in some of them, upper confidence bounds in the others
_NUM_TURNS = 4
_IMPROVEMENT_TURNS = (0, 2)
# Deviations that the two upper confidence bounds add to the mean. The larger one keeps a search from staying at a peak
# that is not the highest.
_KAPPA = 2.0
_LARGE_KAPPA = 4.0
# Standard deviation of the log length scales under other hypotheses
_HYPOTHESIS_DEVIATION = 0.7
# Early stopping: shares of a full evaluation after which trials may be paused; trials that ran to the end before it
# starts; share of the search's epochs after which new trials run to the end again, because by then they are so much
# like the best that no forecast tells them apart; share of the trials in between that run to the end, so that forecasts
# stay honest
_STOPS = (0.25, 0.375, 0.5, 0.7)
_MIN_CURVES = 8
_STOPPING_SHARE = 0.5
_UNSTOPPED_SHARE = 0.05
# Number of proposals whose expected gain ends a search
_GAINS = 5
# Where trials cannot be continued: the chance to become the best below which a trial is not run again to the end, and
# the epochs that are expected to be saved for each that is expected to be wasted
_MIN_CHANCE = 0.01
_MIN_RETURN = 1.5


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
    early_stopping: bool = True  # whether trials may be paused
    max_trials: int | None = None  # number of candidates after which the search ends
    min_gain: float | None = None  # expected gain below which the search ends
    warm_start: WarmStart | None = None  # earlier measurements
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
        left = self._epochs_left(history)
        number = history.num_segments
        if number < self._num_first or len(history.completed) < MIN_TRIALS:
            return self._propose_initial(history) if left >= self.epochs else []
        rng = np.random.default_rng([self.seed, number])
        model = SearchModel(self.constraints.space, history, self.sign, self.warm_start)
        num_final = max(len(self.budgets), round(self.final_share * self.evaluations))
        if self._expects_no_gain(model):
            budgets = [name for name in self.budgets if not model.count_finals(name)]
            return self._propose_final(history, model, left, budgets, rng)
        # Budgets with the fewest final proposals first
        budgets = sorted(self.budgets, key=model.count_finals)
        if left < (num_final + 1) * self.epochs:
            return self._propose_final(history, model, left, budgets, rng)
        # Each acquisition function has its turn in each of the budgets
        num_proposed = len(history.trials) - self._num_first
        turn, cycle = num_proposed % _NUM_TURNS, num_proposed // _NUM_TURNS
        constraints = list(self.budgets.values())[cycle % len(self.budgets)]
        best = self._best_within(constraints, model)
        optimum = self._search(history, constraints, rng).maximize(
            self._acquisition(turn, model, best, rng), model.rank_trials()
        )
        if optimum is None:
            return self._propose_final(history, model, left, budgets, rng)
        candidate, _ = optimum
        gain = model.expected_gain(candidate, best)
        if turn in _IMPROVEMENT_TURNS:
            trial = self._find_better_paused(history, model, left, gain / self.epochs)
            if trial is not None:
                return [self._continue(trial, model)]
        model.record_gain(gain, _GAINS)
        epochs = self._first_stop(model) if rng.random() >= _UNSTOPPED_SHARE else self.epochs
        return [self._propose_new(PROPOSED, model, candidate, epochs)]

    def _best_within(self, constraints: Constraints, model: SearchModel) -> float:
        """Return the best posterior mean of completed trials within a budget; the worst of all if there are none."""
        within = constraints.feasible(model.completed_candidates)
        means = model.completed_means
        return float(means[within].max() if within.any() else means.min())

    def _find_better_paused(
        self, history: History, model: SearchModel, left: int, gain: float
    ) -> Trial | None:
        """Return the paused trial that gains most in each epoch that it has left, if that is more than `gain`.

        It is the expected gain over the best within the budget in which the trial gains most.
        """
        paused = [trial for trial in history.paused if self._cost(trial) <= left]
        if not paused:
            return None
        bests = np.full(len(paused), np.inf)
        for constraints in self.budgets.values():
            within = constraints.feasible(stack_candidates(paused))
            bests[within] = np.minimum(bests[within], self._best_within(constraints, model))
        gains = [
            model.forecast_gain(trial, float(best)) / self._cost(trial) if np.isfinite(best) else 0.0
            for trial, best in zip(paused, bests, strict=True)
        ]
        index = int(np.argmax(gains))
        return paused[index] if gains[index] > gain else None

    def _epochs_left(self, history: History) -> int:
        left = self.evaluations * self.epochs - history.spent_epochs(self.continues)
        if self.max_trials is not None:
            left = min(left, (self.max_trials - len(history.trials)) * self.epochs)
        return left

    def _expects_no_gain(self, model: SearchModel) -> bool:
        """Return whether the last proposals were expected to gain less than wanted."""
        gains = model.gains
        return self.min_gain is not None and len(gains) == _GAINS and max(gains) < self.min_gain

    def _propose_initial(self, history: History) -> list[Proposal]:
        """Propose a candidate of the user's, or the next of a quasi-random sequence."""
        tried = {trial.candidate.tobytes() for trial in history.trials}
        samples = sample_quasi_random(self.constraints, len(tried) + 1, self.seed)
        first = samples[:0] if self.first_candidates is None else self.first_candidates
        for phase, candidates in ((GIVEN, first), (INITIAL, samples)):
            for candidate in candidates:
                if candidate.tobytes() not in tried:
                    return [Proposal(self.epochs, candidate, phase=phase)]
        return []

    def _propose_final(
        self,
        history: History,
        model: SearchModel,
        left: int,
        budgets: Sequence[str],
        rng: np.random.Generator,
    ) -> list[Proposal]:
        """Propose to run what is predicted to be best for the first of some budgets that has anything, to the end."""
        for budget in budgets:
            constraints = self.budgets[budget]
            # A new candidate, or one that was paused
            optimum = None
            if left >= self.epochs:
                optimum = self._search(history, constraints, rng).maximize(
                    lambda candidates: model.predict(candidates).mean, model.rank_trials()
                )
            paused = [trial for trial in history.paused if self._cost(trial) <= left]
            paused = [trial for trial in paused if constraints.feasible(trial.candidate[None])[0]]
            if not paused and optimum is None:
                continue
            model.record_final(budget)
            if paused:
                means = model.predict(stack_candidates(paused)).mean
                if optimum is None or means.max() > optimum[1]:
                    return [self._continue(paused[int(np.argmax(means))], model, self.epochs)]
            assert optimum is not None
            return [self._propose_new(FINAL, model, optimum[0], self.epochs, budget)]
        return []

    def _continue(self, trial: Trial, model: SearchModel, epochs: int | None = None) -> Proposal:
        """Propose to continue a paused trial, by default to its next stop."""
        if epochs is None:
            epochs = next((stop for stop in self._stops if stop > len(trial.curve)), self.epochs)
        return Proposal(epochs, trial=trial.number, state=model.state)

    @property
    def _stops(self) -> list[int]:
        """Epochs after which trials may be paused."""
        shares = _STOPS if self.continues else _STOPS[:1]
        stops = {math.ceil(share * self.epochs) for share in shares}
        return sorted(stop for stop in stops if stop < self.epochs) if self.early_stopping else []

    def _first_stop(self, model: SearchModel) -> int:
        """Return the epoch to which a new trial runs first: the last one, unless stopping before is expected to pay."""
        spent = model.history.spent_epochs(self.continues)
        is_late = spent >= _STOPPING_SHARE * self.evaluations * self.epochs
        if not self._stops or len(model.history.completed) < _MIN_CURVES or is_late:
            return self.epochs
        stop = self._stops[0]
        if not self.continues:
            # A trial that is not stopped is run again from the start
            share = model.hopeless_share(stop, _MIN_CHANCE)
            if share * (self.epochs - stop) <= _MIN_RETURN * (1 - share) * stop:
                return self.epochs
        return stop

    def _cost(self, trial: Trial) -> int:
        """Return the epochs that it takes to run a paused trial to the end."""
        return self.epochs - len(trial.curve) if self.continues else self.epochs

    def _search(
        self, history: History, constraints: Constraints, rng: np.random.Generator
    ) -> CandidateSearch:
        tried = frozenset(trial.candidate.tobytes() for trial in history.trials)
        return CandidateSearch(constraints, tried, rng)

    def _acquisition(
        self, turn: int, model: SearchModel, best: float, rng: np.random.Generator
    ) -> ScoreFunction:
        """Return the acquisition function whose turn it is."""
        if turn in _IMPROVEMENT_TURNS:
            return lambda candidates: log_expected_improvement(model.predict(candidates), best)
        if turn == 1:
            predict = model.perturbed(_HYPOTHESIS_DEVIATION, rng)
            return lambda candidates: upper_confidence_bound(predict(candidates), _KAPPA)
        return lambda candidates: upper_confidence_bound(model.predict(candidates), _LARGE_KAPPA)

    def _propose_new(
        self, phase: str, model: SearchModel, candidate: np.ndarray, epochs: int, budget: str | None = None
    ) -> Proposal:
        mean, std = model.predict_value(candidate)
        return Proposal(
            epochs,
            candidate,
            phase=phase,
            budget=budget,
            predicted=mean,
            predicted_std=std,
            state=model.state,
        )
