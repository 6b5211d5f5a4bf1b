"""Searches in virtual time: equal to what can be computed by hand, to `rounds`, and to a search that has run."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.rounds import Rounds
from fbnetv3.nars.algorithm.search_settings import SearchSettings
from fbnetv3.nars.algorithm.trial_store import DONE, FAILED, TrialsError, TrialStore
from fbnetv3.nars.execution.jobs import Outcome
from fbnetv3.nars.simulation.cluster_sweep import draw, fastest_split, scale
from fbnetv3.nars.simulation.imagenet_workload import (
    PAPER_GPU_HOURS,
    TRAINING_IMAGES,
    V100_RATE,
    choose,
    trial_costs,
)
from fbnetv3.nars.simulation.replay import read_search, replay, share_out, spread
from fbnetv3.nars.simulation.simulator import simulate
from fbnetv3.nars.simulation.workload import Cluster, Workload
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import load_space
from tests.nars.toy import ROOT

RECORDED = ROOT / "docs" / "searches" / "cifar10_small.sqlite"
# Failures, stragglers and repairs, all at a rate that a search of minutes meets.
ROUGH = {"failure_rate": 20.0, "stragglers": 0.4, "startup": 3.0}


def workload(rounds=3, batch=12, full=10, stop=6, seed=0):
    seconds = np.random.default_rng(seed).uniform(5, 15, (rounds, batch))
    return Workload(tuple(map(tuple, seconds.tolist())), full, stop)


# ---------------------------------------------------------------- closed forms


def test_equal_trials_run_in_waves():
    """Seven trials on three slots are three waves; each round waits for the one before, and for the predictor."""
    load = Workload(((10.0,) * 7,) * 2, full_epochs=4, stop_epoch=3)
    done = simulate(load, Cluster(3, startup=2.0), learning=5.0)
    assert done.wall == 3 * (2 + 40) + 5 + 3 * (2 + 30)
    assert done.gpu_seconds == 7 * (2 + 40) + 7 * (2 + 30)
    assert done.utilisation == pytest.approx(done.gpu_seconds / (3 * done.wall))
    second = [attempt for attempt in done.attempts if load.round_of[attempt.trial] == 1]
    assert min(attempt.start for attempt in second) == 3 * (2 + 40) + 5


def test_a_round_takes_as_long_as_its_longest_trial_where_there_is_room_for_all():
    load = workload()
    expected = 10 * max(load.rounds[0]) + 6 * max(load.rounds[1]) + 6 * max(load.rounds[2])
    assert simulate(load, Cluster(12)).wall == pytest.approx(expected)
    assert simulate(load, Cluster(100)).wall == pytest.approx(expected)


def test_one_slot_takes_the_sum_of_all():
    load = workload()
    for asynchronous in (False, True):
        done = simulate(load, Cluster(1), asynchronous=asynchronous)
        assert done.wall == pytest.approx(load.gpu_seconds)
        assert done.utilisation == pytest.approx(1)


def test_several_gpus_train_one_candidate_faster_and_cost_more():
    load = workload()
    one, eight = simulate(load, Cluster(1)), simulate(load, Cluster(8, 8, scaling=0.9))
    assert eight.wall == pytest.approx(one.wall / (8 * 0.9**3))
    assert eight.gpu_seconds == pytest.approx(one.gpu_seconds / 0.9**3)


def test_asynchronous_trials_fill_the_gaps():
    """Two slots, trials of 4 s and 1 s: without rounds nobody waits, and nothing is proposed before there is room."""
    load = Workload(((4.0, 1.0), (1.0, 1.0)), full_epochs=1, stop_epoch=1)
    assert simulate(load, Cluster(2)).wall == 5.0
    free = simulate(load, Cluster(2), asynchronous=True)
    assert free.wall == 4.0
    assert free.known == (0, 0, 1, 2)
    assert simulate(load, Cluster(2), asynchronous=True, in_flight=1).known == (0, 0, 2, 3)


def test_asynchronous_trials_learn_where_to_stop_when_the_first_round_has_ended():
    """The third trial is in the middle of its fifth epoch then, and ends with it; the fourth ends at the second."""
    load = Workload(((1.0, 2.0), (2.3, 1.0)), full_epochs=10, stop_epoch=2)
    done = simulate(load, Cluster(2), asynchronous=True)
    assert [(a.trial, round(a.end, 6), a.epochs) for a in done.attempts] == [
        (0, 10.0, 10),
        (1, 20.0, 10),
        (2, 21.5, 5),
        (3, 22.0, 2),
    ]


# ---------------------------------------------------------------- what always holds


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_lost(seed, asynchronous):
    """Every trial ends once, no more of them run at a time than there is room for, and failures only add work."""
    load = workload(seed=seed)
    cluster = Cluster(10, 2, **ROUGH, repair=30.0)
    done = simulate(load, cluster, asynchronous=asynchronous, retries=3, learning=2.0, seed=seed)
    assert done.failures > 0
    assert len([a for a in done.attempts if not a.failed]) + done.lost == 36
    moments = [a.start for a in done.attempts]
    assert max(sum(a.start <= moment < a.end for a in done.attempts) for moment in moments) <= cluster.slots
    calm = simulate(load, Cluster(10, 2), asynchronous=asynchronous, seed=seed)
    assert calm.gpu_seconds >= load.gpu_seconds * (1 - 1e-9)
    assert 0 < done.utilisation <= 1


@pytest.mark.parametrize("seed", range(5))
def test_more_gpus_are_never_slower(seed):
    load = workload(batch=20, seed=seed)
    for asynchronous in (False, True):
        walls = [simulate(load, Cluster(gpus), asynchronous=asynchronous).wall for gpus in range(1, 30)]
        assert all(later <= earlier + 1e-9 for earlier, later in pairwise(walls))


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 8, 12, 40])
@pytest.mark.parametrize("seed", range(5))
def test_without_rounds_equal_proposals_are_never_slower(gpus, seed):
    load = workload(seed=seed)
    walls = [simulate(load, Cluster(gpus, startup=1.0), asynchronous=free).wall for free in (False, True)]
    assert walls[1] <= walls[0] + 1e-9


def test_what_a_proposal_is_based_on():
    """In rounds, all of the rounds before; without them, all but what is in flight."""
    load = workload(batch=12)
    assert simulate(load, Cluster(12)).known == (0,) * 12 + (12,) * 12 + (24,) * 12
    assert simulate(load, Cluster(12), asynchronous=True).known[12:] == tuple(range(1, 25))


def test_checkpoints_save_work():
    load = workload()
    hours = [
        simulate(load, Cluster(4, failure_rate=30.0, checkpoints=kept), retries=9, seed=1).gpu_seconds
        for kept in (True, False)
    ]
    assert hours[0] < hours[1]


def test_the_seed_decides_all():
    load = workload()
    same = [simulate(load, Cluster(4, **ROUGH), seed=7).attempts for _ in range(2)]
    assert same[0] == same[1]
    assert simulate(load, Cluster(4, **ROUGH), seed=8).attempts != same[0]


def test_stragglers_change_no_work_in_the_mean():
    """Within three standard errors, with 200 seeds."""
    load = workload()
    hours = np.array([simulate(load, Cluster(4, stragglers=0.5), seed=seed).gpu_seconds for seed in range(200)])
    assert abs(hours.mean() - load.gpu_seconds) < 3 * hours.std() / 200**0.5


def test_failures_come_at_their_rate():
    """Attempts have as many failures as GPU hours times rate, within four standard errors."""
    load = workload(batch=200)
    done = simulate(load, Cluster(8, 2, failure_rate=5.0), retries=1000)
    expected = 5.0 * done.gpu_seconds / 3600
    assert abs(done.failures - expected) < 4 * expected**0.5


# ---------------------------------------------------------------- the same as the search itself


class Virtual:
    """Evaluates for `Rounds` in virtual time, with the lengths and failures that a simulation drew."""

    def __init__(self, slots, attempts, curve):
        self.slots, self.curve = slots, curve
        self.length = {(a.trial, a.number): (a.end - a.start, a.failed) for a in attempts}
        self.now, self.running, self.seen = 0.0, [], []

    def submit(self, job):
        seconds, failed = self.length[job.number, job.attempt]
        self.running.append((self.now + seconds, len(self.seen), job, failed))
        self.seen.append((job.number, job.attempt, self.now, self.now + seconds, job.epochs))

    def wait(self, seconds):
        self.running.sort(key=lambda entry: entry[:2])
        self.now, _, job, failed = self.running.pop(0)
        curve = None if failed else self.curve(job.number)[: job.epochs]
        return [Outcome(job.number, curve, "a GPU is gone" if failed else None, 0.0)]

    def close(self):
        pass


class Guess:
    """In place of a predictor: takes candidates in the order of the pool."""

    def __call__(self, candidates):
        return -candidates[:, 0].astype(float)

    def fit(self, candidates, accuracies):
        pass


@pytest.mark.parametrize("seed", range(3))
def test_rounds_are_those_of_the_search(seed, tmp_path):
    """The search's own rounds on a virtual executor start and end every attempt when the simulation does."""
    load = workload(full=10, stop=6, seed=seed)
    done = simulate(load, Cluster(5, **ROUGH), retries=1, seed=seed)
    assert done.failures
    noise = np.random.default_rng(seed).normal(0, 100, (36, 5))

    def curve(number):  # noise before epoch 6, from which the ranking is the last one's
        return (*noise[number], *(float(number + epoch) for epoch in range(5)))

    settings = SearchSettings(epochs=10, rounds=3, batch=12, pool=40, retries=1, max_failures=36)
    store = TrialStore(tmp_path, create=True)
    executor = Virtual(5, done.attempts, curve)
    pool = np.arange(40)[:, None]
    Rounds(settings, 3, pool, store, Guess(), lambda progress: None).run(executor)
    ours = sorted((a.trial, a.number, a.start, a.end) for a in done.attempts)
    theirs = sorted(entry[:4] for entry in executor.seen)
    np.testing.assert_allclose(theirs, ours)
    assert {entry[4] for entry in executor.seen if entry[0] >= 12} == {6}
    trials = store.all()
    store.close()
    assert sum(t.status == FAILED for t in trials) == done.lost
    assert sum(t.status == DONE for t in trials) == 36 - done.lost


