"""The evolutionary search finds the best feasible candidates, and reports constraints that none meets."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.evolution.evolution import EvolutionSettings, evolve, pareto_front
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.feasibility import ConstraintError
from fbnetv3.nars.space.search_space import Space, load_space, space_from_dict
from fbnetv3.nars.space.variables import Variable
from tests.nars.space.spaces import CONDITIONAL, FBNETV3

# 6561 candidates, few enough to enumerate
SMALL = Space("macro", tuple(Variable(f"layer{i}", (0, 1, 2), True) for i in range(8)))
ALL = np.stack(np.unravel_index(np.arange(3**8), SMALL.sizes), 1)
QUICK = EvolutionSettings(inherited=10, random=50, top=30, offspring=10, perturbations=1)


def cost(candidates):
    return (candidates * np.array([3, 2, 2, 5, 1, 1, 4, 2])).sum(1)


def within(low=0, high=20):
    return Constraints(SMALL, [Constraint("cost", low, high)], {"cost": cost})


def rugged(seed):
    """Return a score with effects of values, pairs and triples: no variable's best value is the same everywhere."""
    rng = np.random.default_rng(seed)
    single, pairs = rng.normal(size=(8, 3)), rng.normal(size=(7, 3, 3))
    triples = rng.normal(size=(6, 3, 3, 3))

    def score(c):
        total = sum(single[i, c[:, i]] for i in range(8)) + sum(
            pairs[i, c[:, i], c[:, i + 1]] for i in range(7)
        )
        return total + sum(triples[i, c[:, i], c[:, i + 1], c[:, i + 2]] for i in range(6))

    return score


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("bounds", [(0, 10), (0, 20), (18, 22), (0, 40)])
def test_finds_the_best_candidate(seed, bounds):
    score, constraints = rugged(seed), within(*bounds)
    result = evolve(score, constraints, seed=seed)
    assert result.scores[0] == score(ALL[constraints.feasible(ALL)]).max()


def test_scored_candidates_are_feasible_and_scored_once():
    scored, score = [], rugged(0)

    def recorded_score(candidates):
        scored.extend(map(tuple, candidates))
        return score(candidates)

    constraints = within(10, 15)
    result = evolve(recorded_score, constraints, ALL[::50], QUICK)
    assert constraints.feasible(np.array(scored)).all()
    assert len(scored) == len(set(scored)) == result.num_scored
    assert (
        constraints.feasible(result.candidates).all() and (result.scores == score(result.candidates)).all()
    )
    assert (np.diff(result.scores) <= 0).all() and (np.diff(result.best_scores) >= 0).all()
    assert result.scores[0] == result.best_scores[-1]


def test_two_budgets_on_table_2():
    space = load_space(FBNETV3)
    constraints = Constraints(space, [Constraint("macs", high=500e6), Constraint("params", high=8e6)])
    goal = space.sizes - 1
    result = evolve(lambda c: -np.abs(c - goal).sum(1), constraints, settings=QUICK)
    costs = constraints.column_values(result.candidates, "macs", "params")
    assert costs["macs"].max() <= 500e6 and costs["params"].max() <= 8e6
    recipe = space.variable_indices("recipe")
    assert (result.candidates[0, recipe] == goal[recipe]).all(), (
        "variables without cost have their best values"
    )


def test_results_depend_on_the_seed_only():
    first, second, third = (evolve(rugged(0), within(), settings=QUICK, seed=seed) for seed in (0, 0, 1))
    assert (first.candidates == second.candidates).all()
    assert first.best_scores == second.best_scores and first.num_scored == second.num_scored
    assert first.best_scores != third.best_scores or first.num_scored != third.num_scored


def test_inherits_the_best_feasible_trials():
    """A candidate that random search would not find is kept if it is feasible."""
    space = load_space(FBNETV3)
    best, cheap = space.sizes // 2, np.zeros(len(space), int)
    macs = Constraints(space).column_values(np.array([best, cheap]), "macs")["macs"]

    def score(candidates):
        return (candidates == best).all(1) * 2.0 + (candidates == cheap).all(1)

    settings = EvolutionSettings(random=20, top=5, offspring=2, patience=1)
    for budget, expected in ((macs[0], best), (macs[0] - 1, cheap)):
        constraints = Constraints(space, [Constraint("macs", high=float(budget))])
        result = evolve(score, constraints, np.array([best, cheap]), settings)
        assert (result.candidates[0] == expected).all()


def test_a_budget_that_no_candidate_meets_is_an_error_at_once_that_gives_the_nearest():
    space = load_space(FBNETV3)
    least = Constraints(space).column_values(np.zeros((1, len(space)), int), "macs")["macs"][0]
    start = time.perf_counter()
    with pytest.raises(
        ConstraintError, match="no candidate of fbnetv3 was found that meets .*; the nearest one has macs "
    ) as error:
        evolve(lambda c: np.zeros(len(c)), Constraints(space, [Constraint("macs", high=100e6)]))
    assert time.perf_counter() - start < 5
    nearest = float(re.search(r"nearest one has macs ([\d.e+]+)", str(error.value))[1])
    assert nearest <= least * 1.0001, "no candidate is cheaper than the one with all smallest values"


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda c: np.full(len(c), np.nan), "NaNs for"),
        (lambda c: np.where(np.arange(len(c)) == 3, np.nan, 0.0), r"with 1 NaN"),
        (lambda c: np.zeros((len(c), 2)), r"the score function returned shape \(\d+, 2\)"),
    ],
)
def test_invalid_scores(score, message):
    with pytest.raises(UsageError, match=message):
        evolve(score, within(), settings=QUICK)


