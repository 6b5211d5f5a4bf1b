"""Subsets drawn by a seed and listed in a file."""

import json

import pytest
from PIL import Image

from fbnetv3.data import build_dataset
from fbnetv3.data.class_subset import draw_class_subset, load_class_subset, save_class_subset
from fbnetv3.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in "abcdef":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
        (tmp_path / "images" / name / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_a_split(root):
    split = draw_class_subset(root, classes=3, held_out=6, seed=1)
    assert len(split.classes) == 3 and list(split.classes) == sorted(split.classes)
    assert len(split.val) == 6 and len(split.train) == 9
    assert not set(split.train) & set(split.val)
    assert {path.split("/")[0] for path in split.train} == set(split.classes)


def test_the_seed_decides(root):
    splits = [draw_class_subset(root, 3, 6, seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


def test_a_round_trip_and_its_dataset(root, tmp_path):
    split = draw_class_subset(root, 2, 3)
    save_class_subset(split, tmp_path / "split.json")
    assert load_class_subset(tmp_path / "split.json") == split
    train, val = (build_dataset("imagelist", str(tmp_path / "split.json"), part) for part in ("train", "val"))
    assert (len(train), len(val)) == (7, 3)
    assert train.classes == val.classes == list(split.classes)
    image, target = val[0]
    assert image.size == (8, 8)
    assert train.classes[target] == split.val[0].split("/")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 1), "has 6 class folders, not 7"),
        ((2, 10), "have 10 images, too few to hold 10 out"),
        ((2, 9), "no training image is left in"),
    ],
)
def test_too_few(root, arguments, message):
    with pytest.raises(DataError, match=message):
        draw_class_subset(root, *arguments)


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"root": "x", "classes": 3, "train": [], "val": []})])
def test_files_that_are_none(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="x.json: is not a split file"):
        load_class_subset(tmp_path / "x.json")
    with pytest.raises(DataError, match="no such split file; tools/make_split.py makes one"):
        load_class_subset(tmp_path / "nowhere.json")


def test_the_tool(root, tmp_path, capsys, monkeypatch):
    import runpy
    import sys
    from pathlib import Path

    tool = Path(__file__).resolve().parents[2] / "tools" / "make_split.py"
    arguments = [str(root), str(tmp_path / "x.json"), "--classes", "2", "--held-out", "3"]
    monkeypatch.setattr(sys, "argv", ["make_split.py", *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(tool), run_name="__main__")
    assert end.value.code == 0
    assert "2 classes, 7 training, 3 validation images" in capsys.readouterr().out