# ---------------------------------------------------------------- the same as a search that has run


def test_a_real_search_is_simulated_to_a_hundredth():
    """60 trainings, one and two at a time: each round, and each part of an interrupted one, as long as recorded."""
    search = read_search(RECORDED)
    parts = replay(search.trials)
    assert [(part.round, len(part.trials), part.workers) for part in parts] == [
        (0, 20, 1),
        (1, 14, 2),
        (1, 6, 2),
        (2, 20, 2),
    ]
    assert max(abs(part.error) for part in parts) < 0.01


def test_costs_say_roughly_how_long_a_real_search_took():
    """Beside other work on the machine, times that follow MACs at one rate are off by at most a half in a part."""
    search = read_search(RECORDED)
    space = load_space(ROOT / "configs" / "nars" / "spaces" / "cifar10_small.yaml")
    costs = CostModel(space, 10)(np.array([trial.candidate for trial in search.trials]))["macs"]
    seconds = share_out(search.trials, costs)
    assert seconds.sum() == pytest.approx(sum(trial.seconds for trial in search.trials))
    assert max(abs(part.error) for part in replay(search.trials, seconds)) < 0.5
    assert all(0.1 < value < 0.6 for value in spread(search.trials, costs))


def test_no_search_to_replay(tmp_path):
    with pytest.raises(TrialsError, match="name a search's folder or file"):
        read_search(tmp_path / "none.sqlite")
    other = tmp_path / "other.sqlite"
    other.write_text("no database at all, but long enough to look like one" * 40)
    with pytest.raises(TrialsError, match="other.sqlite"):
        read_search(other)
    TrialStore(tmp_path, create=True).close()
    with pytest.raises(TrialsError, match="no trial that is done"):
        read_search(tmp_path)
    with pytest.raises(UsageError, match="one each is needed"):
        replay(read_search(RECORDED).trials, [1.0])


