"""`fbnetv3 predict`: files, folders, patterns and standard input in; text, CSV, JSON and pictures out."""

import csv
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.model_zoo import zoo
from fbnetv3.model_zoo.pretrained import load_classifier_from_checkpoint
from fbnetv3.training.run_state.network_record import read_network_record
from tests.deploy.conftest import digits, exported  # noqa: F401 - fixtures

MODEL = "digits/fbnetv3_digits"


def labels(ran):
    """Return the first label of each image, by the last part of its name."""
    lines = ran.out.splitlines()
    names = [line for line in lines if line and not line.startswith("  ") and "skipped" not in line]
    return {name.rpartition("/")[2]: lines[lines.index(name) + 1].split()[0] for name in names}


def test_a_folder_past_a_corrupt_file(fbnetv3, photos):
    ran = fbnetv3("predict", MODEL, photos, "--top", 1, "--batch-size", 2)
    assert labels(ran) == {"0.png": "0", "1.png": "1", "2.png": "2", "3.png": "3"}
    first, last = ran.err.splitlines()
    assert f"{photos}/broken.jpg: corrupt image" in first
    assert (ran.code, last) == (1, "error: 1 of 5 images could not be read; they are named above")


def test_patterns_and_files(fbnetv3, photos):
    ran = fbnetv3("predict", MODEL, f"{photos}/**/3.png", photos / "1.png", "--top", 1)
    assert ran.code == 0 and list(labels(ran)) == ["3.png", "1.png"]


def test_folders_that_a_pattern_matches_are_left_out(fbnetv3, photos):
    ran = fbnetv3("predict", MODEL, f"{photos}/*", "--top", 1)
    assert (photos / "more").is_dir() and list(labels(ran)) == ["0.png", "1.png", "2.png"]
    assert (
        "2 of 5 images could not be read" in ran.err
    )  # the pattern also matches a corrupt file and a text


