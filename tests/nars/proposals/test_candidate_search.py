"""The search for the candidate with the highest score: it finds maxima, and only what may be proposed."""

import math

import numpy as np
import pytest

from fbnetv3.nars.proposals.candidate_search import CandidateSearch, mutate
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import list_candidates, random_candidates
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.space.spaces import CONDITIONAL, FBNETV3

MIXED = space_from_dict(CONDITIONAL)
SMALL = space_from_dict(
    {
        "name": "small",
        "variables": {
            "a": {"range": [0, 5]},
            "b": {"choices": ["x", "y", "z"]},
            "c": {"range": [0, 3], "when": {"b": "y"}},
        },
    }
)


def search_for(space, score, seed=0, excluded=(), trials=None, **constraints):
    """Return the best candidate and its score."""
    candidate_search = CandidateSearch(
        Constraints(space, **constraints),
        frozenset(candidate.tobytes() for candidate in excluded),
        np.random.default_rng(seed),
    )
    return candidate_search.maximize(
        score, np.zeros((0, len(space)), np.int64) if trials is None else trials
    )


def by_values(space, function):
    """Return a score function of candidates from a function of their values."""
    return lambda candidates: np.array([function(values) for values in space.decode_all(candidates)])


def mixed_score(values):
    """Return at most 3, for sgd with momentum 0.9 and Nesterov, lr 1e-3, and a single layer of 64 units."""
    score = {"sgd": 1.0, "rmsprop": 0.5, "adam": 0.0}[values["optimizer"]] - values["depth"] + 1
    score -= abs(math.log10(values["lr"]) + 3) + abs(math.log2(values["width"]) - 6) / 4
    if "momentum" in values:
        score -= abs(values["momentum"] - 0.9)
    return score + 2 * values.get("nesterov", False)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_maximum_of_floats_numbers_and_conditional_choices(seed):
    candidate, score = search_for(MIXED, by_values(MIXED, mixed_score), seed)
    assert score == mixed_score(MIXED.decode(candidate)) > 2.9
    values = MIXED.decode(candidate)
    assert (values["optimizer"], values["nesterov"], values["depth"]) == ("sgd", True, 1)


@pytest.mark.parametrize("seed", range(4))
def test_finds_the_best_of_the_papers_space(seed):
    """Of about 10^26 candidates; each variable has a value of its own that is best."""
    space = load_space(FBNETV3)
    goal = random_candidates(space, 1, np.random.default_rng(seed + 200))[0]
    trials = random_candidates(space, 30, np.random.default_rng(seed + 100))

    def score(candidates):
        return -(np.abs(candidates - goal) / space.sizes).sum(1)

    trials = trials[np.argsort(-score(trials))]
    random_best = score(random_candidates(space, 5000, np.random.default_rng(seed))).max()
    _, best = search_for(space, score, seed, trials=trials)
    assert best > random_best / 3


def test_finds_a_maximum_near_the_best_trial_that_chance_would_miss():
    space = space_from_dict(
        {"name": "line", "variables": {f"x{i}": {"range": [0.0, 1.0]} for i in range(6)}}
    )
    goal = space.encode({f"x{i}": 0.1 + 0.13 * i for i in range(6)})
    near = space.encode({f"x{i}": 0.12 + 0.13 * i for i in range(6)})

    def score(candidates):
        distances = space.positions(candidates) - space.positions(goal[None])
        return -np.sqrt((distances**2).mean(1))

    _, best = search_for(space, score, trials=near[None])
    assert -best < 0.006
    assert -score(near[None])[0] == pytest.approx(0.02, rel=1e-3)


def test_all_candidates_of_a_small_space_are_found_one_after_another_best_first():
    score = by_values(SMALL, lambda values: values["a"] + values.get("c", 0) ** 2 / 10)
    everything = list_candidates(SMALL)
    tried = []
    while found := search_for(SMALL, score, seed=len(tried), excluded=tried):
        tried.append(found[0])
    assert {row.tobytes() for row in tried} == {row.tobytes() for row in everything}
    assert len(tried) == len(everything) == 36
    np.testing.assert_allclose(score(np.array(tried)), np.sort(score(everything))[::-1])


