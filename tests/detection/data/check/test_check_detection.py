"""The check of a detection dataset: what it finds about files, images and boxes, and its report."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations
from fbnetv3.detection.data.check.box_findings import box_iou
from fbnetv3.detection.data.check.box_statistics import box_tables, count_edges
from fbnetv3.detection.data.check.check_detection import check_detection_path
from fbnetv3.detection.data.check.detection_images import DetectionImages
from fbnetv3.detection.data.formats import AnnotationSource
from fbnetv3.detection.inference.visualize import class_color
from fbnetv3.errors import DataError
from tests.detection.annotation_files import write_formats
from tests.detection.coco_files import annotation, dataset, save_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset in all formats; tests change copies of it."""
    return write_formats(tmp_path_factory.mktemp("formats"))


@pytest.fixture
def yolo(data, tmp_path):
    """A copy of the dataset in YOLO's format, to change."""
    root = shutil.copytree(data["yolo"].parent, tmp_path / "yolo")
    values = yaml.safe_load((root / "data.yaml").read_text()) | {"path": "."}
    (root / "data.yaml").write_text(yaml.safe_dump(values))
    return root


def check(path):
    """Return the check, and the messages of its findings by kind."""
    result = check_detection_path(path, progress=False)
    return result, {finding.kind: finding.message for finding in result.findings}


@pytest.mark.parametrize("name", ["coco", "yolo", "voc", "csv"])
def test_every_format_can_be_checked(data, name):
    result, kinds = check(data[name])
    assert not result.has_errors
    assert {split: len(contents.images) for split, contents in result.splits.items()} == {
        "train": 6,
        "val": 3,
    }
    assert list(kinds) == ["few boxes", "no boxes"]


def test_ids_that_are_numbers_and_text_have_an_order_in_a_file_that_cannot_be_cleaned(tmp_path):
    data = dataset(1, [annotation(bbox=(8, 8, -1, 16))])
    data["categories"][1]["id"] = "dog"
    file, _ = save_dataset(tmp_path, data)
    result, kinds = check(file)
    assert "negative width" in kinds["annotations of all"]
    assert result.splits["all"].dataset.classes == ["cat", "dog"]


@pytest.mark.parametrize("most", [0, 1, 29, 30, 61, 62, 100])
def test_the_histogram_of_boxes_per_image_has_all_images(most):
    numbers = np.arange(most + 1)
    assert np.histogram(numbers, count_edges(most))[0].sum() == most + 1


def test_corrupt_images_are_named_and_the_others_keep_their_boxes(yolo):
    (yolo / "images" / "train" / "train_1.png").write_bytes(b"no image")
    result, kinds = check(yolo)
    assert kinds["corrupt"] == "1 image cannot be read: repair them, or remove them with their annotations"
    assert "annotations of train" not in kinds
    assert kinds["no boxes"].startswith("1 image without boxes")  # not the corrupt one
    assert result.tables[0].rows[0][:2] == ["train", "9"]  # of 12 boxes


def test_lines_that_are_wrong_and_the_other_split(yolo):
    (yolo / "labels" / "train" / "train_0.txt").write_text("9 0.5 0.5 0.1 0.1\n")
    result, kinds = check(yolo)
    assert "labels/train/train_0.txt:1: class 9 has no name" in kinds["annotations of train"]
    assert list(result.splits) == ["val"]


def test_equal_images_in_both_splits_whatever_their_names(yolo):
    shutil.copy(yolo / "images" / "train" / "train_0.png", yolo / "images" / "val" / "other.png")
    _, kinds = check(yolo)
    assert kinds["leak"].startswith("1 image is in both train and val (1 as the same file")


def test_boxes_that_are_clipped_left_out_or_repeated(tmp_path):
    boxes = [(8, 8, 24, 16), (8, 8, 24, 16.5), (-20, 8, 40, 16), (30, 30, 0, 10), (1, 1, 60, 5)]
    annotations = [annotation(number, bbox=box) for number, box in enumerate(boxes, 1)]
    file, _ = save_dataset(tmp_path, dataset(2, annotations))
    result, kinds = check(file)
    assert "clipped: boxes that exceed their image (1)" in kinds["corrected boxes of all"]
    assert "left out: boxes without area inside their image (1)" in kinds["corrected boxes of all"]
    assert kinds["repeated boxes"].startswith("1 image with nearly equal boxes of the same class")
    assert kinds["tiny boxes"] == "1 image with boxes that have a side below 8 pixels"
    assert kinds["elongated boxes"] == "1 image with boxes more than 8 times as long as wide"
    assert kinds["no boxes"].startswith("1 image without boxes")
    assert kinds["classes without boxes"] == "no box in all of dog"
    assert result.tables[0].rows[0][-2:] == ["1", "1"]


