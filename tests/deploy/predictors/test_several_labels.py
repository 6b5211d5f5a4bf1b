"""Classifiers whose images have several labels, and test-time augmentation of classifiers in any runtime."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fbnetv3.data import Preprocessing
from fbnetv3.deploy import ClassifierPredictor, TorchRuntime, export_classifier, load
from fbnetv3.deploy.predictors.augmented_predictor import augment_predictor
from fbnetv3.errors import UsageError
from fbnetv3.modeling.tta import AugmentedClassifier

IMAGE = np.zeros((2, 2), np.uint8)


class FixedProbabilities:
    """A runtime whose sigmoids are the same for every image."""

    name = "fixed"

    def __init__(self, *probabilities):
        self.logits = torch.tensor([probabilities]).logit().numpy()

    def run(self, batch):
        return self.logits.repeat(len(batch), 0)


def predictor(*probabilities):
    classes = [f"label {i}" for i in range(len(probabilities))]
    preprocessing = Preprocessing(2, 2, (0.5,), (0.5,))
    return ClassifierPredictor(FixedProbabilities(*probabilities), preprocessing, classes, multi_label=True)


def labels(predictions):
    return [prediction.label for prediction in predictions]


def test_all_labels_that_reach_the_threshold_are_returned():
    several = predictor(0.4, 0.9, 0.6, 0.7, 0.8, 0.95, 0.85, 0.3)
    in_order = ["label 5", "label 1", "label 6", "label 4", "label 3", "label 2"]
    assert labels(several(IMAGE)) == in_order  # more than the five of one class per image
    assert labels(several(IMAGE, top=2)) == in_order[:2]
    assert labels(several(IMAGE, threshold=0.75)) == in_order[:4]
    assert labels(several(IMAGE, threshold=0)) == [*in_order, "label 0", "label 7"]
    assert [p.probability for p in several(IMAGE, top=1)] == pytest.approx([0.95])


def test_there_may_be_no_label():
    assert predictor(0.2, 0.4)([IMAGE, IMAGE]) == [[], []]


@pytest.mark.parametrize("threshold", [-0.1, 1.5])
def test_thresholds_are_probabilities(threshold):
    with pytest.raises(UsageError, match=rf"threshold: {threshold} must be in \[0, 1\]"):
        predictor(0.2)(IMAGE, threshold=threshold)


def test_one_class_per_image_has_no_threshold(exported, held_out):
    with pytest.raises(UsageError, match=r"threshold 0.5: fbnetv3_digits has one class per image; use top"):
        load(exported("onnx"))(held_out[0][0], threshold=0.5)


def test_the_exported_folder_knows(digits, held_out, tmp_path):
    """Its probabilities are those of each class on its own, and only those from 0.5 are labels."""
    export_classifier(
        digits.model, digits.preprocessing, digits.classes, tmp_path / "labels", multi_label=True
    )
    network = load(tmp_path / "labels")
    image = held_out[0][0]
    probabilities = torch.from_numpy(network.logits(image)[0]).sigmoid()
    expected = sorted(digits.classes[i] for i in range(10) if probabilities[i] >= 0.5)
    assert sorted(labels(network(image))) == expected
    assert len(network(image, threshold=0)) == 10


@pytest.mark.parametrize("views", ["flip", "five_crop", "ten_crop"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_augmentation_is_that_of_evaluation(digits, exported, held_out, views, multi_label):
    """Crops of 32 pixels from images of 40."""
    wide = replace(digits.preprocessing, resize=40)
    network = replace(load(exported("onnx")), preprocessing=wide, multi_label=multi_label)
    logits = augment_predictor(network, views).logits(held_out[0][:4])
    transform = (wide if views == "flip" else replace(wide, resolution=40)).transform()
    images = torch.stack([transform(image) for image in held_out[0][:4]])
    with torch.no_grad():
        expected = AugmentedClassifier(digits.model, views, 32, multi_label)(images)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_no_augmentation_and_unknown_views(digits):
    network = ClassifierPredictor(TorchRuntime(digits.model), digits.preprocessing, digits.classes)
    assert augment_predictor(network, "none") is network
    with pytest.raises(UsageError, match="views: 'mirror' must be one of none, flip, five_crop, ten_crop"):
        augment_predictor(network, "mirror")
