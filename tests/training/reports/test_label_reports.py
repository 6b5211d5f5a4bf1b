"""Reports on several labels per image: numbers by hand and by scikit-learn's own functions for several labels."""

import csv
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import (
    average_precision_score,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
)

from fbnetv3.data import Batch
from fbnetv3.training.reports.evaluation_report import write_evaluation_report
from fbnetv3.training.reports.label_metrics import (
    average_over_labels,
    compute_label_metrics,
    count_label_decisions,
)
from fbnetv3.training.reports.label_mistakes import draw_label_mistakes, rank_label_mistakes
from fbnetv3.training.reports.predictions import LabelPredictions, PredictionRecorder
from tests.training.reports.test_reports import PREPROCESSING, make_dataset, make_predictions

FILES = {"classes.csv", "confusion.csv", "mistakes.csv", "mistakes.png", "summary.json"}
CLASSES = ["red", "round", "absent"]
# Red: 2 of 2 found, 1 false; round: 1 of 2 found; absent: nothing has it, nothing is predicted to
TARGETS = [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
PROBABILITIES = [[0.9, 0.8, 0.1], [0.75, 0.25, 0.2], [0.5, 0.1, 0.2], [0.1, 0.3, 0.3]]


def label_predictions(targets=TARGETS, probabilities=PROBABILITIES):
    targets = np.array(targets, bool)
    names = [f"{i}.png" for i in range(len(targets))]
    return LabelPredictions(names, np.arange(len(targets)), targets, np.array(probabilities, np.float32))


def rows_of(path):
    return list(csv.DictReader(path.open()))


def test_metrics_of_each_label_by_hand():
    red, round, absent = compute_label_metrics(label_predictions(), CLASSES)
    assert (red.precision, red.recall, red.f1) == pytest.approx((2 / 3, 1, 0.8))
    assert (red.support, red.predicted) == (2, 3)
    # Its images rank first and third
    assert red.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (round.precision, round.recall, round.f1) == pytest.approx((1, 0.5, 2 / 3))
    assert (absent.precision, absent.recall, absent.f1, absent.average_precision) == (None,) * 4


def test_averages_by_hand():
    predictions = label_predictions()
    averages = average_over_labels(predictions, compute_label_metrics(predictions, CLASSES))
    assert averages["exact_match"] == 3 / 4  # all but the second image
    # 3 of 4 labels found, 3 of 4 predictions right
    assert (averages["micro_precision"], averages["micro_recall"], averages["micro_f1"]) == (
        0.75,
        0.75,
        0.75,
    )
    # Over the two labels that some image has
    assert averages["macro_precision"] == pytest.approx((2 / 3 + 1) / 2)
    assert averages["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_metrics_agree_with_scikit_learns_for_several_labels():
    generator = np.random.default_rng(0)
    targets = generator.random((50, 4)) < 0.4
    probabilities = generator.random((50, 4))
    predictions = label_predictions(targets, probabilities)
    classes = list("abcd")
    metrics = compute_label_metrics(predictions, classes)
    averages = average_over_labels(predictions, metrics)
    predicted = predictions.predicted
    expected = precision_recall_fscore_support(targets, predicted)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [getattr(metric, name) for metric in metrics] == pytest.approx(values.tolist())
    for kind in ("micro", "macro"):
        expected = precision_recall_fscore_support(targets, predicted, average=kind)[:3]
        assert [averages[f"{kind}_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(
            expected
        )
        average_precision = average_precision_score(targets, predictions.probabilities, average=kind)
        assert averages[f"{kind}_average_precision"] == pytest.approx(average_precision)
    counts = [
        [[row.true_negatives, row.false_positives], [row.false_negatives, row.true_positives]]
        for row in count_label_decisions(predictions, classes)
    ]
    assert counts == multilabel_confusion_matrix(targets, predicted).tolist()


def test_a_single_label_is_counted_as_one():
    predictions = label_predictions([[1], [0], [1]], [[0.9], [0.9], [0.9]])
    [metric] = compute_label_metrics(predictions, ["only"])
    assert (metric.precision, metric.recall, metric.support) == (pytest.approx(2 / 3), 1, 2)
    assert average_over_labels(predictions, [metric])["micro_precision"] == pytest.approx(2 / 3)
    [counts] = count_label_decisions(predictions, ["only"])
    assert (counts.true_negatives, counts.false_positives, counts.true_positives) == (0, 1, 2)


def test_mistakes_are_ranked_by_confidence():
    # Wrong are the second image's red, predicted with 0.75, and its round, missed with 0.25: equally confident
    predictions = label_predictions()
    assert rank_label_mistakes(predictions) == [(1, 0), (1, 1)]
    surer = label_predictions(TARGETS, [PROBABILITIES[0], [0.75, 0.125, 0.2], *PROBABILITIES[2:]])
    assert rank_label_mistakes(surer) == [(1, 1), (1, 0)]
    figure = draw_label_mistakes(surer, CLASSES, make_dataset([0] * 4, CLASSES), PREPROCESSING)
    texts = [(text.get_text(), text.get_color()) for text in figure.axes[0].texts]
    assert texts == [("12.5% round", "tab:green"), ("75.0% red", "tab:red")]
    assert "2 of 12 labels are wrong" in figure.texts[0].get_text()


def test_the_report_replaces_an_earlier_one(tmp_path, caplog):
    classes = ["a", "b"]
    dataset = make_dataset([0, 1], classes)
    write_evaluation_report(tmp_path, make_predictions([0, 1], [1, 1]), classes, dataset, PREPROCESSING)
    with caplog.at_level(logging.INFO):
        dataset = make_dataset([0] * 4, CLASSES)
        write_evaluation_report(tmp_path, label_predictions(), CLASSES, dataset, PREPROCESSING, "w", "d")
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    Image.open(tmp_path / "mistakes.png").verify()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["weights"], summary["images"], summary["threshold"]) == ("w", 4, 0.5)
    assert summary["micro_f1"] == 0.75
    assert [row["average_precision"] for row in rows_of(tmp_path / "classes.csv")] == [
        "0.833333",
        "0.833333",
        "",
    ]
    confusion = rows_of(tmp_path / "confusion.csv")
    assert confusion[1] == {
        "class": "round",
        "true negatives": "2",
        "false positives": "0",
        "false negatives": "1",
        "true positives": "1",
    }
    mistakes = rows_of(tmp_path / "mistakes.csv")
    assert [(row["image"], row["label"], row["mistake"]) for row in mistakes] == [
        ("1.png", "red", "false"),
        ("1.png", "round", "missed"),
    ]


def test_images_without_any_label(tmp_path):
    predictions = label_predictions([[0], [0]], [[0.1], [0.2]])
    write_evaluation_report(tmp_path, predictions, ["a"], make_dataset([0, 0], ["a"]), PREPROCESSING)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["exact_match"], summary["macro_f1"], summary["micro_recall"]) == (1.0, None, None)
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_probabilities_of_all_processes_are_in_the_order_of_the_dataset():
    recorder = PredictionRecorder()
    for index, logit in ((1, 2.0), (0, -2.0)):
        logits = torch.tensor([[logit, 0.0]])
        targets = torch.tensor([[float(index), 1.0]])
        recorder.add(Batch(torch.zeros(1), targets, [index]), logits, targets)
    predictions = recorder.gather()
    assert predictions.names == ["image 0", "image 1"]
    assert predictions.targets.tolist() == [[False, True], [True, True]]
    sigmoid = torch.tensor([-2.0, 2.0]).sigmoid().tolist()
    assert predictions.probabilities[:, 0].tolist() == pytest.approx(sigmoid)
    assert predictions.predicted.tolist() == [[False, True], [True, True]]  # 0.5 is enough