# ---------------------------------------------------------------- costs


COSTS = {
    "macs": np.linspace(400e6, 800e6, 1000)[::-1].copy(),
    "params": np.full(1000, 10_000_000),
    "activations": np.linspace(1e6, 9e6, 1000),
}
SETTINGS = SearchSettings(batch=10, epochs=20)


def test_calibrated_to_the_papers_gpu_hours():
    """The rate makes the trials 10.7 K GPU hours (Table 4), whatever their time is taken to follow."""
    for measure in ("macs", "activations"):
        found = trial_costs(COSTS, SETTINGS, 5, 15, measure=measure)
        assert found.load.gpu_seconds / 3600 == pytest.approx(PAPER_GPU_HOURS)
    followed = np.array(found.load.rounds) / COSTS["activations"][choose(COSTS["macs"], 5, 10)]
    assert np.ptp(followed) < 1e-9 * followed.max()


def test_a_given_rate_is_time_for_multiply_adds():
    found = trial_costs(COSTS, SETTINGS, 1, 20, rate=V100_RATE)
    passes = 3 * TRAINING_IMAGES + 10_000
    np.testing.assert_allclose(found.load.rounds[0], passes * COSTS["macs"][:10] / V100_RATE)
    assert found.images == pytest.approx(655 * 390e6 / COSTS["macs"][:10].mean())


