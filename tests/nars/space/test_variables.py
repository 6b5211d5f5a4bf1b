"""Variables: values of ranges and choices, linear and logarithmic scales."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fbnetv3.nars.space.search_space import space_from_dict
from fbnetv3.nars.space.variables import NUM_LEVELS, ContinuousValues, SpaceError
from tests.hardening.conftest import examples


def variable(**entry):
    (parsed,) = space_from_dict({"name": "one", "variables": {"x": entry}}).variables
    return parsed


@pytest.mark.parametrize(
    ("bounds", "values"),
    [
        ([1, 4], (1, 2, 3, 4)),
        ((1, 4), (1, 2, 3, 4)),
        ([2, 8, 3], (2, 5, 8)),
        ([0.0, 0.5, 0.1], (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
        ([np.int64(1), np.int64(2)], (1, 2)),
        ([3.0, 3.0], (3.0,)),
    ],
)
def test_listed_ranges(bounds, values):
    assert variable(range=bounds).values == values
    assert not variable(range=bounds).is_continuous


@pytest.mark.parametrize("bounds", [[0.0, 1.0], [0, 1.0], ["0e0", "1e0"], [np.float32(0), 1]])
def test_float_bounds_without_a_step_are_continuous(bounds):
    x = variable(range=bounds)
    assert x.is_continuous and not x.is_categorical and len(x) == NUM_LEVELS == 1_000_001
    assert [x.values[i] for i in (0, 1, 250_000, -1)] == [0, 1e-6, 0.25, 1]
    assert x.values[:3] == (0, 1e-6, 2e-6)


def test_a_scale_multiplies_a_continuous_range():
    assert variable(range=[20.0, 30.0], scale=0.001).values == ContinuousValues(0.02, 0.03)
    assert variable(range=[20.0, 30.0], scale=-1).values == ContinuousValues(-30, -20)
    assert variable(range=[20, 22], scale="1e-3").values == (0.02, 0.021, 0.022)


def test_a_value_of_a_continuous_variable_becomes_the_nearest_level():
    values = variable(range=[0.0, 1.0]).values
    assert values.index(0.1234567) == 123_457 and values[123_457] == 0.123457
    assert 0.5 in values and 1 in values and 1.1 not in values and "a" not in values and True not in values
    assert values.index(1 + 1e-12) == 1_000_000
    with pytest.raises(ValueError, match=r"1.5 is not in \[0, 1\]"):
        values.index(1.5)


def test_values_around_zero_have_no_rounding_errors():
    values = variable(range=[-0.3, 0.7]).values
    assert values[300_000] == 0 and str(values[300_000]) == "0.0"
    assert values[0] == -0.3 and values[-1] == 0.7


def test_levels_on_a_log_scale():
    lr = variable(range=["1e-5", "1e-1"], log=True)
    assert lr.values[0] == 1e-5 and lr.values[-1] == 1e-1 and lr.values[500_000] == 1e-3
    assert lr.values.index(1e-4) == 250_000
    assert lr.log and lr.positions(np.array([250_000])) == 0.25


@examples(100)
@given(
    low=st.floats(-1e4, 1e4),
    width=st.floats(1e-3, 1e6),
    log=st.booleans(),
    level=st.integers(0, NUM_LEVELS - 1),
)
def test_levels_are_distinct_and_their_indices_are_found(low, width, log, level):
    low = abs(low) + 1e-6 if log else low
    values = variable(range=[float(low), float(low + width)], log=log).values
    assert values.index(values[level]) == level
    assert values[0] == low and low <= values[level] <= values[-1] == low + width


def test_a_log_scale_gives_each_factor_the_same_share():
    """Half of the widths are below the geometric mean of the bounds, 128."""
    width = variable(range=[16, 1024], log=True)
    assert width.values == tuple(range(16, 1025))
    assert width.positions(np.array([0, 128 - 16, 1008])) == pytest.approx([0, 0.5, 1])
    values = 16 + width.from_unit((np.arange(100_000) + 0.5) / 100_000)
    assert set(values) == set(range(16, 1025))
    # Optuna draws from the same distribution, with each integer's cell half a unit wide on both sides
    for limit in (16, 20, 127, 500):
        share = math.log((limit + 0.5) / 15.5) / math.log(1024.5 / 15.5)
        assert (values <= limit).mean() == pytest.approx(share, abs=1e-3)


@examples(30)
@given(
    size=st.integers(1, 300),
    low=st.integers(1, 1000),
    step=st.integers(1, 50),
    log=st.booleans(),
)
def test_every_value_has_points(size, low, step, log):
    x = variable(range=[low, low + step * (size - 1), step], log=log)
    positions = x.positions(np.arange(size))
    assert (np.diff(positions) > 0).all() and positions[0] == 0 and positions[-1] == (size > 1)
    # The smallest cell is that of the largest value on a log scale from 1 to 300
    indices = x.from_unit(np.linspace(0, 1, 20_000, endpoint=False))
    assert (np.diff(indices) >= 0).all() and set(indices) == set(range(size))


def test_ordered_choices_are_evenly_spaced():
    batch = variable(choices=[32, 64, 256], ordered=True)
    assert not batch.is_categorical and batch.positions(np.arange(3)).tolist() == [0, 0.5, 1]
    assert variable(choices=[32, 64, 256]).is_categorical


def test_choices_of_any_kind():
    """None, lists as single values, and NumPy scalars, as hyperparameters of scikit-learn have them."""
    choices = [None, "sqrt", True, 1, 0.5, [16, 32], (16, [8, "a"]), np.float64(0.25), np.int32(7)]
    x = variable(choices=choices)
    assert x.values == (None, "sqrt", True, 1, 0.5, (16, 32), (16, (8, "a")), 0.25, 7)
    assert [type(value) for value in x.values[-2:]] == [float, int]
    for index, choice in enumerate(choices):
        assert x.index(choice) == index
    assert x.index(False) is None and x.index([16]) is None
    assert variable(choices=np.arange(3)).values == (0, 1, 2)
    assert pickle.loads(pickle.dumps(x)) == x


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"range": [0.0, 1.0], "log": True}, r"range: \[0.0, 1.0\] must have low > 0"),
        ({"range": [-4, 8], "log": True}, r"range: \[-4, 8\] must have low > 0"),
        ({"range": [1, 8], "log": True, "scale": -1}, "range: .* scale > 0, for a log scale"),
        ({"range": [1, 8], "log": "yes"}, "log: 'yes' must be true or false"),
        ({"choices": [1, 8], "log": True}, "log: unknown key"),
        ({"range": [1, 8], "ordered": True}, "ordered: unknown key"),
        ({"choices": [1, 8], "ordered": 1}, "ordered: 1 must be true or false"),
        ({"range": [1.0, 1.0 + 1e-12]}, "range: .* too close for a continuous variable"),
        ({"range": [1e12, 1e12 + 2, 1]}, "range: .* agree in their first 10 digits"),
        ({"range": [1.0, float("inf")]}, r"range: .* must be \[low, high\]"),
        ({"range": [2.0, 1.0]}, "range: .* must have low <= high"),
        ({"range": "1-2"}, r"range: '1-2' must be \[low, high\]"),
        ({"choices": "ab"}, "choices: 'ab' must be a list"),
        ({"choices": [[1, 2], (1, 2)]}, "choices: .* contains duplicate values"),
        ({"choices": [[1, {}]]}, "choices: .* must be a list of strings"),
    ],
)
def test_invalid_variables(entry, message):
    with pytest.raises(SpaceError, match=rf"variables\.x\.{message}"):
        variable(**entry)


def test_variations_of_large_variables_are_near_and_far():
    present = np.array([0, 400_000, 1_000_000])
    values = variable(range=[0.0, 1.0]).variations(present, 256, np.random.default_rng(0))
    assert values.shape == (3, 256) and values.min() == 0 and values.max() == 1_000_000
    for row, index in zip(values, present, strict=True):
        distances = np.abs(row - index)
        assert all((distances[distances > 0] < limit).sum() > 5 for limit in (100, 10_000))
        # A tenth of the values are in each half
        assert min((row < 500_000).sum(), (row > 500_000).sum()) > 25
    many = variable(choices=list(range(1000))).variations(present[:1], 256, np.random.default_rng(0))
    assert len(np.unique(many)) > 240


def test_variations_of_small_variables_are_all_values():
    values = variable(range=[1, 9]).variations(np.array([0, 3]), 8, np.random.default_rng(0))
    assert values.tolist() == [list(range(9))] * 2
