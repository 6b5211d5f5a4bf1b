"""Evaluation counts every image once and leaves the model as it was."""

import pytest
import torch
from torch import nn

from fbnetv3.data import Batch, CorruptImageCounter
from fbnetv3.errors import DataError, WeightsError
from fbnetv3.training import evaluate
from fbnetv3.training.evaluation.classifier_evaluation import evaluate_networks
from fbnetv3.training.reports.predictions import PredictionRecorder

CPU = torch.device("cpu")


class Identity(nn.Module):
    """Returns the images as logits."""

    def forward(self, x):
        return x.flatten(1)


def make_batch(logits, targets):
    return Batch(torch.tensor(logits)[:, :, None, None], torch.tensor(targets), range(len(targets)))


def test_evaluation_counts():
    descending = [9.0, 8, 7, 6, 5, 4, 3, 2]
    logits = [[1.0, 0, 0, 0, 0, 0, 0, 0], [0.0, 1, 0, 0, 0, 0, 0, 0], descending, descending]
    batches = [make_batch(logits[:3], [0, 1, 7]), make_batch(logits[3:], [4])]
    results = evaluate(Identity(), batches, CPU, channels_last=False)
    assert (results["top1"], results["images"]) == (50.0, 4)
    assert results["top5"] == 75.0  # the fourth image's class is its fifth
    expected = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor([0, 1, 7, 4]))
    assert results["loss"] == pytest.approx(expected.item())


class Scaled(nn.Module):
    """A linear classifier."""

    def __init__(self, factor):
        super().__init__()
        self.weight = nn.Parameter(factor * torch.randn(16, 10, generator=torch.Generator().manual_seed(3)))

    def forward(self, x):
        return x.flatten(1) @ self.weight


class Counting(list):
    """Batches that count how often they are read."""

    reads = 0

    def __iter__(self):
        self.reads += 1
        return super().__iter__()


def test_networks_evaluated_together_have_the_results_of_one_after_the_other():
    generator = torch.Generator().manual_seed(0)
    batches = Counting(
        Batch(torch.randn(9, 1, 4, 4, generator=generator), torch.arange(9), range(9)) for _ in range(3)
    )
    models = [Scaled(0.5).train(), Scaled(-1.0).eval()]
    expected = [evaluate(model, batches, CPU) for model in models]
    assert expected[0] != expected[1]
    batches.reads = 0
    assert evaluate_networks(models, batches, CPU) == expected
    assert batches.reads == 1
    assert [model.training for model in models] == [True, False]


def test_the_report_is_about_the_last_network():
    batches = [Batch(torch.ones(4, 1, 4, 4), torch.arange(4), range(4))]
    models = [Scaled(0.5), Scaled(-1.0)]
    recorders = [PredictionRecorder(), PredictionRecorder()]
    evaluate_networks(models, batches, CPU, recorder=recorders[0])
    evaluate(models[1], batches, CPU, recorder=recorders[1])
    together, alone = (recorder.gather() for recorder in recorders)
    assert together.predicted.tolist() == alone.predicted.tolist()
    assert together.confidences.tolist() == alone.confidences.tolist()


def test_few_classes_have_no_top5():
    assert "top5" not in evaluate(Identity(), [make_batch([[1.0, 0.0]], [0])], CPU, channels_last=False)


def test_the_model_is_in_evaluation_mode_and_its_mode_is_restored():
    model = nn.Sequential(nn.Dropout(0.99), Identity())
    assert (
        evaluate(model, [make_batch([[1.0, 0.0]] * 50, [0] * 50)], CPU, channels_last=False)["top1"] == 100
    )
    assert model.training


def test_without_readable_images():
    empty = Batch(torch.empty(0), torch.empty(0, dtype=torch.long), [], errors=["x.png"])
    with pytest.raises(DataError, match="no validation image could be read"):
        evaluate(Identity(), [empty], CPU, corrupt_images=CorruptImageCounter(5))
    model = Identity()
    with pytest.raises(DataError, match="x.png"):
        evaluate(model, [empty], CPU)
    assert model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_are_an_error_that_names_the_first_image(value):
    """-inf in a single class would otherwise count as a correct answer for another one."""
    finite = make_batch([[1.0, 0.0]] * 2, [0, 0])
    broken = make_batch([[1.0, 0.0], [1.0, value], [value, 0.0]], [0, 0, 0])
    broken.image_name = ["a.png", "b.png", "c.png"].__getitem__
    model = Identity()
    with pytest.raises(WeightsError, match="^b.png, c.png: the network's logits are NaN or inf"):
        evaluate(model, [finite, broken, finite], CPU, channels_last=False)
    assert model.training
