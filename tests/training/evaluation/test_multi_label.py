"""Several labels per image: metrics, training from a CSV file, and what does not work."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data import build_dataset
from fbnetv3.errors import UsageError
from fbnetv3.modeling.tta import AugmentedClassifier
from fbnetv3.training import evaluate_classifier, train_classifier
from fbnetv3.training.evaluation.multi_label_metrics import multi_label_metrics

CONFIG = configs_folder() / "finetune" / "fbnetv3_digits.yaml"


def test_average_precision_and_f1_by_hand():
    """Class 0: ranks of its labels 1 and 3: AP (1/1 + 2/3) / 2; class 1: all found, no false one; class 2: absent."""
    probabilities = np.array([[0.9, 0.8, 0.1], [0.7, 0.2, 0.9], [0.6, 0.1, 0.2], [0.1, 0.7, 0.3]])
    targets = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    metrics = multi_label_metrics(probabilities, targets)
    assert metrics["map"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1) / 2)
    assert metrics["f1"] == pytest.approx(
        100 * (2 * 2 / (2 * 2 + 1) + 1) / 2
    )  # class 0: one false positive


def test_a_single_class_is_not_averaged_with_its_absence():
    probabilities, targets = np.array([[0.9], [0.8], [0.2], [0.1]]), np.array([[1], [0], [1], [0]])
    # One of two found, one false: precision and recall are a half
    assert multi_label_metrics(probabilities, targets)["f1"] == pytest.approx(50)
    assert multi_label_metrics(probabilities, np.ones((4, 1)))["f1"] == pytest.approx(100 * 2 / 3)
    twice = multi_label_metrics(np.tile(probabilities, 2), np.tile(targets, 2))
    assert multi_label_metrics(probabilities, targets) == pytest.approx(twice)


def test_views_of_independent_classes_are_averaged_as_probabilities():
    images = torch.tensor([[[[1.0, -2.0]]]])
    classifier = AugmentedClassifier(torch.nn.Flatten(), "flip", 2, multi_label=True)
    expected = (images.sigmoid() + images.flip(3).sigmoid()) / 2
    torch.testing.assert_close(classifier(images).sigmoid(), expected.flatten(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of digits with two labels: whether they are at least 5, and whether they are even."""
    folder = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 200), ("val", 60)):
        dataset = build_dataset("digits", "", split)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "labels"])
            for i in range(count):
                digit = int(dataset.targets[i])
                Image.fromarray(dataset.images[i]).save(folder / f"{split}{i}.png")
                labels = ["large"] * (digit >= 5) + ["even"] * (digit % 2 == 0)
                rows.writerow([f"{split}{i}.png", "|".join(labels)])
    return folder


def config(data, folder, *overrides):
    short = "DATA.NAME csv SOLVER.LOSS binary_cross_entropy SOLVER.EPOCHS 6 EVAL.PERIOD 3 SOLVER.TRUNK_LR_FACTOR 1"
    return load_config(
        CONFIG, ["DATA.ROOT", str(data), *short.split(), "OUTPUT_DIR", str(folder), *overrides]
    )


def test_training_evaluation_and_resuming(data, tmp_path):
    mixing = ["INPUT.MIXUP", "0.1", "INPUT.CUTMIX", "0.5", "SOLVER.CLASS_WEIGHTING", "balanced"]
    result = train_classifier(config(data, tmp_path, *mixing), progress=False)
    assert result.metrics["ema_map"] > 90 and result.metrics["ema_f1"] > 80  # by chance about 50
    assert [entry["epoch"] for entry in result.curve] == [3, 6]
    assert (
        train_classifier(config(data, tmp_path, *mixing), resume=True, progress=False).curve == result.curve
    )
    assert {path.name for path in tmp_path.iterdir()} >= {"model_best.pth", "curve.png"}
    # The report is about the same predictions
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert 100 * summary["macro_average_precision"] == pytest.approx(result.metrics["ema_map"])
    assert 100 * summary["macro_f1"] == pytest.approx(result.metrics["ema_f1"])
    again = evaluate_classifier(config(data, tmp_path, "MODEL.WEIGHTS", ""))
    assert again["map"] == pytest.approx(result.metrics["ema_map"])
    assert (
        evaluate_classifier(config(data, tmp_path, "MODEL.WEIGHTS", "", "EVAL.TTA", "five_crop")) == again
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["SOLVER.LOSS", "focal"],
            "SOLVER.LOSS focal needs one class per image.*: use binary_cross_entropy",
        ),
        (
            ["DATA.SAMPLING", "balanced"],
            "DATA.SAMPLING balanced needs one class per image: use class weights",
        ),
        (
            ["DISTILL.ARCH", "fbnetv3_digits", "DISTILL.WEIGHTS", "zoo://digits/fbnetv3_digits"],
            "DISTILL.ARCH: distillation needs one class per image",
        ),
    ],
)
def test_what_needs_one_class_per_image(data, tmp_path, overrides, message):
    with pytest.raises(UsageError, match=message):
        train_classifier(config(data, tmp_path / "run", *overrides))
