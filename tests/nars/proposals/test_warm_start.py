"""Warm starts: earlier measurements of the same and of other spaces help, and do no harm if they mislead."""

import numpy as np
import pytest

from fbnetv3.errors import FieldError
from fbnetv3.nars import Search, load, space_from_dict
from fbnetv3.nars.proposals.warm_start import build_warm_start
from tests.nars.proposals.proposal_loop import run_proposals
from tests.nars.toy import SPACE, accuracy

SETTINGS = {"epochs": 1, "evaluations": 14}


def measure(values, epochs):
    return [accuracy(values)] * epochs


def draw_rows(count, seed, value, space=SPACE):
    """Return measurements of random candidates."""
    points = np.random.default_rng(seed).random((count, len(space)))
    return [{**values, "value": value(values)} for values in space.decode_all(space.from_unit(points))]


def mean_best(**settings):
    """Return the best accuracy of a search, on average over seeds."""
    best = []
    for seed in range(4):
        trials = run_proposals(SPACE, measure, **SETTINGS, seed=seed, **settings)
        best.append(max(trial.value(1) for trial in trials))
    return np.mean(best)


@pytest.fixture(scope="module")
def cold():
    return mean_best()


def test_measurements_of_the_same_task_on_another_scale_help(cold):
    rows = draw_rows(40, 5, lambda values: 3 + accuracy(values) / 100)
    assert mean_best(warm_start=[rows]) > cold + 0.3


def test_measurements_that_mean_nothing_do_no_harm(cold):
    rng = np.random.default_rng(0)
    rows = draw_rows(40, 5, lambda values: rng.normal())
    assert mean_best(warm_start=[rows]) > cold - 0.7


def test_the_best_earlier_candidate_is_tried_first():
    rows = draw_rows(20, 6, accuracy)
    trials = run_proposals(SPACE, measure, **SETTINGS, warm_start=[rows])
    assert trials[0].value(1) == max(row["value"] for row in rows)
    rows = [{**row, "value": -row["value"]} for row in rows]
    mirrored = {"direction": "minimize", "warm_start": [rows]}
    trials = run_proposals(SPACE, lambda values, epochs: [-accuracy(values)], **SETTINGS, **mirrored)
    assert trials[0].value(1) == min(row["value"] for row in rows)


def test_another_space_with_some_variables_in_common():
    other = space_from_dict(
        {
            "name": "other",
            "variables": {"lr": {"range": [1, 9]}, "x0": {"range": [0, 7]}, "z": {"range": [0, 3]}},
        }
    )
    rows = draw_rows(40, 7, lambda values: -((values["lr"] - 3) ** 2) - (values["x0"] - 5) ** 2, other)
    warm_start = build_warm_start([rows], SPACE, 1.0)
    assert not len(warm_start.best)  # candidates of the other space lack variables of this one
    candidates = np.array([SPACE.encode({**OWN, "lr": lr}) for lr in (1, 3, 9)])
    low, best, high = warm_start.covariates(candidates)[:, 0]
    assert best > low > high


OWN = {"x0": 5, "x1": 5, "x2": 5, "x3": 5, "kind": "b", "lr": 3}


def test_folders_files_and_data_frames_are_the_same_source(tmp_path):
    asked = Search(SPACE, tmp_path / "first", **SETTINGS, initial_trials=10)
    for candidate in asked.ask(10):
        asked.tell(candidate, accuracy(candidate))
    file = load(asked.folder).write_csv(tmp_path / "trials.csv")
    rows = [{**trial.values, "value": trial.value(1)} for trial in asked.trials]
    candidates = SPACE.from_unit(np.random.default_rng(0).random((50, len(SPACE))))
    predicted = [
        build_warm_start([source], SPACE, 1.0).covariates(candidates)
        for source in (asked.folder, file, rows)
    ]
    np.testing.assert_allclose(predicted[1], predicted[0], atol=1e-6)
    np.testing.assert_allclose(predicted[2], predicted[0], atol=1e-6)


def test_the_incumbent_of_a_search_with_a_warm_start(tmp_path):
    asked = Search(
        SPACE, tmp_path / "out", **SETTINGS, initial_trials=3, warm_start=[draw_rows(20, 8, accuracy)]
    )
    for _ in range(7):
        for candidate in asked.ask():
            asked.tell(candidate, accuracy(candidate))
    assert asked.incumbent.value(1) == asked.best.value(1)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"lr": 3, "value": 1.0}], r"warm_start\[0\]: has 1 measurements .* needs at least 3"),
        ([{"rate": 3, "value": 1.0}] * 5, r"warm_start\[0\]: has no variable of the space \(x0, .*, lr\)"),
        ("nowhere", r"warm_start\[0\]: nowhere is neither a search's folder nor a CSV file"),
        (3, r"warm_start\[0\]: must be a search's folder, a CSV file, a data frame, or a list of mappings"),
    ],
)
def test_sources_that_cannot_be_used(source, message, tmp_path):
    with pytest.raises(FieldError, match=message):
        Search(SPACE, tmp_path / "out", **SETTINGS, warm_start=[source])
