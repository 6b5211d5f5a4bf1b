"""A trained classifier from a config or a name: its network, its preprocessing, its class names."""

import json

import pytest
import torch
from PIL import Image

from fbnetv3 import model_zoo
from fbnetv3.deploy.input_images import images_below, sample_images
from fbnetv3.errors import DataError, UnknownNameError, UsageError, WeightsError
from fbnetv3.model_zoo.pretrained import from_config, from_name, read_classes
from tests.test_docs import ROOT

DIGITS = ROOT / "configs/digits/fbnetv3_digits.yaml"


def test_from_a_config_with_published_weights():
    found = from_config(DIGITS, weights="published")
    entry = model_zoo.entry("digits/fbnetv3_digits")
    assert (found.preprocessing, found.classes) == (entry.preprocessing, [str(d) for d in range(10)])
    theirs = model_zoo.get(entry, trained=True, device="cpu").state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in found.model.state_dict().items())
    assert not found.model.training


def test_from_the_run_of_a_config(tmp_path):
    run = ["OUTPUT_DIR", str(tmp_path)]
    with pytest.raises(UsageError, match="no weights: give --weights FILE or published"):
        from_config(DIGITS, run)
    state = model_zoo.get("digits/fbnetv3_digits", device="cpu").state_dict()
    torch.save({"model": state}, tmp_path / "model_final.pth")
    found = from_config(DIGITS, run).model.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in state.items())


def test_imagenet_classes_have_names():
    found = from_name("fbnetv3_a", weights="random")
    assert (len(found.classes), found.classes[0], found.classes[999]) == (1000, "tench", "toilet tissue")
    assert (found.preprocessing.resolution, found.preprocessing.channels) == (224, 3)


def test_own_classes(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog"]))
    assert read_classes(tmp_path / "names.txt") == read_classes(tmp_path / "names.json") == ["cat", "dog"]
    found = from_name("fbnetv3_a_cifar", weights="random", classes=tmp_path / "names.txt")
    assert found.classes == ["cat", "dog"] and found.model.num_classes == 2
    with pytest.raises(UsageError, match="2 class names for 10 outputs"):
        from_config(DIGITS, weights="published", classes=tmp_path / "names.txt")


@pytest.mark.parametrize("text", ["", "\n", "a\n\nb"])
def test_a_file_without_names(text, tmp_path):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(DataError, match="holds no list of names"):
        read_classes(tmp_path / "names.txt")


def test_wrong_calls(tmp_path):
    for call, error, message in (
        (lambda: from_name("fbnetv3_aa", weights="random"), UnknownNameError, "did you mean fbnetv3_a"),
        (lambda: from_name("fbnetv3_a0"), UnknownNameError, "no pretrained weights for 'fbnetv3_a0'"),
        (lambda: from_name("coco/faster_rcnn_fbnetv3_a_C4"), UsageError, "is a detector"),
        (lambda: from_name("digits/fbnetv3_digits", weights=str(tmp_path / "no.pth")), WeightsError, "no such file"),
        (lambda: from_name("fbnetv3_a", classes=tmp_path / "no.txt", weights="random"), DataError, "cannot be read"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_images_to_try_a_network_with(tmp_path):
    photos, digits = sample_images(3), sample_images(1)
    assert len(photos) == 10 and {photo.mode for photo in photos} == {"RGB"}
    assert len(digits) == 32 and {digit.size for digit in digits} == {(8, 8)}
    assert max(digit.getextrema()[1] for digit in digits) == 255
    for i in range(5):
        (tmp_path / f"{i}").mkdir()
        Image.new("RGB", (4 + i, 4)).save(tmp_path / f"{i}" / "x.PNG")
    assert [image.size[0] for image in images_below(tmp_path)] == [4, 5, 6, 7, 8]
    assert [image.size[0] for image in images_below(tmp_path, most=2)] == [4, 6]
    with pytest.raises(DataError, match="no such folder"):
        images_below(tmp_path / "nowhere")
