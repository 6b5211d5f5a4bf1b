"""The evolution: it finds the best, inside constraints, and says so where there is none."""

import time
from dataclasses import replace

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.evolution import EvolutionSettings, evolve, pareto_front
from fbnetv3.nars.algorithm.genetic_operators import Regression, exchanges
from fbnetv3.nars.space.constraints import Constraint, ConstraintError, Constraints
from fbnetv3.nars.space.search_space import Space, Variable, load_space
from tests.nars.test_space import FBNETV3

# 6561 candidates, few enough to list.
SMALL = Space("macro", tuple(Variable(f"layer{i}", (0, 1, 2), True) for i in range(8)))
ALL = np.stack(np.unravel_index(np.arange(3**8), SMALL.sizes), 1)
QUICK = EvolutionSettings(inherited=10, random=50, top=30, children=10, shocks=1)


def cost(candidates):
    return (candidates * np.array([3, 2, 2, 5, 1, 1, 4, 2])).sum(1)


def within(low=0, high=20):
    return Constraints(SMALL, [Constraint("cost", low, high)], {"cost": cost})


def rugged(seed):
    """A score with effects of values, of pairs and of triples: no variable's best value is the same everywhere."""
    rng = np.random.default_rng(seed)
    single, pairs = rng.normal(size=(8, 3)), rng.normal(size=(7, 3, 3))
    triples = rng.normal(size=(6, 3, 3, 3))

    def score(c):
        total = sum(single[i, c[:, i]] for i in range(8)) + sum(pairs[i, c[:, i], c[:, i + 1]] for i in range(7))
        return total + sum(triples[i, c[:, i], c[:, i + 1], c[:, i + 2]] for i in range(6))

    return score


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bounds", [(0, 10), (0, 20), (18, 22), (0, 40)])
def test_finds_the_best_of_all(seed, bounds):
    score, constraints = rugged(seed), within(*bounds)
    found = evolve(score, constraints, seed=seed)
    assert found.scores[0] == score(ALL[constraints.met(ALL)]).max()


def test_everything_that_it_scores_meets_the_constraints_and_is_scored_once():
    scored, score = [], rugged(0)

    def noting(candidates):
        scored.extend(map(tuple, candidates))
        return score(candidates)

    constraints = within(10, 15)
    found = evolve(noting, constraints, ALL[::50], QUICK)
    assert constraints.met(np.array(scored)).all()
    assert len(scored) == len(set(scored)) == found.calls
    assert constraints.met(found.candidates).all() and (found.scores == score(found.candidates)).all()
    assert (np.diff(found.scores) <= 0).all() and (np.diff(found.best) >= 0).all()
    assert found.scores[0] == found.best[-1]


def test_table_2_inside_two_bounds():
    space = load_space(FBNETV3)
    constraints = Constraints(space, [Constraint("macs", high=500e6), Constraint("params", high=8e6)])
    goal = space.sizes - 1
    found = evolve(lambda c: -np.abs(c - goal).sum(1), constraints, settings=QUICK)
    values = constraints.values(found.candidates, "macs", "params")
    assert values["macs"].max() <= 500e6 and values["params"].max() <= 8e6
    recipe = space.columns_of("recipe")
    assert (found.candidates[0, recipe] == goal[recipe]).all(), "what costs nothing is at its best"


def test_equal_for_equal_seeds_only():
    first, second, third = (evolve(rugged(0), within(), settings=QUICK, seed=seed) for seed in (0, 0, 1))
    assert (first.candidates == second.candidates).all() and first.best == second.best and first.calls == second.calls
    assert first.best != third.best or first.calls != third.calls


def test_inherits_the_best_trials_that_meet_the_constraints():
    """One that no chance would find is kept; one that is too costly is not."""
    space = load_space(FBNETV3)
    best, cheap = space.sizes // 2, np.zeros(len(space), int)
    macs = Constraints(space).values(np.array([best, cheap]), "macs")["macs"]

    def score(candidates):
        return (candidates == best).all(1) * 2.0 + (candidates == cheap).all(1)

    settings = EvolutionSettings(random=20, top=5, children=2, patience=1)
    for budget, expected in ((macs[0], best), (macs[0] - 1, cheap)):
        found = evolve(
            score, Constraints(space, [Constraint("macs", high=float(budget))]), np.array([best, cheap]), settings
        )
        assert (found.candidates[0] == expected).all()


