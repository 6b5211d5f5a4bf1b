"""Rows of a classifier's head that move to other classes by name."""

import logging

import pytest
import torch

from fbnetv3 import create_model
from fbnetv3.data.classes.imagenet import imagenet_classes
from fbnetv3.modeling.torchvision_models import TorchvisionArch, build_torchvision_model
from fbnetv3.modeling.weights import head_tensors
from fbnetv3.training.fine_tuning.head_transfer import transfer_by_class

CLASSES = ["cat", "dog", "owl"]


def build(name, num_classes):
    if name.startswith("torchvision/"):
        return build_torchvision_model(TorchvisionArch(name), num_classes=num_classes)
    return create_model(name, num_classes=num_classes)


@pytest.mark.parametrize(
    "name", ["fbnetv3_digits", "torchvision/squeezenet1_1", "torchvision/mobilenet_v2"]
)
@pytest.mark.parametrize(
    "classes, rows",
    [
        (["owl", "cat", "dog"], {0: 2, 1: 0, 2: 1}),
        (["dog"], {0: 1}),
        (["ant", "dog", "bee", "cat"], {1: 1, 3: 0}),
        (["ant", "bee", "fly"], {}),
    ],
)
def test_shared_classes_keep_their_rows(name, classes, rows):
    trained, model = build(name, 3), build(name, len(classes))
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    transfer_by_class(trained, model, CLASSES, classes)
    own, source = model.state_dict(), trained.state_dict()
    head = head_tensors(model)
    assert len(head) == 2
    assert all(torch.equal(own[key], source[key]) for key in own if key not in head)
    for key in head:
        for row in range(len(classes)):
            expected = source[key][rows[row]] if row in rows else fresh[key][row]
            assert torch.equal(own[key][row], expected)


def test_wordnet_ids_keep_the_rows_of_imagenets_classes():
    trained = create_model("fbnetv3_digits", num_classes=1000)
    model = create_model("fbnetv3_digits", num_classes=2)
    transfer_by_class(trained, model, imagenet_classes(), ["n02102040", "n01440764"])  # a spaniel, a tench
    for key in head_tensors(model):
        assert torch.equal(model.state_dict()[key], trained.state_dict()[key][[217, 0]])


@pytest.mark.parametrize(
    "classes, message",
    [
        (["owl", "cat"], "the head has all 2 classes from the weights, matched by name"),
        (["owl", "ant"], "the head has 1 of 2 classes from the weights, matched by name; new: ant"),
        (["ant"], "the weights have other classes than the dataset: the head starts from random values"),
    ],
)
def test_what_is_kept_is_said(classes, message, caplog):
    caplog.set_level(logging.INFO)
    models = (
        create_model("fbnetv3_digits", num_classes=3),
        create_model("fbnetv3_digits", num_classes=len(classes)),
    )
    transfer_by_class(*models, CLASSES, classes)
    assert caplog.messages == [message]


def test_classes_that_share_a_name_keep_no_row(caplog):
    """Nobody knows which of them is meant."""
    caplog.set_level(logging.INFO)
    trained, model = build("fbnetv3_digits", 3), build("fbnetv3_digits", 2)
    fresh = model.head.weight.clone()
    transfer_by_class(trained, model, ["cat", "cat", "owl"], ["cat", "owl"])
    assert torch.equal(model.head.weight[0], fresh[0])
    assert torch.equal(model.head.weight[1], trained.head.weight[2])
    assert caplog.messages == ["the head has 1 of 2 classes from the weights, matched by name; new: cat"]