def test_ends_when_the_gain_is_less_than_epsilon():
    """Every generation gains a little; epsilon decides whether that counts."""
    calls = [0]

    def creeping(candidates):
        calls[0] += 1
        return np.full(len(candidates), calls[0] * 0.01)

    def generations(**changes):
        calls[0] = 0
        settings = EvolutionSettings(
            random=20, top=5, offspring=4, max_generations=12, patience=3, **changes
        )
        return len(evolve(creeping, within(0, 40), settings=settings).best_scores) - 1

    assert generations(epsilon=0.02, swaps=0, perturbations=0) == 3
    # The local search follows the last generation
    assert generations(epsilon=0.02, swaps=10, perturbations=0) == 4
    assert generations(epsilon=0.2, swaps=10, perturbations=1) == 8  # both again after a perturbation
    assert generations(epsilon=0.001) == 12


def test_the_local_search_leaves_a_local_optimum():
    """Two variables must change at once; few offspring and no random candidates do not find it in time."""

    def pit(candidates):
        return np.where((candidates[:, :2] == 2).all(1), 10.0, -candidates[:, :2].sum(1).astype(float))

    settings = EvolutionSettings(random=1, top=2, offspring=1, patience=1, perturbations=0)
    start = np.zeros((1, 8), int)
    best = [
        evolve(pit, within(0, 40), start, replace(settings, swaps=n), seed=3).scores[0] for n in (0, 300)
    ]
    assert best == [0.0, 10.0]


def test_perturbations_reach_what_the_local_search_does_not():
    """Where three neighboring variables interact, a candidate without better neighbors is often not the best."""
    space = Space("wide", tuple(Variable(f"v{i}", tuple(range(6)), False) for i in range(12)))
    table = np.random.default_rng(0).normal(size=(10, 6, 6, 6))

    def score(candidates):
        return sum(
            table[i, candidates[:, i], candidates[:, i + 1], candidates[:, i + 2]] for i in range(10)
        )

    def best_scores(perturbations):
        settings = EvolutionSettings(
            random=20, top=10, offspring=5, patience=1, swaps=30, perturbations=perturbations
        )
        return np.array(
            [evolve(score, Constraints(space), settings=settings, seed=s).scores[0] for s in range(5)]
        )

    without, perturbed = best_scores(0), best_scores(3)
    assert (without <= perturbed).all()
    assert (without < perturbed).sum() >= 3


def test_a_single_feasible_candidate():
    result = evolve(cost, within(0, 0), settings=QUICK)
    assert result.candidates.tolist() == [[0] * 8] and result.num_scored == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_front_equals_that_of_all_candidates(seed):
    score = rugged(seed)
    front = pareto_front(score, within(0, 40), "cost", num_budgets=41, seed=seed)
    scores, costs = score(ALL), cost(ALL)
    expected = [
        (c, s) for c, s in zip(costs, scores, strict=True) if not ((costs <= c) & (scores > s)).any()
    ]
    expected = sorted({(c, s) for c, s in expected if not ((costs < c) & (scores >= s)).any()})
    points = list(zip(cost(front.candidates), front.scores, strict=True))
    assert points == sorted(points) and set(points) <= set(expected)
    assert len(points) == len(expected)


def test_no_candidate_of_a_front_beats_another():
    space = load_space(FBNETV3)
    constraints = Constraints(space, [Constraint("macs", 400e6, 700e6)])
    settings = EvolutionSettings(random=30, top=10, offspring=5, max_generations=8)
    front = pareto_front(lambda c: c[:, :30].sum(1), constraints, "macs", num_budgets=3, settings=settings)
    macs = constraints.column_values(front.candidates, "macs")["macs"]
    assert (np.diff(macs) > 0).all() and (np.diff(front.scores) > 0).all() and len(macs) > 3
    assert macs.min() >= 400e6 and macs.max() <= 700e6


@pytest.mark.parametrize(
    ("name", "value"), [("random", 0), ("top", 1), ("offspring", 0), ("patience", 0), ("inherited", -1)]
)
def test_invalid_settings(name, value):
    with pytest.raises(UsageError, match=rf"evolution\.{name}: {value} must be at least"):
        EvolutionSettings(**{name: value})


def test_finds_the_best_values_of_conditional_and_continuous_variables():
    space = space_from_dict(CONDITIONAL)
    index = {variable.name: i for i, variable in enumerate(space.variables)}

    def score(candidates):
        """Return 0 for sgd without Nesterov momentum, lr 1e-3, momentum 0.9 and 64 units in each of three layers."""
        assert (space.canonicalize(candidates) == candidates).all()
        positions = space.positions(candidates)
        errors = [np.abs(positions[:, index["lr"]] - 0.5), np.abs(positions[:, index["momentum"]] - 0.9)]
        errors += [np.abs(positions[:, index[name]] - 1 / 3) for name in ("width", "width_2", "width_3")]
        wrong = (candidates[:, [index["optimizer"], index["depth"]]] != 2).sum(1)
        return -wrong - (candidates[:, index["nesterov"]] != 1) - sum(errors)

    result = evolve(score, Constraints(space), settings=QUICK)
    best = space.decode(result.candidates[0])
    assert (best["optimizer"], best["nesterov"], best["depth"]) == ("sgd", False, 3)
    assert best["lr"] == pytest.approx(1e-3, rel=0.05) and best["momentum"] == pytest.approx(0.9, abs=0.01)
    assert [best[name] for name in ("width", "width_2", "width_3")] == pytest.approx([64] * 3, abs=3)
