"""Losses and objectives."""

import math

import pytest
import torch
from torch import nn

from fbnetv3.config import get_cfg
from fbnetv3.errors import UsageError
from fbnetv3.training.builders import build_objective
from fbnetv3.training.distillation.distillation_loss import Distillation, resize_images
from fbnetv3.training.losses import (
    LOSSES,
    binary_cross_entropy,
    cross_entropy,
    focal_loss,
    sigmoid_focal,
    supervised_objective,
)
from fbnetv3.training.solver import loss_from_config

CPU = torch.device("cpu")


class Constant(nn.Module):
    """Returns the same logits for every image, and records the size of its input."""

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
    probabilities = teacher.logits.softmax(0).expand(4, -1)
    teacher_loss = -(probabilities * logits.log_softmax(1)).sum(1).mean()
    expected = 0.8 * teacher_loss + 0.2 * nn.functional.cross_entropy(logits, targets)
    loss = objective(student, images, targets)
    assert loss.item() == pytest.approx(expected.item())
    assert (student.side, teacher.side) == (8, 12)
    loss.backward()
    assert teacher.logits.grad is None and not teacher.training and student.logits.grad is not None


def test_a_student_equal_to_its_teacher_has_no_gradient():
    student = Constant([2.0, 0.0])
    objective = Distillation(Constant([2.0, 0.0]), 4, 4, alpha=1.0)
    objective(student, torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])).backward()
    assert student.logits.grad.abs().max() < 1e-6


def test_resizing_keeps_means_and_returns_images_of_the_right_size():
    images = torch.rand(2, 3, 16, 16)
    assert resize_images(images, 16) is images
    torch.testing.assert_close(resize_images(images, 8).mean(), images.mean(), atol=0.02, rtol=0)


def test_mixed_targets_and_label_smoothing():
    logits = torch.tensor([[1.0, 0.0]])
    targets = torch.tensor([[0.7, 0.3]])
    smooth = 0.9 * targets + 0.1 / 2
    expected = -(smooth * logits.log_softmax(1)).sum()
    assert cross_entropy(logits, targets, label_smoothing=0.1).item() == pytest.approx(expected.item())


def test_a_registered_loss_is_used_alone_and_with_distillation():
    @LOSSES.register(name="half")
    def half(logits, targets):
        return cross_entropy(logits, targets) / 2

    try:
        cfg = get_cfg()
        cfg.SOLVER.LOSS = "half"
        cfg.SOLVER.LABEL_SMOOTHING = 0.1  # which it does not accept
        model, images, targets = Constant([1.0, 0.0]), torch.zeros(2, 3, 4, 4), torch.tensor([0, 1])
        loss = build_objective(cfg, 2, 4, CPU)(model, images, targets)
        assert loss.item() == pytest.approx(supervised_objective(model, images, targets).item() / 2)
        distilled = Distillation(Constant([0.0, 1.0]), 4, 4, alpha=0.0, loss=loss_from_config(cfg))
        assert distilled(model, images, targets).item() == pytest.approx(loss.item())
        cfg.DISTILL.CACHE = "somewhere"
        with pytest.raises(
            UsageError, match="SOLVER.LOSS half: DISTILL.CACHE works only with cross_entropy"
        ):
            loss_from_config(cfg)
    finally:
        LOSSES.remove("half")


def test_an_unknown_loss():
    cfg = get_cfg()
    cfg.SOLVER.LOSS = "cross_entrop"
    with pytest.raises(
        UsageError, match="SOLVER.LOSS: unknown loss 'cross_entrop': did you mean cross_entropy?"
    ):
        loss_from_config(cfg)


LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.2, -2.0], [-1.0, 1.5, 0.0], [0.0, 0.0, 3.0]])
TARGETS = torch.tensor([0, 1, 2, 2])
WEIGHTS = torch.tensor([0.5, 2.0, 3.0])


def test_class_weights_do_not_depend_on_how_images_are_divided():
    """The weighted sum of the images' losses, over their number."""
    losses = nn.functional.cross_entropy(LOGITS, TARGETS, reduction="none") * WEIGHTS[TARGETS]
    assert cross_entropy(LOGITS, TARGETS, class_weights=WEIGHTS).item() == pytest.approx(
        losses.mean().item()
    )
    halves = [cross_entropy(LOGITS[i : i + 2], TARGETS[i : i + 2], class_weights=WEIGHTS) for i in (0, 2)]
    assert sum(halves).item() / 2 == pytest.approx(losses.mean().item())


def test_focal_loss_without_focus_is_cross_entropy():
    for settings in ({}, {"label_smoothing": 0.1}, {"class_weights": WEIGHTS}):
        expected = cross_entropy(LOGITS, TARGETS, **settings)
        torch.testing.assert_close(focal_loss(LOGITS, TARGETS, **settings, focal_gamma=0.0), expected)


def test_focal_loss_by_hand():
    """With two classes at probability 0.8 and 0.2: (1 - 0.8)^2 * -log 0.8."""
    logits = torch.tensor([[math.log(4.0), 0.0]])
    loss = focal_loss(logits, torch.tensor([0]), focal_gamma=2.0)
    assert loss.item() == pytest.approx(-0.04 * math.log(0.8))


def test_binary_cross_entropy_is_timms():
    timm_loss = pytest.importorskip("timm.loss")
    for smoothing in (0.0, 0.1):
        expected = timm_loss.BinaryCrossEntropy(smoothing)(LOGITS, TARGETS)
        torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGETS, smoothing), expected)
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    expected = timm_loss.BinaryCrossEntropy(0.0, pos_weight=WEIGHTS)(LOGITS, several)
    torch.testing.assert_close(binary_cross_entropy(LOGITS, several, class_weights=WEIGHTS), expected)


def test_sigmoid_focal_loss_without_focus_is_binary_cross_entropy():
    for settings in ({}, {"label_smoothing": 0.1}, {"class_weights": WEIGHTS}):
        expected = binary_cross_entropy(LOGITS, TARGETS, **settings)
        torch.testing.assert_close(sigmoid_focal(LOGITS, TARGETS, **settings, focal_gamma=0.0), expected)


def test_a_loss_without_class_weights_is_refused():
    @LOSSES.register(name="plain")
    def plain(logits, targets):
        return cross_entropy(logits, targets)

    cfg = get_cfg()
    cfg.SOLVER.LOSS = "plain"
    with pytest.raises(UsageError, match="SOLVER.LOSS plain has no class weights"):
        loss_from_config(cfg, WEIGHTS)
    cfg.SOLVER.LOSS, cfg.DISTILL.CACHE = "cross_entropy", "somewhere"
    with pytest.raises(UsageError, match="class weights do not work with cached logits"):
        loss_from_config(cfg, WEIGHTS)