def test_only_feasible_candidates_are_scored_and_none_that_are_excluded():
    scored = []

    def score(candidates):
        scored.append(candidates)
        return candidates[:, 0].astype(float)

    everything = list_candidates(SMALL)
    excluded = everything[::3]
    columns = {"sum": lambda candidates: candidates.sum(1)}
    bounds = {"constraints": [Constraint("sum", 2, 4)], "columns": columns}
    found, _ = search_for(SMALL, score, excluded=excluded, trials=everything[:5], **bounds)
    scored = np.unique(np.concatenate(scored), axis=0)
    assert ((scored.sum(1) >= 2) & (scored.sum(1) <= 4)).all()
    assert not {row.tobytes() for row in scored} & {row.tobytes() for row in excluded}
    allowed = everything[(everything.sum(1) >= 2) & (everything.sum(1) <= 4)]
    allowed = [row for row in allowed if row.tobytes() not in {row.tobytes() for row in excluded}]
    assert found[0] == max(row[0] for row in allowed)


def test_a_constraint_that_few_candidates_meet():
    """One in ten thousand: random candidates are repaired."""
    space = space_from_dict({"name": "s", "variables": {f"x{i}": {"range": [0, 9]} for i in range(8)}})
    columns = {"sum": lambda candidates: candidates.sum(1)}
    bounds = {"constraints": [Constraint("sum", 0, 9)], "columns": columns}
    found, best = search_for(space, lambda candidates: candidates[:, 3].astype(float), **bounds)
    assert best == found[3] == 9


def test_none_is_left():
    everything = list_candidates(SMALL)
    assert search_for(SMALL, lambda candidates: candidates[:, 0] * 1.0, excluded=everything) is None


def test_the_last_one_left_is_found():
    everything = list_candidates(SMALL)
    candidate, _ = search_for(SMALL, lambda candidates: candidates[:, 0] * 1.0, excluded=everything[1:])
    np.testing.assert_array_equal(candidate, everything[0])


def test_results_depend_on_the_seed_only():
    score = by_values(MIXED, lambda values: math.sin(1e3 * values["lr"]) + values.get("momentum", 0))
    first, second, third = (search_for(MIXED, score, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


@pytest.mark.parametrize("space", [MIXED, SMALL, load_space(FBNETV3)], ids=lambda space: space.name)
def test_mutants_are_canonical_candidates_unlike_their_parents(space):
    rng = np.random.default_rng(0)
    parents = random_candidates(space, 10, rng)
    mutants = mutate(space, parents, 2000, rng)
    np.testing.assert_array_equal(space.canonicalize(space.validate(mutants)), mutants)
    is_parent = (mutants[:, None] == parents).all(2).any(1)
    assert is_parent.mean() < 0.5
    # Most change a few variables of one parent
    changes = (mutants[:, None] != parents).sum(2).min(1)
    assert np.median(changes[~is_parent]) <= 4


def test_mutants_reach_every_value():
    rng = np.random.default_rng(0)
    parent = list_candidates(SMALL)[:1]
    mutants = mutate(SMALL, parent, 5000, rng)
    assert {row.tobytes() for row in mutants} == {row.tobytes() for row in list_candidates(SMALL)}


def test_mutants_of_floats_are_close_and_far():
    space = space_from_dict({"name": "one", "variables": {"x": {"range": [0.0, 1.0]}}})
    rng = np.random.default_rng(0)
    mutants = mutate(space, space.encode({"x": 0.5})[None], 2000, rng)
    distances = np.abs(space.positions(mutants)[:, 0] - 0.5)
    shares = [np.mean(distances < limit) for limit in (1e-4, 1e-2, 0.5)]
    assert 0.1 < shares[0] < 0.5 < shares[1] < 0.7 and shares[2] == 1