def test_a_budget_that_nothing_meets_is_an_error_at_once_that_says_what_can_be():
    space = load_space(FBNETV3)
    least = Constraints(space).values(np.zeros((1, len(space)), int), "macs")["macs"][0]
    start = time.perf_counter()
    with pytest.raises(ConstraintError, match="no candidate of fbnetv3 meets .*; the nearest found has macs ") as error:
        evolve(lambda c: np.zeros(len(c)), Constraints(space, [Constraint("macs", high=100e6)]))
    assert time.perf_counter() - start < 5
    said = float(str(error.value).rpartition("macs ")[2].replace(",", ""))
    assert said <= least * 1.0001, "nothing is cheaper than the smallest of everything"


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda c: np.full(len(c), np.nan), "that are no number"),
        (lambda c: np.where(np.arange(len(c)) == 3, np.nan, 0.0), r"with 1 that are no number"),
        (lambda c: np.zeros((len(c), 2)), r"the score gives \(\d+, 2\)"),
    ],
)
def test_scores_that_are_none(score, message):
    with pytest.raises(UsageError, match=message):
        evolve(score, within(), settings=QUICK)


def test_ends_when_the_gain_is_less_than_epsilon():
    """Every generation gains a little; what counts as gain decides when it ends."""
    calls = [0]

    def creeping(candidates):
        calls[0] += 1
        return np.full(len(candidates), calls[0] * 0.01)

    def generations(**changes):
        calls[0] = 0
        settings = EvolutionSettings(random=20, top=5, children=4, generations=12, patience=3, **changes)
        return len(evolve(creeping, within(0, 40), settings=settings).best) - 1

    assert generations(epsilon=0.02, exchanges=0, shocks=0) == 3
    assert generations(epsilon=0.02, exchanges=10, shocks=0) == 4  # exchanges come when children gain nothing
    assert generations(epsilon=0.2, exchanges=10, shocks=1) == 8  # and after a shock both again
    assert generations(epsilon=0.001) == 12


def test_exchanges_lead_out_of_a_dead_end():
    """Two variables must change at once; children that few, and none that random, do not find it in time."""

    def pit(candidates):
        return np.where((candidates[:, :2] == 2).all(1), 10.0, -candidates[:, :2].sum(1).astype(float))

    settings = EvolutionSettings(random=1, top=2, children=1, patience=1, shocks=0)
    start = np.zeros((1, 8), int)
    found = [evolve(pit, within(0, 40), start, replace(settings, exchanges=n), seed=3).scores[0] for n in (0, 300)]
    assert found == [0.0, 10.0]


def test_shocks_lead_to_what_no_exchange_reaches():
    """Where three neighbours act together, what cannot be bettered by small changes is often not the best."""
    space = Space("wide", tuple(Variable(f"v{i}", tuple(range(6)), False) for i in range(12)))
    table = np.random.default_rng(0).normal(size=(10, 6, 6, 6))

    def score(candidates):
        return sum(table[i, candidates[:, i], candidates[:, i + 1], candidates[:, i + 2]] for i in range(10))

    settings = EvolutionSettings(random=20, top=10, children=5, patience=1, exchanges=30)
    without, shocked = (
        [evolve(score, Constraints(space), settings=replace(settings, shocks=n), seed=s).scores[0] for s in range(5)]
        for n in (0, 3)
    )
    assert all(a <= b for a, b in zip(without, shocked, strict=True))
    assert sum(a < b for a, b in zip(without, shocked, strict=True)) >= 3


