"""Images in, labels with probabilities out; what is damaged or missing is named."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from fbnetv3.deploy import Predictor, load
from fbnetv3.errors import DataError, ExportError, MissingPackageError, UsageError


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(exported("torch-export"), tmp_path / "digits")


@pytest.fixture(scope="module")
def predictor(exported):
    return load(exported("torch-export"))


def test_paths_arrays_and_pillow_images_are_the_same(predictor, held_out, tmp_path):
    image = held_out[0][0]
    image.save(tmp_path / "digit.png")
    array = np.asarray(image)
    same = [image, array, array[:, :, None], np.stack([array] * 3, 2), tmp_path / "digit.png", f"{tmp_path}/digit.png"]
    found = predictor(same)
    assert [p.index for p in found[0]] == [p.index for p in found[1]]
    for each in found[1:]:
        assert [p.probability for p in each] == pytest.approx([p.probability for p in found[0]], abs=1e-5)
    assert found[0][0].label == str(held_out[1][0])


def test_one_image_gives_its_predictions_a_list_gives_a_list(predictor, held_out):
    images, targets = held_out
    one, several = predictor(images[3]), predictor(images[:4])
    assert len(one) == 5 and len(several) == 4
    assert one[0].label == several[3][0].label == str(targets[3])
    assert predictor([]) == []


def test_probabilities(predictor, held_out):
    every = predictor(held_out[0][0], top=99)
    assert len(every) == 10
    assert sum(p.probability for p in every) == pytest.approx(1)
    assert every == sorted(every, key=lambda p: -p.probability)
    assert predictor(held_out[0][0], top=2) == every[:2]
    assert all(p.label == predictor.classes[p.index] for p in every)


def test_huge_logits_overflow_nothing(digits):
    class Huge:
        name = "huge"

        def run(self, batch):
            return np.eye(10, dtype=np.float32)[:1] * 1e5

    (best, *_) = Predictor(Huge(), digits.preprocessing, digits.classes)(np.zeros((8, 8), np.uint8))
    assert (best.label, best.probability) == ("0", 1.0)


@pytest.mark.parametrize(
    "image, message",
    [
        ("nowhere.png", "nowhere.png: no such image"),
        (".", "is a folder, not an image"),
        (np.zeros((8, 8)), "an array of float64 is no image: give uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\) is no image.*channels come last"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"several images: pass list\(array\)"),
        (np.zeros((0, 8), np.uint8), "no image"),
        (7, "is a int; an image is a path"),
        (Image.new("L", (0, 4)), "has no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_images(image, message, predictor):
    with pytest.raises(DataError, match=message):
        predictor(image)


def test_a_wrong_image_among_others_is_named(predictor, held_out, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(DataError, match=r"torn.jpg: damaged image"):
        predictor([held_out[0][0], tmp_path / "torn.jpg"])
    with pytest.raises(DataError, match=r"images\[33\]: is a NoneType"):
        predictor([held_out[0][0]] * 33 + [None])


def test_wrong_numbers(predictor, held_out):
    for arguments in ({"top": 0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="less than 1"):
            predictor(held_out[0][0], **arguments)


@pytest.mark.parametrize("name", ["model.pt2", "preprocessing.json", "classes.json"])
def test_a_damaged_or_missing_file_is_named(name, folder):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name}: damaged .* SHA-256 differ from manifest.json"):
        load(folder)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(ExportError, match=f"{name}: damaged"):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(ExportError, match=f"{name}: cannot be read .No such file"):
        load(folder)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[]", "not a manifest"),
        ("{}", "not a manifest"),
        (None, "has no manifest.json: it is not an exported folder"),
    ],
)
def test_a_damaged_manifest(text, message, folder):
    (folder / "manifest.json").unlink()
    if text is not None:
        (folder / "manifest.json").write_text(text)
    with pytest.raises(ExportError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layout": 3}, "newer fbnetv3: update"),
        ({"format": "tflite"}, "not a manifest"),
        ({"task": "segmentation"}, "not a manifest"),
        ({"files": {}}, "damaged: lists"),
        ({"files": {"../model.pt2": {"sha256": "", "bytes": 1}}}, "damaged: lists"),
    ],
)
def test_a_changed_manifest(changes, message, folder):
    fields = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(fields | changes))
    with pytest.raises(ExportError, match=message):
        load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(ExportError, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")


def test_a_missing_runtime_is_named(exported, monkeypatch):
    folder = exported("onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match="run pip install onnxruntime"):
        load(folder)