@pytest.mark.parametrize(
    "source, message", [("*.gif", "*.gif: matches no file"), ("empty", "empty: contains no images")]
)
def test_sources_without_images(fbnetv3, tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    ran = fbnetv3("predict", MODEL, source)
    assert (ran.code, ran.err) == (1, f"error: {message}\n")


def test_an_image_on_standard_input(fbnetv3, photos):
    ran = fbnetv3("predict", MODEL, "-", "--top", 1, stdin=(photos / "2.png").read_bytes())
    assert labels(ran) == {"-": "2"}


def test_names_on_standard_input(fbnetv3, photos):
    names = f"{photos}/1.png\n\n{photos}/more/3.png\n".encode()
    assert labels(fbnetv3("predict", MODEL, "-", "--top", 1, stdin=names)) == {"1.png": "1", "3.png": "3"}


def test_a_url_that_cannot_be_downloaded(fbnetv3, photos):
    ran = fbnetv3("predict", MODEL, "http://127.0.0.1:9/a.png", photos / "1.png", "--top", 1)
    assert ran.code == 1 and labels(ran) == {"1.png": "1"}
    assert "http://127.0.0.1:9/a.png: download failed" in ran.err


def test_csv_and_json(fbnetv3, photos, tmp_path):
    files = ["--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json"]
    fbnetv3("predict", MODEL, photos, "--top", 2, *files)
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    items = json.loads((tmp_path / "p.json").read_text())
    assert list(rows[0]) == ["image", "label", "probability", "label_2", "probability_2", "error"]
    assert [row["image"] for row in rows] == [item["image"] for item in items]
    for row, item in zip(rows, items, strict=True):
        if row["image"].endswith("broken.jpg"):
            assert row["error"] == item["error"] and not item["predictions"] and not row["label"]
        else:
            first, second = item["predictions"]
            assert (row["label"], row["label_2"]) == (first["label"], second["label"])
            assert float(row["probability"]) == pytest.approx(first["probability"], abs=1e-6)
            assert "error" not in item and first["class_index"] == int(first["label"])


def test_names_that_are_not_utf_8(fbnetv3, photos, tmp_path):
    name = os.fsdecode(b"photo\xe9.png")
    (photos / "1.png").rename(photos / name)
    ran = fbnetv3("predict", MODEL, photos / name, "--top", 1, "--csv", tmp_path / "p.csv")
    assert ran.code == 0 and b"photo\xe9.png,1," in (tmp_path / "p.csv").read_bytes()


def test_pictures_of_equal_names_stay_apart(fbnetv3, photos, tmp_path):
    (photos / "more/0.png").write_bytes((photos / "more/3.png").read_bytes())
    fbnetv3("predict", MODEL, photos, "--top", 2, "--pictures", tmp_path / "pictures")
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["0.jpg", "0_2.jpg", "1.jpg", "2.jpg", "3.jpg"]
    # The image above, and two lines of text on white below
    picture = np.asarray(Image.open(tmp_path / "pictures/1.jpg"))
    image = np.asarray(Image.open(photos / "1.png").convert("RGB"))
    assert picture.shape[0] == 48 + 2 * 24 + 8
    left = (picture.shape[1] - 64) // 2
    difference = picture[:48, left : left + 64].astype(int) - image
    assert np.abs(difference).mean() < 5
    assert (picture[48:] < 100).any() and (picture[48:] > 250).mean() > 0.5


def test_turned_photos_are_classified_as_a_viewer_shows_them(fbnetv3, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it to the right
    image = Image.open(photos / "2.png").convert("RGB")
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "2.jpg", quality=95, exif=exif)
    assert labels(fbnetv3("predict", MODEL, tmp_path / "2.jpg", "--top", 1)) == {"2.jpg": "2"}


def test_a_model_that_does_not_exist(fbnetv3, photos):
    ran = fbnetv3("predict", "nothing", photos)
    assert ran.code == 2 and ran.err.count("\n") == 1
    kinds = "run, checkpoint, exported folder, config or model zoo entry"
    assert f"nothing: no such {kinds}, and unknown architecture 'nothing'" in ran.err


@pytest.fixture
def several_labels(tmp_path):
    """Return a checkpoint of the digits network that says that images have several labels."""
    weights = zoo.entry(MODEL).local_weights()
    record = replace(read_network_record(str(weights)), multi_label=True, classes=tuple("0123456789"))
    checkpoint = torch.load(weights, weights_only=True)
    torch.save({"model": checkpoint["model"], **record.to_metadata()}, tmp_path / "labels.pth")
    return tmp_path / "labels.pth"


def test_labels_above_the_threshold(fbnetv3, photos, several_labels, tmp_path):
    """The labels are those of which the sigmoid of the logit reaches it; an image may have none."""
    network = load_classifier_from_checkpoint(several_labels)
    with Image.open(photos / "1.png") as image, torch.no_grad():
        probabilities = network.model(network.preprocessing.transform()(image)[None])[0].sigmoid()
    ranked = probabilities.sort(descending=True)
    threshold = float(ranked.values[1:3].mean())
    files = [
        "--csv",
        tmp_path / "p.csv",
        "--json",
        tmp_path / "p.json",
        "--pictures",
        tmp_path / "pictures",
    ]
    ran = fbnetv3("predict", several_labels, photos / "1.png", "--threshold", threshold, *files)
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [
        str(i.item()) for i in ranked.indices[:2]
    ]
    [item] = json.loads((tmp_path / "p.json").read_text())
    assert [p["class_index"] for p in item["predictions"]] == ranked.indices[:2].tolist()
    ran = fbnetv3("predict", several_labels, photos / "1.png", "--threshold", 1, *files)
    assert (ran.code, ran.out) == (0, f"{photos}/1.png\n  no label\n")
    assert json.loads((tmp_path / "p.json").read_text()) == [
        {"image": f"{photos}/1.png", "predictions": []}
    ]
    [row] = csv.DictReader((tmp_path / "p.csv").open())
    assert row == {"image": f"{photos}/1.png", "label": "", "probability": "", "error": ""}
    assert Image.open(tmp_path / "pictures/1.jpg").height == 48 + 24 + 8  # a line of text below the image


def test_a_threshold_needs_several_labels(fbnetv3, photos):
    ran = fbnetv3("predict", MODEL, photos / "1.png", "--threshold", 0.5)
    message = "threshold 0.5: fbnetv3_digits has one class per image; use top"
    assert (ran.code, ran.err, ran.out) == (2, f"error: {message}\n", "")


def test_augmented_views(fbnetv3, photos):
    """A digit and its mirror image get the same probabilities with --tta flip, and others without."""
    Image.open(photos / "2.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / "mirrored.png")
    images = (photos / "2.png", photos / "mirrored.png")
    for views, is_same in (("flip", True), ("none", False)):
        first, second = (fbnetv3("predict", MODEL, image, "--tta", views) for image in images)
        assert (first.out.splitlines()[1:] == second.out.splitlines()[1:]) is is_same


def test_a_device(fbnetv3, photos, exported):  # noqa: F811
    image = photos / "2.png"
    automatic, on_cpu = (fbnetv3("predict", MODEL, image, "--device", name) for name in ("auto", "cpu"))
    assert (on_cpu.code, automatic.out) == (0, on_cpu.out)
    for model in (MODEL, exported("torch-export")):
        ran = fbnetv3("predict", model, image, "--device", "cuda:77")
        assert ran.code == 2 and ran.err.count("\n") == 1
        assert ran.err.startswith("error: device 'cuda:77' cannot be used here (")
