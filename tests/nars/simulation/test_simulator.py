"""The simulator agrees with closed forms and with the trials of the search itself."""

from itertools import pairwise

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.trial_runner import TrialRunner
from fbnetv3.nars.execution.attempts import Outcome
from fbnetv3.nars.predictor.gaussian_process import ValuePrediction
from fbnetv3.nars.proposals.paper_search import PaperSearch
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.simulation.simulator import Cluster, Workload, simulate
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.variables import Variable
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, TrialStore
from tests.nars.simulation.workloads import UNRELIABLE, random_workload


def test_equal_trials_run_in_waves():
    """Seven trials on three slots take three waves; each round waits for the previous one and for the predictor."""
    workload = Workload(((10.0,) * 7,) * 2, full_epochs=4, stopping_epoch=3)
    result = simulate(workload, Cluster(3, startup=2.0), predictor_seconds=5.0)
    assert result.wall_seconds == 3 * (2 + 40) + 5 + 3 * (2 + 30)
    assert result.gpu_seconds == 7 * (2 + 40) + 7 * (2 + 30)
    assert result.utilization == pytest.approx(result.gpu_seconds / (3 * result.wall_seconds))
    second_round = [attempt for attempt in result.attempts if workload.trial_rounds[attempt.trial] == 1]
    assert min(attempt.start for attempt in second_round) == 3 * (2 + 40) + 5


def test_with_a_slot_per_trial_a_round_takes_as_long_as_its_longest_trial():
    workload = random_workload()
    expected = 10 * max(workload.rounds[0]) + 6 * max(workload.rounds[1]) + 6 * max(workload.rounds[2])
    assert simulate(workload, Cluster(12)).wall_seconds == pytest.approx(expected)
    assert simulate(workload, Cluster(100)).wall_seconds == pytest.approx(expected)


def test_a_single_slot_takes_the_sum_of_all_trials():
    workload = random_workload()
    for asynchronous in (False, True):
        result = simulate(workload, Cluster(1), asynchronous=asynchronous)
        assert result.wall_seconds == pytest.approx(workload.gpu_seconds)
        assert result.utilization == pytest.approx(1)


def test_several_gpus_per_trial_are_faster_and_cost_more():
    workload = random_workload()
    one = simulate(workload, Cluster(1))
    eight = simulate(workload, Cluster(8, 8, scaling=0.9))
    assert eight.wall_seconds == pytest.approx(one.wall_seconds / (8 * 0.9**3))
    assert eight.gpu_seconds == pytest.approx(one.gpu_seconds / 0.9**3)


def test_asynchronous_trials_fill_the_gaps():
    """With two slots and trials of 4 s and 1 s, no slot waits, and trials are proposed only when a slot is free."""
    workload = Workload(((4.0, 1.0), (1.0, 1.0)), full_epochs=1, stopping_epoch=1)
    assert simulate(workload, Cluster(2)).wall_seconds == 5.0
    result = simulate(workload, Cluster(2), asynchronous=True)
    assert result.wall_seconds == 4.0
    assert result.results_at_proposal == (0, 0, 1, 2)
    limited = simulate(workload, Cluster(2), asynchronous=True, max_in_flight=1)
    assert limited.results_at_proposal == (0, 0, 2, 3)


def test_asynchronous_trials_learn_the_stopping_epoch_when_the_first_round_has_ended():
    """At that time the third trial is in its fifth epoch and ends with it; the fourth ends after the second."""
    workload = Workload(((1.0, 2.0), (2.3, 1.0)), full_epochs=10, stopping_epoch=2)
    result = simulate(workload, Cluster(2), asynchronous=True)
    assert [(a.trial, round(a.end, 6), a.epochs) for a in result.attempts] == [
        (0, 10.0, 10),
        (1, 20.0, 10),
        (2, 21.5, 5),
        (3, 22.0, 2),
    ]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_every_trial_ends_once_and_slots_are_never_exceeded(seed, asynchronous):
    workload = random_workload(seed=seed)
    cluster = Cluster(10, 2, **UNRELIABLE, repair=30.0)
    result = simulate(
        workload, cluster, asynchronous=asynchronous, retries=3, predictor_seconds=2.0, seed=seed
    )
    assert result.failures > 0
    assert len([a for a in result.attempts if not a.failed]) + result.lost_trials == 36
    starts = [a.start for a in result.attempts]
    assert max(sum(a.start <= start < a.end for a in result.attempts) for start in starts) <= cluster.slots
    reliable = simulate(workload, Cluster(10, 2), asynchronous=asynchronous, seed=seed)
    assert reliable.gpu_seconds >= workload.gpu_seconds * (1 - 1e-9)
    assert 0 < result.utilization <= 1


@pytest.mark.parametrize("seed", range(5))
def test_more_gpus_are_never_slower(seed):
    workload = random_workload(round_size=20, seed=seed)
    for asynchronous in (False, True):
        times = [
            simulate(workload, Cluster(n), asynchronous=asynchronous).wall_seconds for n in range(1, 30)
        ]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(times))


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 8, 12, 40])
@pytest.mark.parametrize("seed", range(5))
def test_asynchronous_search_is_never_slower(gpus, seed):
    workload = random_workload(seed=seed)
    cluster = Cluster(gpus, startup=1.0)
    in_rounds, asynchronous = (
        simulate(workload, cluster, asynchronous=mode).wall_seconds for mode in (False, True)
    )
    assert asynchronous <= in_rounds + 1e-9


def test_results_behind_each_proposal():
    """In rounds, the results of all previous rounds; asynchronously, of all trials except those in flight."""
    workload = random_workload(round_size=12)
    assert simulate(workload, Cluster(12)).results_at_proposal == (0,) * 12 + (12,) * 12 + (24,) * 12
    asynchronous = simulate(workload, Cluster(12), asynchronous=True)
    assert asynchronous.results_at_proposal[12:] == tuple(range(1, 25))


