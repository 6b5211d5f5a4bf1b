"""Evaluators by name, by module, as they are; their answers; tables."""

import json

import numpy as np
import pytest

from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.nars.evaluators.evaluator_registry import (
    EVALUATORS,
    CurveError,
    TableError,
    TableEvaluator,
    build_evaluator,
    check_curve,
    name_of,
)
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict({"name": "two", "variables": {"a": {"range": [0, 2]}, "b": {"choices": ["x", "y"]}}})


def constant(candidate, epochs, value=0.5):
    return [value] * epochs


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, candidate, epochs):
        return [self.factor * candidate["a"]] * epochs


def candidate(*vector):
    return Candidate(SPACE, np.array(vector))


def test_a_candidate_is_a_mapping_of_its_values():
    found = candidate(2, 1)
    assert dict(found) == {"a": 2, "b": "y"}
    assert len(found) == 2
    assert found.arch is None
    assert found.recipe is None


@pytest.mark.parametrize(
    ("evaluator", "arguments", "value"),
    [
        (constant, {}, 0.5),
        (constant, {"value": 2.0}, 2.0),
        (f"{__name__}:constant", {}, 0.5),
        (f"{__name__}:Scaled", {"factor": 3}, 6.0),
        (Scaled(2), {}, 4.0),
    ],
)
def test_evaluators(evaluator, arguments, value):
    assert build_evaluator(evaluator, arguments)(candidate(2, 0), 2) == [value] * 2


def test_a_registered_evaluator():
    EVALUATORS.register(constant, name="mine")
    try:
        assert build_evaluator("mine")(candidate(0, 0), 1) == [0.5]
    finally:
        EVALUATORS.remove("mine")


@pytest.mark.parametrize(
    ("evaluator", "arguments", "error"),
    [
        ("tabel", {}, "unknown evaluator 'tabel': did you mean table"),
        ("no.such.module:f", {}, r"no.such.module cannot be imported"),
        (f"{__name__}:konstant", {}, "has no konstant: did you mean constant"),
        (f"{__name__}:SPACE", {}, "is not callable"),
        (3, {}, "is not callable"),
        (f"{__name__}:Scaled", {}, "missing a required argument: 'factor'"),
        (constant, {"speed": 1}, "unexpected keyword argument 'speed'"),
        ("table", {"file": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_evaluators_that_are_none(evaluator, arguments, error):
    with pytest.raises((UsageError, UnknownNameError), match=error):
        build_evaluator(evaluator, arguments)


def test_names():
    assert name_of("table") == "table"
    assert name_of(constant) == f"{__name__}:constant"
    assert name_of(Scaled(1)) == f"{__name__}:Scaled"


def test_curves():
    assert check_curve([1, 2.5], 2) == (1.0, 2.5)
    assert check_curve(np.array([3]), 1) == (3.0,)
    assert check_curve(0.75, 1) == (0.75,)


@pytest.mark.parametrize(
    ("curve", "error"),
    [
        ([1.0], "gave 1 accuracies for 2 epochs"),
        ([1.0, 2.0, 3.0], "gave 3 accuracies for 2 epochs"),
        ([[1.0, 2.0]], r"gave an array \(1, 2\), not an accuracy for each of 2"),
        (None, "gave None, not an accuracy for each of 2"),
        ("good", "gave 'good', not an accuracy"),
        ([1.0, float("nan")], "the accuracy after epoch 2 is nan"),
        ([float("-inf"), 1.0], "the accuracy after epoch 1 is -inf"),
        ({"top1": 3}, "not an accuracy for each of 2 epochs"),
    ],
)
def test_curves_that_are_none(curve, error):
    with pytest.raises(CurveError, match=error):
        check_curve(curve, 2)


def test_a_table(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"0x": {"acc": 1.5}, "1x": {"acc": [1, 2, 3]}, "2y": {}}))
    evaluate = TableEvaluator(file, "acc")
    assert evaluate(candidate(0, 0), 2) == [1.5, 1.5]
    assert evaluate(candidate(1, 0), 2) == [1, 2]
    with pytest.raises(TableError, match="has no candidate 2x"):
        evaluate(candidate(2, 0), 1)
    with pytest.raises(TableError, match="2y: no acc"):
        evaluate(candidate(2, 1), 1)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '{"a": 3}'])
def test_tables_that_are_none(tmp_path, content):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(TableError, match="table.json: is not"):
        TableEvaluator(tmp_path / "table.json")
