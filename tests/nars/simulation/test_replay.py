"""Replays of a recorded search reproduce its times."""

import contextlib

import numpy as np
import pytest

from fbnetv3.nars.simulation.replay import proportional_times, read_search, replay, residual_spread
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import load_space
from fbnetv3.nars.trials.trial_store import Proposal, TrialStore, TrialStoreError
from tests.nars.toy import ROOT

RECORDED = ROOT / "docs" / "searches" / "cifar10_small.sqlite"


def test_a_recorded_search_is_reproduced_within_one_percent():
    """60 training runs, one and two at a time: each round, and each period of an interrupted one."""
    periods = replay(read_search(RECORDED).segments)
    assert [(period.round, len(period.segments), period.workers) for period in periods] == [
        (0, 20, 1),
        (1, 14, 2),
        (1, 6, 2),
        (2, 20, 2),
    ]
    assert max(abs(period.error) for period in periods) < 0.01


def test_macs_predict_roughly_how_long_a_recorded_search_took():
    """On a machine with other work, times proportional to MACs are off by at most a half in any period."""
    search = read_search(RECORDED)
    segments = search.segments
    space = load_space(ROOT / "configs" / "nars" / "spaces" / "cifar10_small.yaml")
    costs = CostModel(space, 10)(search.candidates)["macs"]
    seconds = proportional_times(segments, costs)
    assert seconds.sum() == pytest.approx(sum(segment.seconds for segment in segments))
    assert max(abs(period.error) for period in replay(segments, seconds)) < 0.5
    assert all(0.1 < value < 0.6 for value in residual_spread(segments, costs))


def test_a_continued_trial_counts_with_the_epochs_of_each_segment(tmp_path):
    """A trial of 2 and then 4 more epochs, and one of 6: an epoch takes half as long where the candidate costs half."""
    with contextlib.closing(TrialStore(tmp_path, create=True)) as store:
        costly, cheap = np.array([1]), np.array([0])
        store.add(
            [Proposal(2, costly), Proposal(6, cheap), Proposal(6, trial=0)], decode=lambda candidate: {}
        )
        for number, epochs, seconds in ((0, 2, 4.0), (1, 6, 6.0), (2, 6, 8.0)):
            store.start(number)
            store.complete(number, [0.5] * epochs, seconds)
        store.add([Proposal(6, cheap)], decode=lambda candidate: {})
    search = read_search(tmp_path)
    assert [(segment.trial.number, segment.epochs) for segment in search.segments] == [
        (0, 2),
        (1, 6),
        (0, 4),
    ]
    assert proportional_times(search.segments, search.candidates[:, 0] + 1.0) == pytest.approx(
        [4.0, 6.0, 8.0]
    )


def test_files_without_a_search_are_named(tmp_path):
    with pytest.raises(TrialStoreError, match="pass a search's folder or SQLite file"):
        read_search(tmp_path / "none.sqlite")
    other = tmp_path / "other.sqlite"
    other.write_text("no database at all, but long enough to look like one" * 40)
    with pytest.raises(TrialStoreError, match="other.sqlite"):
        read_search(other)
    TrialStore(tmp_path, create=True).close()
    with pytest.raises(TrialStoreError, match="no completed trials"):
        read_search(tmp_path)
