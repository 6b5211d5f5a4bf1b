"""Evaluation counts every image once, and changes nothing."""

import pytest
import torch
from torch import nn

from fbnetv3.data import Batch, DamageCounter
from fbnetv3.errors import DataError
from fbnetv3.training import evaluate

CPU = torch.device("cpu")


class Fixed(nn.Module):
    """Answers with the logits that it was given as images."""

    def forward(self, x):
        return x.flatten(1)


def batch(logits, targets, damaged=()):
    return Batch(torch.tensor(logits)[:, :, None, None], torch.tensor(targets), ["x"] * len(targets), list(damaged))


def test_evaluation_counts():
    falling = [9.0, 8, 7, 6, 5, 4, 3, 2]
    logits = [[1.0, 0, 0, 0, 0, 0, 0, 0], [0.0, 1, 0, 0, 0, 0, 0, 0], falling, falling]
    found = evaluate(Fixed(), [batch(logits[:3], [0, 1, 7]), batch(logits[3:], [4])], CPU, channels_last=False)
    assert (found["top1"], found["images"]) == (50.0, 4)
    assert found["top5"] == 75.0  # the fourth image's class is its fifth
    expected = nn.functional.cross_entropy(torch.tensor(logits), torch.tensor([0, 1, 7, 4]))
    assert found["loss"] == pytest.approx(expected.item())


def test_evaluation_of_few_classes_has_no_top5():
    assert "top5" not in evaluate(Fixed(), [batch([[1.0, 0.0]], [0])], CPU, channels_last=False)


def test_evaluation_leaves_the_mode_alone_and_uses_that_of_evaluation():
    model = nn.Sequential(nn.Dropout(0.99), Fixed())
    assert evaluate(model, [batch([[1.0, 0.0]] * 50, [0] * 50)], CPU, channels_last=False)["top1"] == 100
    assert model.training


def test_evaluation_of_nothing_and_of_damage():
    empty = Batch(torch.empty(0), torch.empty(0, dtype=torch.long), [], ["x.png"])
    with pytest.raises(DataError, match="no image"):
        evaluate(Fixed(), [empty], CPU, damage=DamageCounter(5))
    model = Fixed()
    with pytest.raises(DataError, match="x.png"):
        evaluate(model, [empty], CPU)
    assert model.training