def test_annotations_that_cannot_be_used(tmp_path):
    file, _ = save_dataset(tmp_path, dataset(1, [annotation(category_id=77)]))
    result, kinds = check(file)
    assert "category 77" in kinds["annotations of all"]
    assert len(result.splits["all"].images) == 1 and result.tables == []
    file.write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(DataError, match='the list "images" is empty'):
        check(file)


def test_the_problems_of_all_splits_are_listed(yolo):
    for split in ("train", "val"):
        (yolo / "labels" / split / f"{split}_0.txt").write_text("77 0.5 0.5 0.1 0.1\n")
    with pytest.raises(
        DataError, match=r"train_0\.txt:1: class 77 has no name; .*val_0\.txt:1: class 77 has no name"
    ):
        check(yolo)


def test_sizes_of_boxes(tmp_path):
    """COCO's limits are areas of 32 x 32 and 96 x 96."""
    boxes = [(0, 0, 31, 32), (0, 0, 32, 32), (0, 0, 96, 96), (0, 0, 50, 200)]
    annotations = [
        annotation(number, bbox=box, category_id=1 + number % 2) for number, box in enumerate(boxes)
    ]
    data = dataset(1, annotations)
    data["images"][0] |= {"width": 400, "height": 300}
    clean = clean_annotations(data, tmp_path, "test.json")
    splits, classes = box_tables({"train": clean})
    expected = {"boxes": "4", "per image": "4.0", "small": "1", "medium": "1", "large": "2"}
    expected |= {"side": "31 - 64 - 100", "width / height": "0.25 - 0.98 - 1.00", "empty images": "0"}
    row = dict(zip(splits.headers, splits.rows[0], strict=True))
    assert {key: row[key] for key in expected} == expected
    assert classes.rows == [
        ["cat", "2", "1", "0", "1", "31 - 64 - 96"],
        ["dog", "2", "0", "1", "1", "32 - 66 - 100"],
    ]


def test_intersection_over_union():
    assert box_iou([0, 0, 10, 10], [5, 0, 10, 10]) == pytest.approx(50 / 150)
    assert box_iou([0, 0, 10, 10], [20, 0, 10, 10]) == 0


def test_boxes_are_drawn_at_the_size_of_the_picture(tmp_path):
    file, _ = save_dataset(tmp_path, dataset(1, [annotation(bbox=(8, 16, 40, 24), category_id=2)]))
    raw = AnnotationSource(file).read()
    images = DetectionImages(raw, clean_annotations(raw.data, raw.image_root, raw.source))
    picture = np.asarray(images.decorate(Image.new("RGB", (640, 480)), 0))
    drawn = np.argwhere((picture[:, 80:480] == class_color(1)).all(-1).sum(1) > 350)
    assert (drawn.min(), drawn.max()) == (160, 399)


def test_the_page_has_tables_and_pictures(data, tool, tmp_path):
    ran = tool(
        "check_data",
        data["voc"],
        "--workers",
        1,
        "--html",
        tmp_path / "a.html",
        "--json",
        tmp_path / "a.json",
    )
    assert (ran.code, ran.err) == (0, "")
    # A column per split, so that the table fits into a terminal
    assert re.search(r"^split +train +val$", ran.out, re.MULTILINE)
    assert re.search(r"^per image +2\.0 +\d\.\d$", ran.out, re.MULTILINE)
    page = (tmp_path / "a.html").read_text()
    for text in ("Boxes by class", "Box sizes", "width / height", 'class="large"'):
        assert text in page
    tables = json.loads((tmp_path / "a.json").read_text())["tables"]
    assert tables["Boxes"][0]["boxes"] == "12"


def test_the_datasets_of_a_config(data, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--workers", 1, "--html", "")
    ran = tool("check_data", "DATASETS.CUSTOM.DATA", data["csv"], *options)
    assert ran.code == 0 and re.search(r"^train +6 +3 ", ran.out, re.MULTILINE)
    table = ran.out[ran.out.index("split ") :]
    config = "configs/coco/finetune_fbnetv3_a_C4.yaml"
    assert tool(
        "check_data", "--config", config, "DATASETS.CUSTOM.DATA", data["csv"], *options
    ).out.endswith(table)