def test_exchanges_hold_every_single_change_the_most_promising_pairs_and_more():
    sizes, candidate = np.array([3, 4, 2]), np.array([1, 0, 1])
    added = np.array([0.0, 0, 5, 0, 1, 2, 3, 9, 0])
    found = exchanges(candidate, added, sizes, 5, np.random.default_rng(0))
    changed = (found != candidate).sum(1)
    assert (changed[:6] == 1).all() and len(np.unique(found[:6], axis=0)) == 6
    assert (changed[6:11] == 2).all() and len(found) == 6 + 5 + 5
    assert found[6].tolist() == [2, 0, 0], "5 - 0 and 9 - 0 are the two largest gains of different variables"
    assert (changed[11:] > 0).all() and (changed[11:] == 3).any()


def test_nothing_can_be_exchanged_where_there_is_no_choice():
    found = exchanges(np.array([0, 0]), np.zeros(2), np.array([1, 1]), 5, np.random.default_rng(0))
    assert found.shape == (0, 2)


def test_what_a_value_adds_is_found_of_an_additive_score():
    rng, sizes = np.random.default_rng(0), np.array([3, 4, 2])
    candidates, truth = rng.integers(0, sizes, (500, 3)), rng.normal(size=9)
    scores = truth[candidates + np.array([0, 3, 7])].sum(1)
    regression = Regression(candidates, scores, sizes)
    for start, size in ((0, 3), (3, 4), (7, 2)):
        expected = truth[start : start + size]
        part = regression.added[start : start + size]
        assert part - part.mean() == pytest.approx(expected - expected.mean(), abs=0.05)
    assert np.corrcoef(regression(candidates), scores)[0, 1] > 0.999


def test_a_regression_sees_how_two_variables_act_together():
    rng, sizes = np.random.default_rng(0), np.full(60, 3)  # more of them than it forms products of
    candidates = rng.integers(0, sizes, (2000, 60))
    a, b, *others = candidates.T.astype(float)
    scores = 2 * a + 3 * b + 2 * (a - 1) * (b - 1) + 0.1 * others[0]
    regression = Regression(candidates[:1500], scores[:1500], sizes)
    alone = regression.added[candidates + np.cumsum(sizes) - sizes].sum(1)
    unseen, whole = slice(1500, None), np.var(scores[1500:])
    assert np.var(regression(candidates[unseen]) - scores[unseen]) < 0.02 * whole
    assert np.var(alone[unseen] - scores[unseen]) > 0.1 * whole


def test_a_space_with_one_candidate():
    found = evolve(cost, within(0, 0), settings=QUICK)
    assert found.candidates.tolist() == [[0] * 8] and found.calls == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_that_of_all(seed):
    score = rugged(seed)
    found = pareto_front(score, within(0, 40), "cost", steps=41, seed=seed)
    scores, costs = score(ALL), cost(ALL)
    expected = [(c, s) for c, s in zip(costs, scores, strict=True) if not ((costs <= c) & (scores > s)).any()]
    expected = sorted({(c, s) for c, s in expected if not ((costs < c) & (scores >= s)).any()})
    shown = list(zip(cost(found.candidates), found.scores, strict=True))
    assert shown == sorted(shown) and set(shown) <= set(expected)
    assert len(shown) == len(expected)


def test_no_candidate_of_a_front_beats_another():
    space = load_space(FBNETV3)
    constraints = Constraints(space, [Constraint("macs", 400e6, 700e6)])
    found = pareto_front(
        lambda c: c[:, :30].sum(1),
        constraints,
        "macs",
        steps=3,
        settings=EvolutionSettings(random=30, top=10, children=5, generations=8),
    )
    macs = constraints.values(found.candidates, "macs")["macs"]
    assert (np.diff(macs) > 0).all() and (np.diff(found.scores) > 0).all() and len(macs) > 3
    assert macs.min() >= 400e6 and macs.max() <= 700e6


@pytest.mark.parametrize(
    ("name", "value"), [("random", 0), ("top", 1), ("children", 0), ("patience", 0), ("inherited", -1)]
)
def test_settings_that_make_no_sense(name, value):
    with pytest.raises(UsageError, match=f"evolution: {name} {value} is less than"):
        EvolutionSettings(**{name: value})
