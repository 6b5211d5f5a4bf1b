"""Classes of datasets and outputs of networks, matched by name."""

import logging

import numpy as np
import pytest
import torch

from fbnetv3.data.classes.class_matching import ClassMismatchError, match_classes, relabel
from fbnetv3.data.classes.imagenet import imagenet_classes, imagenet_synsets
from fbnetv3.data.datasets import ArrayDataset


def dataset(*classes):
    """Return a dataset with one image per class, whose gray level is its class index."""
    images = np.arange(len(classes), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ArrayDataset("mine", images, np.arange(len(classes)), list(classes))


@pytest.mark.parametrize(
    "classes, indices",
    [
        (["cat", "dog", "owl"], [0, 1, 2]),
        (["owl", "cat", "dog"], [2, 0, 1]),
        (["owl"], [2]),
        (["dog", "cat"], [1, 0]),
    ],
)
def test_indices_are_those_of_the_names(classes, indices):
    assert match_classes(classes, ["cat", "dog", "owl"]) == indices


def test_an_unknown_class_is_refused_with_both_lists():
    with pytest.raises(ClassMismatchError) as error:
        match_classes(["cat", "fox"], ["cat", "dog"], "the folder", "the network")
    assert str(error.value) == (
        "the network lacks fox: the folder has 2 classes (cat, fox); the network has 2 classes (cat, dog)"
    )


def test_a_repeated_name_is_ambiguous_unless_the_lists_are_equal():
    assert match_classes(["crane", "crane"], ["crane", "crane"]) == [0, 1]
    with pytest.raises(ClassMismatchError, match="cannot tell crane apart"):
        match_classes(["crane"], ["crane", "dog", "crane"])


def test_wordnet_ids_are_imagenets_classes():
    assert len(imagenet_synsets()) == len(imagenet_classes()) == 1000
    assert list(imagenet_synsets()) == sorted(imagenet_synsets())
    # Imagenette's ten classes, by the indices that torchvision and timm give them
    imagenette = {
        "n01440764": ("tench", 0),
        "n02102040": ("English springer", 217),
        "n02979186": ("cassette player", 482),
        "n03000684": ("chain saw", 491),
        "n03028079": ("church", 497),
        "n03394916": ("French horn", 566),
        "n03417042": ("garbage truck", 569),
        "n03425413": ("gas pump", 571),
        "n03445777": ("golf ball", 574),
        "n03888257": ("parachute", 701),
    }
    indices = match_classes(list(imagenette), imagenet_classes())
    assert indices == [index for _, index in imagenette.values()]
    assert [imagenet_classes()[index] for index in indices] == [name for name, _ in imagenette.values()]


def test_relabeled_images_keep_their_pixels_and_names(caplog):
    caplog.set_level(logging.INFO)
    relabeled = relabel(dataset("owl", "cat"), ["cat", "dog", "owl"])
    assert relabeled.classes == ["cat", "dog", "owl"] and len(relabeled) == 2
    assert [target for _, target in (relabeled[0], relabeled[1])] == [2, 0]
    assert [np.asarray(relabeled[i][0]).max() for i in range(2)] == [0, 1]
    assert relabeled.image_name(1) == "mine[1]"
    assert sorted(relabeled.order(torch.Generator()).tolist()) == [0, 1]
    [line] = caplog.messages
    assert line == ("the dataset has 2 of the 3 classes of the network, matched by name; it lacks dog")


def test_another_order_is_said(caplog):
    caplog.set_level(logging.INFO)
    relabel(dataset("dog", "cat"), ["cat", "dog"])
    assert caplog.messages == [
        "the dataset has its classes in another order than the network; they are matched by name"
    ]


def test_equal_classes_need_no_words(caplog):
    caplog.set_level(logging.INFO)
    same = dataset("cat", "dog")
    assert relabel(same, ["cat", "dog"]) is same and not caplog.messages


def test_accents_may_be_composed_or_not():
    """macOS writes the names of folders with accents as characters of their own."""
    composed, decomposed = "\u00e9", "e\u0301"
    assert match_classes([decomposed, "bar"], ["bar", composed]) == [1, 0]
    assert match_classes([composed], ["bar", decomposed]) == [1]
    with pytest.raises(ClassMismatchError, match="cannot tell"):
        match_classes([composed, decomposed], ["bar", composed])


@pytest.mark.parametrize("targets", [[0, 2], [[1, 0, 0], [1, 0, 1]]], ids=["one label", "several labels"])
def test_classes_without_images_are_said(caplog, targets):
    caplog.set_level(logging.INFO)
    pets = dataset("cat", "dog", "owl")
    pets.targets = np.array(targets)
    relabel(pets, ["cat", "dog", "owl"], "the validation split")
    assert caplog.messages == ["the validation split has no images of dog"]
