"""Replays of a recorded search reproduce its times."""

import numpy as np
import pytest

from fbnetv3.nars.algorithm.trial_store import TrialStore, TrialStoreError
from fbnetv3.nars.simulation.replay import proportional_times, read_search, replay, residual_spread
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import load_space
from tests.nars.toy import ROOT

RECORDED = ROOT / "docs" / "searches" / "cifar10_small.sqlite"


def test_a_recorded_search_is_reproduced_within_one_percent():
    """60 training runs, one and two at a time: each round, and each segment of an interrupted one."""
    segments = replay(read_search(RECORDED).trials)
    assert [(segment.round, len(segment.trials), segment.workers) for segment in segments] == [
        (0, 20, 1),
        (1, 14, 2),
        (1, 6, 2),
        (2, 20, 2),
    ]
    assert max(abs(segment.error) for segment in segments) < 0.01


def test_macs_predict_roughly_how_long_a_recorded_search_took():
    """On a machine with other work, times proportional to MACs are off by at most a half in any segment."""
    trials = read_search(RECORDED).trials
    space = load_space(ROOT / "configs" / "nars" / "spaces" / "cifar10_small.yaml")
    costs = CostModel(space, 10)(np.array([trial.candidate for trial in trials]))["macs"]
    seconds = proportional_times(trials, costs)
    assert seconds.sum() == pytest.approx(sum(trial.seconds for trial in trials))
    assert max(abs(segment.error) for segment in replay(trials, seconds)) < 0.5
    assert all(0.1 < value < 0.6 for value in residual_spread(trials, costs))


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
