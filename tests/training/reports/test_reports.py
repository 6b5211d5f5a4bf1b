"""Reports on predictions: the numbers are scikit-learn's definitions, worked out by hand; the pictures can be drawn."""

import csv
import io
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fbnetv3.data import Batch, Preprocessing
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.training import evaluate
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.reports.augmentation_grid import denormalize, draw_augmented_images
from fbnetv3.training.reports.calibration import compute_calibration, draw_reliability_diagram
from fbnetv3.training.reports.class_metrics import average_over_classes, class_table, compute_class_metrics
from fbnetv3.training.reports.confusion import (
    compute_confusion_matrix,
    draw_confusion_matrix,
    most_frequent_confusions,
)
from fbnetv3.training.reports.evaluation_report import report_folder, write_evaluation_report
from fbnetv3.training.reports.mistakes import draw_mistakes, rank_mistakes, write_mistakes
from fbnetv3.training.reports.predictions import PredictionRecorder, Predictions
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.plotting import figure_png

FILES = {
    "classes.csv",
    "confusion.csv",
    "confusion.png",
    "mistakes.csv",
    "mistakes.png",
    "calibration.csv",
    "calibration.png",
    "summary.json",
}
PREPROCESSING = Preprocessing(8, 8, (0.5,), (0.25,))


def make_predictions(targets, predicted, confidences=None, num_classes=None):
    count = len(targets)
    confidences = [0.9] * count if confidences is None else confidences
    return Predictions(
        num_classes or max(*targets, *predicted, 0) + 1,
        [f"{i}.png" for i in range(count)],
        np.arange(count),
        np.array(targets),
        np.array(predicted),
        np.array(confidences, dtype=np.float32),
        np.full(count, 0.05, dtype=np.float32),
    )


def make_dataset(targets, classes):
    images = np.full((len(targets), 8, 8), 128, dtype=np.uint8)
    return ArrayDataset("gray", images, np.array(targets), classes)


