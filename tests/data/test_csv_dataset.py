"""Datasets in CSV files, with one class or several labels per image."""

import pytest
import torch
from PIL import Image

from fbnetv3.data import build_dataset
from fbnetv3.data.classes.class_balance import class_weights
from fbnetv3.errors import DataError

SEVERAL = "file,labels\nimages/a.png,red|round\nimages/b.png,red\nimages/c.png,\nimages/b.png,blue \n"
SINGLE = "label,file,comment\nred,images/a.png,x\nblue,images/b.png,y\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{name}.png")

    def write(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.csv").write_text(text)
        return str(tmp_path)

    return write


def test_several_labels_in_one_row_or_in_several(folder):
    dataset = build_dataset("csv", folder(train=SEVERAL), "train")
    assert dataset.classes == ["blue", "red", "round"] and dataset.multi_label
    assert [dataset[i][1].tolist() for i in range(3)] == [[0, 1, 1], [1, 1, 0], [0, 0, 0]]
    assert dataset[0][0].size == (4, 4) and dataset.image_name(2).endswith("images/c.png")


def test_one_class(folder):
    dataset = build_dataset("csv", folder(train="\ufeff" + SINGLE), "train")
    assert (dataset.classes, dataset.multi_label) == (["blue", "red"], False)
    assert [dataset[i][1] for i in range(2)] == list(dataset.targets) == [1, 0]


@pytest.mark.parametrize(
    "text",
    [
        "file;label\nimages/a.png;red\nimages/b.png;blue\n",
        "file\tlabel\r\nimages/a.png\tred\r\nimages/b.png\tblue\r\n",
        '"file", "label"\n"images/a.png", "red"\n"images/b.png", "blue"\n',
        "file,label,note\nimages/a.png,red,x;y;z\nimages/b.png,blue,\n",
    ],
)
def test_tables_as_spreadsheets_write_them(folder, text):
    for mark in ("", "\ufeff"):
        dataset = build_dataset("csv", folder(train=mark + text), "train")
        assert dataset.paths == ["images/a.png", "images/b.png"]
        assert [dataset.classes[dataset[i][1]] for i in range(2)] == ["red", "blue"]


def test_an_absolute_path(folder, tmp_path):
    dataset = build_dataset("csv", folder(train=f"file,label\n{tmp_path}/images/a.png,red\n"), "train")
    assert dataset.image_name(0) == f"{tmp_path}/images/a.png" and dataset[0][0].size == (4, 4)


def test_classes_are_those_of_the_training_images(folder):
    val = build_dataset("csv", folder(train=SEVERAL, test="file,labels\nimages/a.png,round\n"), "val")
    assert val.classes == ["blue", "red", "round"] and val[0][1].tolist() == [0, 0, 1]


def test_class_weights_count_labels(folder):
    dataset = build_dataset("csv", folder(train=SEVERAL), "train")  # 1 blue, 2 red, 1 round
    assert class_weights(dataset, "balanced", []) == pytest.approx([4 / 3, 2 / 3, 4 / 3])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "train.csv: no such file; each split needs one"),
        (
            {"train": "a,b\n"},
            r"train.csv: needs the columns file and label \(or labels\) in its first line, not 'a, b'",
        ),
        ({"train": "file,label\n"}, "train.csv: lists no images"),
        ({"train": "file,labels\na.png,\n"}, "train.csv: has no labels"),
        ({"train": "file,label\n,red\n"}, "train.csv:2: names no file"),
        (
            {"train": "file,label\na.png,\n"},
            "train.csv:2: a.png has no label; for several labels or none, name",
        ),
        (
            {"train": SINGLE + "red,images/a.png,\n"},
            "train.csv:4: images/a.png is listed twice; for several",
        ),
        (
            {"train": SINGLE + "blue,./images/../images/a.png,\n"},
            "train.csv:4: images/a.png is listed twice; for several",
        ),
        ({"train": SEVERAL}, "val.csv: no such file"),
        (
            {"train": SEVERAL, "val": "file,labels\na.png,rund\n"},
            "a.png has the label 'rund', which no training ",
        ),
        (
            {"train": SEVERAL, "val": "file,label\na.png,red\n"},
            "val.csv: must have the same columns as .*train.csv",
        ),
    ],
)
def test_mistakes_in_files(folder, files, message):
    with pytest.raises(DataError, match=message):
        build_dataset("csv", folder(**files), "val")


def test_targets_are_separate_tensors(folder):
    dataset = build_dataset("csv", folder(train=SEVERAL), "train")
    assert dataset[0][1].dtype == torch.float32
