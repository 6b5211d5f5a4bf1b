"""Several objectives: Pareto sets, hypervolumes, and searches that spread over the Pareto set."""

import numpy as np
import pytest

from fbnetv3.errors import UserError
from fbnetv3.nars import Search, load, search, space_from_dict
from fbnetv3.nars.proposals.multi_objective import hypervolume, pareto_indices
from tests.nars.toy import FAST

SPACE = space_from_dict({"name": "zdt1", "variables": {f"x{i}": {"range": [0.0, 1.0]} for i in range(4)}})
SETTINGS = {
    "epochs": 1,
    "evaluations": 40,
    "executor": "serial",
    "predictor": FAST,
    "objectives": {"near": "minimize", "far": "maximize"},
}
REFERENCE = {"near": 1.1, "far": -1.1}


def measure(values):
    """The problem ZDT1, of which one objective has its sign changed; on the front, far = sqrt(near) - 1."""
    x = [values[f"x{i}"] for i in range(4)]
    g = 1 + 3 * sum(x[1:])
    return {"near": x[0], "far": g * (np.sqrt(x[0] / g) - 1)}


def evaluate(candidate, epochs):
    return measure(candidate)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return search(SPACE, evaluate, tmp_path_factory.mktemp("objectives") / "out", **SETTINGS)


def test_pareto_set_of_a_few_points():
    values = np.array([[1, 3], [2, 2], [3, 1], [1, 1], [2, 2], [0, 3]])
    assert pareto_indices(values).tolist() == [2, 1, 0]
    assert pareto_indices(np.zeros((0, 2))).tolist() == []
    assert pareto_indices(np.array([[4.0], [5.0]])).tolist() == [1]


def test_hypervolume_of_boxes():
    # Three overlapping rectangles: 3 + (4 - 2) + (3 - 2), and the union of two boxes in space
    assert hypervolume(np.array([[1, 3], [2, 2], [3, 1]]), np.zeros(2)) == 6
    assert hypervolume(np.array([[2, 1, 1], [1, 2, 2]]), np.zeros(3)) == 2 + 4 - 1
    assert hypervolume(np.array([[2, 2]]), np.array([1, -1])) == 3
    assert hypervolume(np.array([[2, 0.5]]), np.array([1, 1])) == 0


def test_hypervolume_is_the_share_of_random_points_that_are_dominated():
    rng = np.random.default_rng(0)
    values = rng.random((12, 3))
    points = rng.random((100_000, 3))
    dominated = np.any([np.all(points <= value, axis=1) for value in values], axis=0)
    assert hypervolume(values, np.zeros(3)) == pytest.approx(dominated.mean(), abs=0.005)


def test_a_search_approaches_the_pareto_front(result):
    # The front itself dominates 1.21 - 1 / 3; 40 random candidates dominate 0.2 to 0.4
    assert result.hypervolume(REFERENCE) > 0.75
    front = result.pareto_front
    assert len(front) >= 8
    near = [trial.value(1) for trial in front]
    far = [trial.objectives["far"] for trial in front]
    assert near == sorted(near) and far == sorted(far)
    assert min(near) < 0.1 and max(near) > 0.6
    assert len(result.trials) == 40


def test_the_recommendation_is_the_best_in_the_first_objective(result):
    (recommendation,) = result.recommendations
    assert recommendation.measured == pytest.approx(
        min(trial.value(1) for trial in result.trials), abs=0.02
    )


def test_objectives_are_read_from_the_folder(result):
    saved = load(result.folder)
    assert saved.objectives == SETTINGS["objectives"]
    assert saved.trials[3].objectives == result.trials[3].objectives
    assert saved.rows()[3]["far"] == result.trials[3].objectives["far"]


def test_asking_and_telling_gives_the_same_trials(result, tmp_path):
    asked = Search(SPACE, tmp_path / "out", **{**SETTINGS, "window": 1})
    while candidates := asked.ask():
        for candidate in candidates:
            asked.tell(candidate, measure(candidate))
    again = search(SPACE, evaluate, tmp_path / "again", **{**SETTINGS, "window": 1})
    assert [trial.objectives for trial in asked.trials] == [trial.objectives for trial in again.trials]


def test_an_own_candidate_with_numbers_counts_as_a_full_evaluation(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **{**SETTINGS, "epochs": 3})
    values = {f"x{i}": 0.5 for i in range(4)}
    trial = asked.tell(values, measure(values))
    assert trial.curve == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": {"far": "maximize"}}, "objectives: must have at least two objectives"),
        (
            {"objectives": {"a": "up", "b": "minimize"}},
            "objectives.a: 'up' must be one of maximize, minimize",
        ),
        ({"paper": True}, "objectives: Algorithm 1 has a single objective"),
        ({"direction": "minimize"}, "direction: each objective has its own direction"),
    ],
)
def test_invalid_settings(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        search(SPACE, evaluate, tmp_path / "out", **{**SETTINGS, **settings})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (0.5, "expected a mapping with near, far.*, got 0.5"),
        ({"near": 1.0}, "expected a mapping with near, far.*, got the objectives near"),
        ({"near": 1.0, "far": float("nan")}, "the objective far is nan; return a finite number"),
    ],
)
def test_invalid_values(values, message, tmp_path):
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    (candidate,) = asked.ask()
    with pytest.raises(UserError, match=message):
        asked.tell(candidate, values)
