"""Class subsets drawn with a seed and listed in a file."""

import json
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from fbnetv3.data import build_dataset
from fbnetv3.data.classes.class_subset import draw_class_subset, load_class_subset, save_class_subset
from fbnetv3.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in "abcdef":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
        (tmp_path / "images" / name / "notes.txt").write_text("not an image")
    return tmp_path / "images"


def test_a_subset(root):
    subset = draw_class_subset(root, num_classes=3, num_val=6, seed=1)
    assert len(subset.classes) == 3 and list(subset.classes) == sorted(subset.classes)
    assert len(subset.val) == 6 and len(subset.train) == 9
    assert not set(subset.train) & set(subset.val)
    assert {path.split("/")[0] for path in subset.train} == set(subset.classes)


def test_subsets_depend_on_the_seed(root):
    subsets = [draw_class_subset(root, 3, 6, seed) for seed in (0, 0, 1)]
    assert subsets[0] == subsets[1] != subsets[2]


def test_a_fraction_of_each_class(root):
    """A third of five images is two, of two images one, and the only image of a class stays in training."""
    for name in ("a/2.png", "a/3.png", "a/4.png", "b/1.png", "b/2.png", "b/3.png", "b/4.png"):
        (root / name).unlink()
    subset = draw_class_subset(root, None, num_val=1 / 3)
    assert subset.classes == tuple("abcdef")
    held_out = Counter(path.split("/")[0] for path in subset.val)
    assert held_out == {"a": 1, "c": 2, "d": 2, "e": 2, "f": 2}
    assert len(subset.train) == 2 + 1 + 4 * 5 - 9


def test_a_subset_file_and_its_dataset(root, tmp_path):
    subset = draw_class_subset(root, 2, 3)
    save_class_subset(subset, tmp_path / "subset.json")
    assert load_class_subset(tmp_path / "subset.json") == subset
    train, val = (
        build_dataset("imagelist", str(tmp_path / "subset.json"), part) for part in ("train", "val")
    )
    assert (len(train), len(val)) == (7, 3)
    assert train.classes == val.classes == list(subset.classes)
    image, target = val[0]
    assert image.size == (8, 8)
    assert train.classes[target] == subset.val[0].split("/")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 1), "has 6 class folders, fewer than the 7 requested; lower --classes"),
        ((2, 10), "have only 10 images, too few to hold out 10 and train on 1; lower"),
        ((2, 9), "no training images are left in .*; hold out fewer images"),
        ((2, 5, 0, 6), "have only 10 images, too few to hold out 5 and train on 6; lower"),
    ],
)
def test_too_few_classes_or_images(root, arguments, message):
    with pytest.raises(DataError, match=message):
        draw_class_subset(root, *arguments)
    with pytest.raises(DataError, match="nowhere: no such folder"):
        draw_class_subset(root / "nowhere")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"root": "x", "classes": 3, "train": [], "val": []})]
)
def test_files_that_are_not_subsets(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="x.json: cannot be read as a subset file"):
        load_class_subset(tmp_path / "x.json")
    with pytest.raises(
        DataError, match="nowhere.json: cannot be read .*; draw one with tools/make_split.py"
    ):
        load_class_subset(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--classes", "2", "--held-out", "3"], "2 classes, 7 training, 3 validation images"),
        (["--classes", "all", "--held-out", "20%"], "6 classes, 24 training, 6 validation images"),
    ],
)
def test_the_tool(root, tmp_path, capsys, monkeypatch, options, expected):
    import runpy
    import sys
    from pathlib import Path

    tool = Path(__file__).resolve().parents[3] / "tools" / "make_split.py"
    arguments = [str(root), str(tmp_path / "x.json"), *options]
    monkeypatch.setattr(sys, "argv", ["make_split.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name="__main__")
    assert end.value.code == 0
    assert expected in capsys.readouterr().out


def test_a_class_that_is_listed_twice(root, tmp_path):
    subset = draw_class_subset(root, 2, 3)
    save_class_subset(
        replace(subset, classes=(*subset.classes, subset.classes[0])), tmp_path / "subset.json"
    )
    with pytest.raises(DataError, match=f"lists the class {subset.classes[0]} more than once"):
        load_class_subset(tmp_path / "subset.json")
