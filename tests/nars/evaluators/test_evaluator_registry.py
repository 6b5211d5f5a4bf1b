"""Evaluators by registered name, by module, and as callables; checks of their learning curves."""

import functools

import numpy as np
import pytest
import torch

from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.nars.evaluators.evaluator_registry import (
    EVALUATORS,
    build_evaluator,
    continues_trials,
    evaluator_name,
    parse_learning_curve,
)
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict(
    {"name": "two", "variables": {"a": {"range": [0, 2]}, "b": {"choices": ["x", "y"]}}}
)


def constant(candidate, epochs, value=0.5):
    return [value] * epochs


class Multiple:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, candidate, epochs):
        return [self.factor * candidate["a"]] * epochs


def candidate(*vector):
    return Candidate(SPACE, np.array(vector))


def test_a_candidate_is_a_mapping_of_its_values():
    values = candidate(2, 1)
    assert dict(values) == {"a": 2, "b": "y"}
    assert len(values) == 2
    assert values.arch is None
    assert values.recipe is None


def test_a_candidate_is_trained_in_full_by_default():
    assert Candidate(SPACE, np.array([2, 1]), full_epochs=9).epochs == 9
    assert Candidate(SPACE, np.array([2, 1]), full_epochs=9, epochs=3).epochs == 3


def test_the_repr_of_a_candidate_is_one_short_line():
    assert repr(Candidate(SPACE, np.array([2, 1]), number=4)) == "Candidate(two 4: a=2, b='y')"
    variables = {f"x{i}": {"choices": [0.1 + 0.2, "long" * 20]} for i in range(8)}
    space = space_from_dict({"name": "wide", "variables": variables})
    shown = repr(Candidate(space, np.array([0, 1] + [0] * 6)))
    assert shown == (
        "Candidate(wide 0: x0=0.3, x1='longlon...longlong', x2=0.3, x3=0.3, x4=0.3, x5=0.3, ...)"
    )


@pytest.mark.parametrize(
    ("evaluator", "arguments", "value"),
    [
        (constant, {}, 0.5),
        (constant, {"value": 2.0}, 2.0),
        (f"{__name__}:constant", {}, 0.5),
        (f"{__name__}:Multiple", {"factor": 3}, 6.0),
        (Multiple(2), {}, 4.0),
    ],
)
def test_build_evaluator(evaluator, arguments, value):
    assert build_evaluator(evaluator, arguments)(candidate(2, 0), 2) == [value] * 2


class Checked:
    continues = True

    def check(self, candidate):
        raise UsageError("no data")

    def clean_up(self, folders):
        return [folder.upper() for folder in folders]

    def __call__(self, candidate, epochs, value=0.5):
        return [value] * epochs


def test_arguments_keep_the_optional_parts_of_an_evaluator():
    evaluator = build_evaluator(Checked(), {"value": 2.0})
    assert evaluator(candidate(0, 0), 1) == [2.0]
    assert evaluator.continues
    assert evaluator.clean_up(["a"]) == ["A"]
    with pytest.raises(UsageError, match="no data"):
        evaluator.check(candidate(0, 0))
    assert not hasattr(build_evaluator(constant, {"value": 2.0}), "continues")


def test_a_function_can_be_marked_as_continuing_trials():
    @continues_trials
    def evaluate(candidate, epochs, value=0.5):
        return [value] * epochs

    assert build_evaluator(evaluate).continues
    assert build_evaluator(evaluate, {"value": 2.0}).continues


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
        ("no.such.module:f", {}, "'no.such.module' cannot be imported"),
        (f"{__name__}:konstant", {}, "has no konstant: did you mean constant"),
        (f"{__name__}:SPACE", {}, "is not callable"),
        (3, {}, "is not callable"),
        (f"{__name__}:Multiple", {}, "missing a required argument: 'factor'"),
        (constant, {"speed": 1}, "unexpected keyword argument 'speed'"),
        ("table", {"file": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_invalid_evaluators(evaluator, arguments, error):
    with pytest.raises((UsageError, UnknownNameError), match=error):
        build_evaluator(evaluator, arguments)


def test_names():
    assert evaluator_name("table") == "table"
    assert evaluator_name(constant) == f"{__name__}:constant"
    assert evaluator_name(Multiple(1)) == f"{__name__}:Multiple"


def test_valid_learning_curves():
    assert parse_learning_curve([1, 2.5], 2) == (1.0, 2.5)
    assert parse_learning_curve(np.array([3]), 1) == (3.0,)
    assert parse_learning_curve(0.75, 1) == (0.75,)


@pytest.mark.parametrize(
    "curve",
    [
        np.array([1.0, 2.5], np.float16),
        (np.float32(1), np.array(2.5)),
        torch.tensor([1.0, 2.5], requires_grad=True),
        torch.tensor([1.0, 2.5], dtype=torch.bfloat16),
        [torch.tensor(1.0, requires_grad=True), torch.tensor(2.5, dtype=torch.bfloat16)],
    ],
)
def test_learning_curves_may_be_arrays_and_tensors(curve):
    assert parse_learning_curve(curve, 2) == (1.0, 2.5)


@pytest.mark.parametrize("curve", [3, 3.0, np.float64(3), np.array(3.0), torch.tensor(3.0)])
def test_a_number_is_a_learning_curve_of_one_epoch(curve):
    assert parse_learning_curve(curve, 1) == (3.0,)


@pytest.mark.parametrize(
    ("curve", "error"),
    [
        ([1.0], "expected one accuracy for each of 2 epochs, got 1"),
        ([1.0, 2.0, 3.0], "expected one.*, got 3"),
        ([[1.0, 2.0]], r"expected one accuracy for each of 2.*, got \[\[1.0, 2.0\]\]"),
        (None, "expected one accuracy for each of 2.*, got None"),
        ("good", "expected one accuracy.*, got 'good'"),
        ([1.0, float("nan")], "the accuracy after epoch 2 is nan"),
        (torch.tensor([1.0, float("nan")]), "the accuracy after epoch 2 is nan"),
        (torch.ones(1, 2), r"expected one accuracy.*, got \[\[1.0, 1.0\]\]"),
        ([float("-inf"), 1.0], "the accuracy after epoch 1 is -inf"),
        ({"top1": 3}, "expected one accuracy for each of 2 epochs"),
    ],
)
def test_invalid_learning_curves(curve, error):
    with pytest.raises(UsageError, match=error):
        parse_learning_curve(curve, 2)


def test_a_partial_of_the_users_own_keeps_the_attributes_and_the_name():
    @continues_trials
    def scaled(candidate, epochs, factor):
        return [factor] * epochs

    evaluator = functools.partial(scaled, factor=3)
    built = build_evaluator(evaluator)
    assert built.continues and built(candidate(0, 0), 2) == [3, 3]
    assert not hasattr(evaluator, "continues")
    assert evaluator_name(evaluator) == evaluator_name(scaled)