def read_csv(path):
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_metrics_of_each_class():
    # Class 0: 2 of 3 found, 2 of 2 predictions right; class 1: 1 of 1 found, 1 of 2 right; class 2 has no images
    predictions = make_predictions([0, 0, 0, 1], [0, 0, 1, 1], num_classes=3)
    first, second, absent = compute_class_metrics(predictions, ["a", "b", "c"])
    assert (first.precision, first.recall, first.f1) == pytest.approx((1, 2 / 3, 0.8))
    assert (second.precision, second.recall, second.f1) == pytest.approx((0.5, 1, 2 / 3))
    assert (first.support, first.predicted, second.support, second.predicted) == (3, 2, 1, 2)
    assert (absent.precision, absent.recall, absent.f1, absent.support) == (None, None, None, 0)
    averages = average_over_classes([first, second, absent])
    assert averages["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert averages["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_the_table_lists_the_worst_classes_first():
    predictions = make_predictions([0, 1, 1, 2, 2], [0, 0, 0, 2, 0], num_classes=4)
    metrics = compute_class_metrics(predictions, ["good", "never found", "half", "absent"])
    lines = class_table(metrics, max_rows=2).splitlines()
    assert [line.split("  ")[0] for line in lines[2:4]] == ["never found", "good"]
    assert lines[-1] == "the 2 worst of 3 classes; 1 class has no images"


def test_confusions_are_counted_by_true_and_predicted_class():
    predictions = make_predictions([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 0, 2])
    matrix = compute_confusion_matrix(predictions)
    assert matrix.tolist() == [[1, 2, 0], [1, 1, 0], [0, 0, 1]]
    pairs = most_frequent_confusions(matrix, "abc")
    assert [(pair.true, pair.predicted, pair.images) for pair in pairs] == [("a", "b", 2), ("b", "a", 1)]
    assert pairs[0].fraction == pytest.approx(2 / 3)


def test_mistakes_are_ranked_by_confidence(tmp_path):
    predictions = make_predictions([0, 0, 1, 1], [0, 1, 0, 0], [0.99, 0.6, 0.95, 0.7])
    assert rank_mistakes(predictions).tolist() == [2, 3, 1]
    write_mistakes(tmp_path / "mistakes.csv", predictions, ["cat", "dog"])
    header, *rows = read_csv(tmp_path / "mistakes.csv")
    assert header == ["image", "true", "predicted", "probability", "probability of true"]
    assert rows[0] == ["2.png", "dog", "cat", "0.95", "0.05"]


def test_calibration_error():
    """Two bins: 10 predictions at 0.95 of which 8 are right, 10 at 0.55 of which 5 are right."""
    correct = [True] * 8 + [False] * 2 + [True] * 5 + [False] * 5
    predictions = make_predictions(
        [0] * 20, [0 if right else 1 for right in correct], [0.95] * 10 + [0.55] * 10
    )
    calibration = compute_calibration(predictions)
    assert calibration.counts.tolist() == [10, 10]
    assert calibration.error == pytest.approx((0.15 + 0.05) / 2, abs=1e-6)
    assert calibration.overconfidence == pytest.approx((0.15 + 0.05) / 2, abs=1e-6)


def test_a_calibrated_classifier_has_no_error():
    predictions = make_predictions([0] * 4, [0, 0, 0, 1], [0.75] * 4)
    assert compute_calibration(predictions).error == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("confidence", [0.0, 1 / 3, 0.6, 1.0, np.nextafter(np.float32(1), np.float32(2))])
def test_counts_belong_to_their_bins(confidence):
    """Also at the edges of bins, and where a probability exceeds 1 by rounding."""
    calibration = compute_calibration(make_predictions([0, 0], [0, 1], [confidence, 0.5]))
    assert calibration.counts.sum() == 2
    assert len(calibration.counts) == len(calibration.accuracy) == 2


class Identity(nn.Module):
    def forward(self, x):
        return x.flatten(1)


def make_batch(logits, targets, indices):
    images = torch.tensor(logits)[:, :, None, None]
    return Batch(images, torch.tensor(targets), indices)


def test_an_evaluation_records_its_predictions():
    recorder = PredictionRecorder()
    logits = [[2.0, 0.0], [0.0, 1.0]]
    batches = [make_batch(logits, [0, 0], [0, 1]), make_batch([[5.0, 0.0]], [1], [2])]
    for _ in range(2):  # only the last evaluation counts
        evaluate(Identity(), batches, torch.device("cpu"), channels_last=False, recorder=recorder)
    predictions = recorder.gather()
    assert (predictions.targets.tolist(), predictions.predicted.tolist()) == ([0, 0, 1], [0, 1, 0])
    probability = torch.tensor(logits).softmax(1)
    assert predictions.confidences[:2].tolist() == pytest.approx(probability.max(1).values.tolist())
    assert predictions.target_probabilities[:2].tolist() == pytest.approx(probability[:, 0].tolist())
    assert predictions.names == ["image 0", "image 1", "image 2"]


def test_predictions_of_several_processes_are_in_the_order_of_the_dataset(monkeypatch):
    """Each process evaluates every n-th image; one may have none."""
    parts = []
    for indices in ([0, 2], [1], []):
        recorder = PredictionRecorder()
        if indices:
            batch = make_batch([[1.0, 0.0]] * len(indices), [0] * len(indices), indices)
            recorder.add(batch, batch.images.flatten(1), batch.targets)
        recorder.gather(Gathering(parts))
    predictions = PredictionRecorder().gather(Returning(parts))
    assert predictions.indices.tolist() == [0, 1, 2]
    assert predictions.names == ["image 0", "image 1", "image 2"]
    assert PredictionRecorder().gather() is None


class Gathering(ProcessGroup):
    """Collects what a process contributes."""

    def __init__(self, parts):
        super().__init__()
        object.__setattr__(self, "parts", parts)

    def gather(self, value):
        self.parts.append(value)
        return [value]


class Returning(Gathering):
    """Returns what all processes have contributed."""

    def gather(self, value):
        return self.parts


def write(folder, targets, predicted, classes, confidences=None):
    predictions = make_predictions(targets, predicted, confidences, num_classes=len(classes))
    write_evaluation_report(folder, predictions, classes, make_dataset(targets, classes), PREPROCESSING)
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("targets", "predicted", "classes"),
    [
        ([0, 0], [0, 0], ["only one class"]),
        ([0, 1], [0, 1], ["no", "mistakes"]),
        ([0, 1], [1, 0], ["all", "wrong"]),
        ([0, 0], [0, 0], ["present", "absent"]),
        ([0, 1], [1, 1], ["x" * 300, "猫の写真"]),
        ([0, 1, 2], [1, 1, 0], ["$\\frac{1}$ and $", "a\nb\tc", "\udcff not UTF-8"]),
    ],
    ids=lambda value: None,
)
def test_reports_on_unusual_data_are_complete(tmp_path, caplog, targets, predicted, classes):
    with caplog.at_level(logging.INFO):
        assert write(tmp_path / "report", targets, predicted, classes) == FILES
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for picture in (tmp_path / "report").glob("*.png"):
        Image.open(picture).verify()
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["accuracy"] == np.mean(np.array(targets) == predicted)


