"""The transform of accuracies: invertible, and short at its lower end."""

import numpy as np
import pytest

from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform

ACCURACIES = np.array([1.0, 30.0, 69.0, 70.0, 70.5, 71.0, 71.5, 72.0, 73.0])


def test_values_are_standardized_and_the_inverse_gives_the_accuracies():
    transform = AccuracyTransform.fit(ACCURACIES)
    values = transform.transform(ACCURACIES)
    assert values.mean() == pytest.approx(0) and values.std() == pytest.approx(1)
    assert transform.inverse(values) == pytest.approx(ACCURACIES)
    assert (np.diff(values) > 0).all()


def test_failed_trainings_are_close_to_the_others():
    """The median is 70.5 and the 90th percentile 72.2, so accuracies below 68.8 count logarithmically."""
    values = AccuracyTransform.fit(ACCURACIES).transform(ACCURACIES)
    assert values[1] - values[0] < values[-1] - values[3]


def test_nothing_is_predicted_below_the_lowest_accuracy():
    assert AccuracyTransform.fit(ACCURACIES).inverse(np.array([-100.0])).tolist() == [1.0]


def test_equal_accuracies():
    transform = AccuracyTransform.fit(np.full(5, 70.0))
    assert transform.transform(np.array([70.0])).tolist() == [0.0]
    assert transform.inverse(np.array([0.0])).tolist() == [70.0]
