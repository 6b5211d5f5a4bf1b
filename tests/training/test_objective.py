"""What a step minimises, and the average of the weights."""

import pytest
import torch
from torch import nn

from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.losses import CrossEntropy, Distillation, scaled_to


class Constant(nn.Module):
    """Answers with the same logits, whatever the image; remembers the size of its input."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        self.side = x.shape[-1]
        return self.logits.expand(len(x), -1)


def test_distillation_is_08_of_the_teacher_and_02_of_the_labels():
    teacher, student = Constant([2.0, 0.0, 1.0]), Constant([0.5, 0.1, 0.0])
    objective = Distillation(teacher, resolution=8, teacher_resolution=12)
    images, targets = torch.zeros(4, 3, 12, 12), torch.tensor([0, 1, 2, 2])
    logits = student.logits.expand(4, -1)
    answers = teacher.logits.softmax(0).expand(4, -1)
    by_teacher = -(answers * logits.log_softmax(1)).sum(1).mean()
    expected = 0.8 * by_teacher + 0.2 * nn.functional.cross_entropy(logits, targets)
    loss = objective(student, images, targets)
    assert loss.item() == pytest.approx(expected.item())
    assert (student.side, teacher.side) == (8, 12)
    loss.backward()
    assert teacher.logits.grad is None and not teacher.training and student.logits.grad is not None


def test_a_teacher_that_agrees_leaves_no_gradient():
    student = Constant([2.0, 0.0])
    Distillation(Constant([2.0, 0.0]), 4, 4, share=1.0)(
        student, torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
    ).backward()
    assert student.logits.grad.abs().max() < 1e-6


def test_scaling_keeps_means_and_leaves_the_right_size_alone():
    images = torch.rand(2, 3, 16, 16)
    assert scaled_to(images, 16) is images
    torch.testing.assert_close(scaled_to(images, 8).mean(), images.mean(), atol=0.02, rtol=0)


def test_mixed_targets_and_label_smoothing():
    model = Constant([1.0, 0.0])
    soft = torch.tensor([[0.7, 0.3]])
    loss = CrossEntropy(0.1)(model, torch.zeros(1, 3, 2, 2), soft)
    smooth = 0.9 * soft + 0.1 / 2
    assert loss.item() == pytest.approx(-(smooth * model.logits.log_softmax(0)).sum().item())


def test_the_average_follows_the_weights():
    model = nn.BatchNorm1d(2)
    ema = ModelEMA(model, decay=0.5)
    expected = None
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(10 * step)
            model.num_batches_tracked.fill_(step)
        ema.update_parameters(model)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = step if expected is None else keep * expected + (1 - keep) * step
        assert ema.module.weight[0].item() == pytest.approx(expected)
        assert ema.module.running_mean[0].item() == pytest.approx(10 * expected)
    assert ema.module.num_batches_tracked.item() == 5