@pytest.mark.parametrize("count", [2, 30, 31, 1000])
def test_confusion_matrices_of_any_number_of_classes(tmp_path, count):
    targets = [*range(count)] * 2
    predicted = [*range(count), *np.roll(range(count), 1).tolist()]
    matrix = compute_confusion_matrix(make_predictions(targets, predicted))
    figure = draw_confusion_matrix(matrix, [f"class {i}" for i in range(count)])
    width, height = Image.open(io.BytesIO(figure_png(figure))).size
    assert min(width, height) > 300 and max(width, height) < 2000


def test_names_in_csv_files_are_not_changed(tmp_path):
    classes = ['a, "quoted"', "naïve 猫", "two\nlines"]
    write(tmp_path, [0, 1, 2], [1, 1, 2], classes)
    assert [row[0] for row in read_csv(tmp_path / "classes.csv")[1:]] == classes
    assert read_csv(tmp_path / "confusion.csv")[0][1:] == classes


def test_a_network_with_more_classes_than_names(tmp_path):
    predictions = make_predictions([0, 1], [0, 2], num_classes=3)
    dataset = make_dataset([0, 1], ["a", "b"])
    write_evaluation_report(tmp_path, predictions, ["a", "b"], dataset, PREPROCESSING)
    assert [row[0] for row in read_csv(tmp_path / "classes.csv")[1:]] == ["a", "b", "2"]


def test_a_part_that_fails_is_a_warning(tmp_path, caplog):
    """Such as images that are gone by the time the picture of the mistakes is drawn."""
    predictions = make_predictions([0, 1], [1, 0])
    write_evaluation_report(tmp_path, predictions, ["a", "b"], make_dataset([], ["a", "b"]), PREPROCESSING)
    assert {path.name for path in tmp_path.iterdir()} == FILES - {"mistakes.png"}
    assert f"{tmp_path / 'mistakes.png'} was not written: IndexError" in caplog.text


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    predictions = make_predictions([0, 1], [1, 0])
    dataset = make_dataset([0, 1], ["a", "b"])
    write_evaluation_report(tmp_path / "file" / "report", predictions, ["a", "b"], dataset, PREPROCESSING)
    assert "cannot be written" in caplog.text


def test_the_pictures_show_names_and_probabilities(tmp_path):
    predictions = make_predictions([0, 1], [1, 1], [0.875, 0.875])
    figure = draw_mistakes(predictions, ["cat", "dog"], make_dataset([0, 1], ["cat", "dog"]), PREPROCESSING)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["cat", "87.5% dog"]
    assert "1 of 2" in figure.texts[0].get_text()
    reliability = draw_reliability_diagram(compute_calibration(predictions))
    assert reliability.axes[0].get_title() == "ECE 37.5%, on average 37.5% too confident"


def test_several_labels_of_an_augmented_image():
    """Labels that are not mixed have no share, and labels that are not listed are counted."""
    pixels = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
    targets = torch.tensor([[0.0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]])
    batch = Batch(pixels, targets, [0, 1, 2], preprocessing=PREPROCESSING)
    figure = draw_augmented_images(batch, PREPROCESSING, ["cat", "dog", "owl", "pet"])
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert [captions[i : i + 3] for i in (0, 3, 6)] == [
        ["", "", ""],
        ["cat", "owl", ""],
        ["cat", "dog", "and 2 more"],
    ]


def test_augmented_images_are_shown_as_pixels():
    """Normalization is undone exactly, and the shares of mixed classes are shown."""
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(denormalize(PREPROCESSING.normalize(pixels), PREPROCESSING), pixels)

    def mix(images, targets):
        torch.rand(5)
        return images, torch.tensor([[0.7, 0.3], [0.0, 1.0]])

    batch = Batch(pixels.expand(2, -1, -1, -1), torch.tensor([0, 1]), [0, 1], preprocessing=PREPROCESSING)
    state = torch.get_rng_state()
    figure = draw_augmented_images(batch, PREPROCESSING, ["cat", "dog"], mix)
    assert [text.get_text() for text in figure.axes[0].texts] == ["70% cat", "30% dog", "dog", ""]
    assert np.array_equal(figure.axes[0].images[0].get_array(), pixels[0, 0])
    assert torch.equal(torch.get_rng_state(), state)


def test_where_the_report_goes(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert report_folder("off", run) is None
    assert report_folder("auto", run) == tmp_path / "run" / "evaluation"
    assert report_folder(str(tmp_path / "other"), run, "zoo://digits") == tmp_path / "other"
    # Weights of the run, of no run, of another one
    weights = run.weights
    assert report_folder("auto", run, weights) is None
    weights.parent.mkdir()
    weights.write_bytes(b"")
    assert report_folder("auto", run, weights) == run.report
    assert report_folder("auto", run, tmp_path / "model.pth") is None
    assert report_folder("auto", run, "zoo://digits/fbnetv3_digits") is None
