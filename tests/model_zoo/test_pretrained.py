"""A classifier from a config or a name: its network, its preprocessing, its class names."""

import json

import pytest
import torch

from fbnetv3 import model_zoo
from fbnetv3.data.classes.class_names import read_class_names
from fbnetv3.errors import DataError, UnknownNameError, UsageError, WeightsError
from fbnetv3.model_zoo.pretrained import (
    load_classifier_from_config,
    load_classifier_from_name,
)
from tests.pages import ROOT

DIGITS = ROOT / "configs/digits/fbnetv3_digits.yaml"


def test_a_config_with_published_weights():
    net = load_classifier_from_config(DIGITS, weights="published")
    entry = model_zoo.entry("digits/fbnetv3_digits")
    assert (net.preprocessing, net.classes) == (entry.preprocessing, [str(d) for d in range(10)])
    published = model_zoo.get(entry, trained=True, device="cpu").state_dict()
    assert all(torch.equal(value, published[key]) for key, value in net.model.state_dict().items())
    assert not net.model.training


def test_the_run_of_a_config(tmp_path):
    overrides = ["OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(UsageError, match="no weights found: pass --weights FILE or --weights published"):
        load_classifier_from_config(DIGITS, overrides)
    state = model_zoo.get("digits/fbnetv3_digits", device="cpu").state_dict()
    torch.save({"model": state}, tmp_path / "model_final.pth")
    loaded = load_classifier_from_config(DIGITS, overrides).model.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


def test_labeled_images_are_evenly_spaced():
    net = load_classifier_from_name("digits/fbnetv3_digits")
    images, targets = net.labeled_images("val", 12)
    _, all_targets = net.labeled_images("val", 1000)
    assert len(images) == len(targets) == 12 and len(all_targets) == 360
    assert targets == all_targets[::30]


def test_imagenet_classes_have_names():
    net = load_classifier_from_name("fbnetv3_a", weights="random")
    assert (len(net.classes), net.classes[0], net.classes[999]) == (1000, "tench", "toilet tissue")
    assert (net.preprocessing.resolution, net.preprocessing.channels) == (224, 3)


def test_a_network_of_torchvision():
    net = load_classifier_from_name("torchvision/squeezenet1_1", weights="random")
    assert (net.name, len(net.classes)) == ("torchvision/squeezenet1_1", 1000)


def test_a_file_of_class_names(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog"]))
    assert (
        read_class_names(tmp_path / "names.txt")
        == read_class_names(tmp_path / "names.json")
        == ["cat", "dog"]
    )
    net = load_classifier_from_name("fbnetv3_a_cifar", weights="random", classes=tmp_path / "names.txt")
    assert net.classes == ["cat", "dog"] and net.model.num_classes == 2
    with pytest.raises(UsageError, match="has 2 class names, but the network has 10 outputs"):
        load_classifier_from_config(DIGITS, weights="published", classes=tmp_path / "names.txt")


@pytest.mark.parametrize("text", ["", "\n", "a\n\nb"])
def test_a_file_without_names(text, tmp_path):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match="is not a list of names"):
        read_class_names(tmp_path / "names.txt")


@pytest.mark.parametrize(
    "name, arguments, error, message",
    [
        ("fbnetv3_aa", {"weights": "random"}, UnknownNameError, "did you mean fbnetv3_a"),
        ("fbnetv3_a0", {}, UnknownNameError, "no pretrained weights for 'fbnetv3_a0'"),
        ("coco/faster_rcnn_fbnetv3_a_C4", {}, UsageError, "is a detector"),
        ("my/net.yaml", {}, UnknownNameError, "my/net.yaml: no such file, and no config 'my/net.yaml'"),
        ("torchvision/resnet18", {}, UnknownNameError, "no pretrained weights for 'torchvision/resnet18'"),
        ("digits/fbnetv3_digits", {"weights": "/nowhere/no.pth"}, WeightsError, "no such file"),
        ("fbnetv3_a", {"classes": "/nowhere/no.txt", "weights": "random"}, DataError, "cannot be read"),
    ],
)
def test_wrong_calls(name, arguments, error, message):
    with pytest.raises(error, match=message):
        load_classifier_from_name(name, **arguments)
