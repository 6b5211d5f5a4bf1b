"""Importance of the variables of a space for a function of its candidates."""

import numpy as np
import pytest

from fbnetv3.nars.report.variable_importance import measure_importance
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict(
    {
        "name": "two",
        "variables": {
            "fixed": {"choices": ["only"]},
            "size": {"range": [0, 4]},
            "kind": {"choices": ["a", "b"]},
            "rate": {"range": [0.0, 1.0], "when": {"kind": "b"}},
        },
    }
)


def by_name(importance):
    return {variable["name"]: variable for variable in importance["variables"]}


def test_shares_of_an_additive_function():
    """The variance of an integer from 0 to 4 is 2, that of a coin is 1/4."""
    importance = measure_importance(lambda candidates: candidates[:, 1] + 2.0 * candidates[:, 2], SPACE)
    variables = by_name(importance)
    assert set(variables) == {"size", "kind", "rate"}
    assert variables["size"]["first"] == pytest.approx(2 / 3, abs=0.02)
    assert variables["kind"]["total"] == pytest.approx(1 / 3, abs=0.02)
    assert variables["rate"]["total"] == 0
    assert sum(pair["share"] for pair in importance["pairs"]) == pytest.approx(0, abs=0.02)


def test_the_marginal_means_are_those_of_active_values():
    importance = measure_importance(
        lambda candidates: candidates[:, 1] * 10 + SPACE.positions(candidates)[:, 3], SPACE
    )
    variables = by_name(importance)
    size = variables["size"]["marginal"]
    assert size["indices"] == [0, 1, 2, 3, 4]
    assert size["means"] == pytest.approx([0.25, 10.25, 20.25, 30.25, 40.25], abs=0.05)
    rate = variables["rate"]["marginal"]
    assert 10 < len(rate["indices"]) <= 24
    assert np.array(rate["means"]) - 20 == pytest.approx(np.array(rate["indices"]) / 1e6, abs=1.0)


def test_pairs_explain_what_variables_do_not_explain_alone():
    def agree(candidates):
        return (candidates[:, 1] >= 2) == (candidates[:, 2] == 1)

    (pair, *_) = measure_importance(agree, SPACE)["pairs"]
    assert pair["names"] == ["size", "kind"]
    assert pair["share"] > 0.9