def test_checkpoints_save_work():
    workload = random_workload()
    with_checkpoints, without = (
        simulate(workload, Cluster(4, failure_rate=30.0, checkpoints=checkpoints), retries=9, seed=1)
        for checkpoints in (True, False)
    )
    assert with_checkpoints.gpu_seconds < without.gpu_seconds


def test_the_seed_determines_the_simulation():
    workload = random_workload()
    first, second = (simulate(workload, Cluster(4, **UNRELIABLE), seed=7).attempts for _ in range(2))
    assert first == second
    assert simulate(workload, Cluster(4, **UNRELIABLE), seed=8).attempts != first


def test_stragglers_do_not_change_the_expected_work():
    """Within three standard errors over 200 seeds."""
    workload = random_workload()
    work = np.array(
        [simulate(workload, Cluster(4, stragglers=0.5), seed=seed).gpu_seconds for seed in range(200)]
    )
    assert abs(work.mean() - workload.gpu_seconds) < 3 * work.std() / 200**0.5


def test_failures_occur_at_the_given_rate():
    """The number of failures is GPU hours times rate, within four standard errors."""
    workload = random_workload(round_size=200)
    result = simulate(workload, Cluster(8, 2, failure_rate=5.0), retries=1000)
    expected = 5.0 * result.gpu_seconds / 3600
    assert abs(result.failures - expected) < 4 * expected**0.5


class VirtualTimeExecutor:
    """Executor for `TrialRunner` in virtual time, with the durations and failures that a simulation drew."""

    def __init__(self, slots, attempts, curve):
        self.slots = slots
        self.curve = curve
        self.durations = {(a.trial, a.attempt_number): (a.end - a.start, a.failed) for a in attempts}
        self.now = 0.0
        self.running = []
        self.submitted = []

    def submit(self, attempt):
        seconds, failed = self.durations[attempt.trial, attempt.failed_attempts]
        self.running.append((self.now + seconds, len(self.submitted), attempt, failed))
        self.submitted.append(
            (attempt.trial, attempt.failed_attempts, self.now, self.now + seconds, attempt.epochs)
        )

    def wait(self, seconds):
        self.running.sort(key=lambda entry: entry[:2])
        self.now, _, attempt, failed = self.running.pop(0)
        curve = None if failed else self.curve(attempt.trial)[: attempt.epochs]
        return [Outcome(attempt.number, curve, "a GPU failed" if failed else None, 0.0)]

    def close(self):
        pass


class PoolOrderPredictor:
    """Stands in for the accuracy predictor; prefers candidates in the order of the pool."""

    sign = 1.0

    def predict(self, candidates):
        return ValuePrediction(-candidates[:, 0].astype(float), np.ones(len(candidates)))

    def fit(self, candidates, accuracies):
        pass


@pytest.mark.parametrize("seed", range(3))
def test_simulated_rounds_are_those_of_the_search(seed, tmp_path):
    """The search's own rounds on a virtual executor start and end every attempt when the simulation does."""
    workload = random_workload(full_epochs=10, stopping_epoch=6, seed=seed)
    result = simulate(workload, Cluster(5, **UNRELIABLE), retries=1, seed=seed)
    assert result.failures
    noise = np.random.default_rng(seed).normal(0, 100, (36, 5))

    def curve(number):
        # Noise before epoch 6; from then on the ranking is that of the last epoch
        return (*noise[number], *(float(number + epoch) for epoch in range(5)))

    settings = SearchSettings(epochs=10, retries=1, max_failures=36)
    space = Space("pool", (Variable("number", range(40), False),))
    proposer = PaperSearch(np.arange(40)[:, None], PoolOrderPredictor, 10, 3, 12, 0.92, None)
    store = TrialStore(tmp_path, create=True)
    executor = VirtualTimeExecutor(5, result.attempts, curve)
    TrialRunner(settings, space, proposer, store, 360, lambda progress: None).run(executor)
    simulated = sorted((a.trial, a.attempt_number, a.start, a.end) for a in result.attempts)
    executed = sorted(entry[:4] for entry in executor.submitted)
    np.testing.assert_allclose(executed, simulated)
    assert {entry[4] for entry in executor.submitted if entry[0] >= 12} == {6}
    trials = store.trials()
    store.close()
    assert sum(t.status == FAILED for t in trials) == result.lost_trials
    assert sum(t.status == COMPLETED for t in trials) == 36 - result.lost_trials


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Workload((), 1, 1), "rounds: each round must have trials, and each trial a positive"),
        (
            lambda: Workload(((0.0,),), 1, 1),
            "rounds: each round must have trials, and each trial a positive",
        ),
        (lambda: Workload(((1.0,),), 5, 6), r"stopping_epoch: 6 must be in \[1, 5\]"),
        (lambda: Cluster(0), "gpus: 0 must be at least 1"),
        (lambda: Cluster(4, 8), r"gpus_per_trial: 8 must be in \[1, 4\]"),
        (lambda: Cluster(4, scaling=1.5), r"scaling: 1.5 must be in \[0.01, 1\]"),
        (lambda: Cluster(4, failure_rate=-1.0), "failure_rate: -1.0 must be at least 0"),
        (lambda: Cluster(4, stragglers=float("nan")), "stragglers: nan must be"),
        (lambda: simulate(random_workload(), Cluster(4), retries=-1), "retries: -1 must be at least 0"),
        (
            lambda: simulate(random_workload(), Cluster(4), max_in_flight=0),
            "max_in_flight: 0 must be at least 1",
        ),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()