def test_sec_4_leaves_so_many_images():
    assert TRAINING_IMAGES == 246_233


def test_later_rounds_from_the_costly_end_of_the_pool():
    chosen = choose(COSTS["macs"], 3, 10, costly=0.05, seed=1)
    assert (chosen[0] == np.arange(10)).all()
    assert len(set(chosen.ravel())) == 30
    assert chosen[1:].max() < 50


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Workload((), 1, 1), "each needs a trial"),
        (lambda: Workload(((0.0,),), 1, 1), "more than 0"),
        (lambda: Workload(((1.0,),), 5, 6), "choose one from 1 to 5"),
        (lambda: Cluster(0), "at least 1 is needed"),
        (lambda: Cluster(4, 8), "choose from 1 to 4"),
        (lambda: Cluster(4, scaling=1.5), "is a share"),
        (lambda: Cluster(4, failure_rate=-1.0), "failure rate -1: is a number of at least 0"),
        (lambda: Cluster(4, stragglers=float("nan")), "stragglers nan"),
        (lambda: simulate(workload(), Cluster(4), retries=-1), "retries -1: is at least 0"),
        (lambda: simulate(workload(), Cluster(4), in_flight=0), "at least 1 trial"),
        (lambda: scale(workload(), Cluster(4), seeds=()), "at least one simulation"),
        (lambda: choose(COSTS["macs"], 5, 1000), "5 rounds of 1000 need 5000"),
        (lambda: choose(COSTS["macs"], 5, 10, costly=0.01), "40 are needed"),
        (lambda: choose(COSTS["macs"], 5, 10, costly=2.0), "is a share of the pool"),
        (lambda: trial_costs(COSTS, SETTINGS, 5, 15, measure="mac"), "did you mean macs"),
        (lambda: trial_costs(COSTS, SETTINGS, 5, 15, gpu_hours=0), "GPU hours 0: is more than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        wrong()


# ---------------------------------------------------------------- several sizes


def test_many_gpus_are_split_over_the_trials():
    """With room for all trials, one GPU each would leave the others idle; where that costs nothing, each has one."""
    load = Workload(((10.0,) * 12,) * 2, 4, 3)
    assert fastest_split(load, Cluster(6, scaling=0.9)) == 1
    assert fastest_split(load, Cluster(48, scaling=0.9)) == 4


def test_simulations_of_a_size():
    calm = scale(workload(), Cluster(4), seeds=range(5))
    assert len(calm.wall) == 1 and calm.failures == calm.stopped == 0
    rough = scale(workload(), Cluster(4, **ROUGH), retries=0, max_failures=0, seeds=range(5))
    assert len(rough.wall) == 5 and rough.failures > 0 and rough.stopped == 1
    assert rough.lost == rough.failures


def test_the_picture(tmp_path):
    rows = [scale(workload(), Cluster(gpus), asynchronous=free) for gpus in (2, 4) for free in (False, True)]
    draw(rows, tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError, match="choose another file"):
        draw(rows, Path(tmp_path / "none" / "scaling.png"))
