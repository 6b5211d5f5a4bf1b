"""Class weights, and epochs in which all classes are equally frequent."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from fbnetv3.data import Preprocessing, build_loader
from fbnetv3.data.classes.class_balance import balanced_order, balanced_weights, class_weights
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.data.samplers import EpochSampler
from fbnetv3.errors import UsageError

TARGETS = np.repeat([0, 1, 2], [70, 25, 5])
CLASSES = ["cat", "dog", "a=b"]


def dataset(targets=TARGETS):
    return ArrayDataset("images", np.zeros((len(targets), 4, 4), np.uint8), targets, CLASSES)


def order(seed=0, targets=TARGETS):
    return balanced_order(targets)(torch.Generator().manual_seed(seed))


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=TARGETS)
    np.testing.assert_allclose(balanced_weights(np.bincount(TARGETS)), expected)
    np.testing.assert_allclose(class_weights(dataset(), "balanced", []), expected)


def test_a_class_without_images_does_not_change_the_weights_of_the_others():
    expected = compute_class_weight("balanced", classes=np.array([0, 2]), y=TARGETS[TARGETS != 1])
    assert balanced_weights(np.array([70, 0, 5])).tolist() == pytest.approx([expected[0], 1, expected[1]])


def test_weights_by_name_have_mean_1_over_the_images():
    weights = class_weights(dataset(), "none", ["dog=2", "a=b=10"])
    assert weights / weights[0] == pytest.approx([1, 2, 10])
    assert weights[TARGETS].mean() == pytest.approx(1)
    assert class_weights(dataset(), "none", []) is None


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("dgo=2", r"SOLVER.CLASS_WEIGHTS 'dgo=2' must be CLASS=WEIGHT: did you mean dog\?"),
        ("dog", r"'dog' must be CLASS=WEIGHT: did you mean dog\?"),
        ("dog=x", "'dog=x': the weight must be a number of at least 0"),
        ("dog=-1", "'dog=-1': the weight must be a number of at least 0"),
        ("dog=nan", "'dog=nan': the weight must be a number of at least 0"),
    ],
)
def test_wrong_weights(item, message):
    with pytest.raises(UsageError, match=message):
        class_weights(dataset(), "none", [item])


def test_classes_are_equally_frequent_and_images_within_a_class_too():
    indices = order().tolist()
    assert len(indices) == 100
    assert sorted(np.bincount(TARGETS[indices])) == [33, 33, 34]
    for target, draws in ((0, {1}), (1, {1, 2}), (2, {6, 7})):
        counts = Counter(index for index in indices if TARGETS[index] == target)
        assert set(counts.values()) <= draws, target
    assert len({index for index in indices if TARGETS[index] == 2}) == 5


def test_the_order_depends_on_the_generator_alone():
    assert torch.equal(order(3), order(3)) and not torch.equal(order(3), order(4))


def test_processes_share_balanced_batches_and_epochs_resume():
    full, *parts = (
        EpochSampler(100, 12, 4, rank, size, balanced_order(TARGETS))
        for rank, size in ((0, 1), (0, 3), (1, 3), (2, 3))
    )
    keys = list(full)
    shared = [list(part) for part in parts]
    for batch in range(8):
        joined = [key for part in shared for key in part[4 * batch : 4 * batch + 4]]
        assert joined == keys[12 * batch : 12 * batch + 12]
    full.first_batch = 3
    assert list(full) == keys[36:]


def test_every_draw_of_an_image_has_an_augmentation_of_its_own():
    keys = list(EpochSampler(100, 10, 4, order=balanced_order(TARGETS)))
    assert len(set(keys)) == 100
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9)).astype(np.uint8)
    noisy = build_loader(
        ArrayDataset("two", images, np.array([0, 1]), ["a", "b"]),
        lambda image: torch.rand(1, 2, 2),
        batch_size=2,
        training=True,
        preprocessing=Preprocessing(2, 2, (0.5,), (0.5,)),
    ).dataset
    draws = [noisy[key].pixels for key in ((0, 1), (0, 1, 1), (0, 1, 2))]
    assert torch.equal(draws[0], noisy[0, 1].pixels)
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])
