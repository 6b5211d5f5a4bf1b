"""Teachers with another order of classes, more classes, or another normalization than their students."""

import pytest
import torch

from fbnetv3 import create_model
from fbnetv3.arch import get_arch
from fbnetv3.data import Preprocessing
from fbnetv3.errors import UsageError
from fbnetv3.training.distillation.teacher_adapter import adapt_teacher
from fbnetv3.training.run_state.network_record import NetworkRecord

CLASSES = ("cat", "dog", "owl")


def record(mean=(0.5,), std=(0.5,)):
    return NetworkRecord(get_arch("fbnetv3_digits"), len(mean), CLASSES, Preprocessing(8, 8, mean, std))


@pytest.fixture
def teacher():
    return create_model("fbnetv3_digits", num_classes=3, in_chans=1).eval()


def test_a_teacher_that_fits_is_not_wrapped(teacher):
    assert adapt_teacher(teacher, record(), CLASSES, (0.5,), (0.5,)) is teacher


def test_logits_are_those_of_the_students_classes(teacher):
    images = torch.rand(2, 1, 8, 8)
    adapted = adapt_teacher(teacher, record(), ["owl", "cat"], (0.5,), (0.5,))
    assert torch.equal(adapted(images), teacher(images)[:, [2, 0]])


def test_the_teacher_sees_images_as_in_its_training(teacher):
    pixels = torch.rand(2, 1, 8, 8)
    adapted = adapt_teacher(teacher, record((0.1,), (0.3,)), CLASSES, (0.5,), (0.25,))
    torch.testing.assert_close(adapted((pixels - 0.5) / 0.25), teacher((pixels - 0.1) / 0.3))


def test_a_class_that_the_teacher_lacks(teacher):
    with pytest.raises(UsageError, match=r"the teacher lacks fox: .*\(cat, fox\).*\(cat, dog, owl\)"):
        adapt_teacher(teacher, record(), ["cat", "fox"], (0.5,), (0.5,))


def test_another_number_of_channels(teacher):
    with pytest.raises(UsageError, match="the teacher takes 1 channels, the student 3"):
        adapt_teacher(teacher, record(), CLASSES, (0.5,) * 3, (0.5,) * 3)
