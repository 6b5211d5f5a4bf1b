"""Annotations converted to COCO's and YOLO's formats, and read again."""

import json
import re

import pytest
import yaml
from pycocotools.coco import COCO

from fbnetv3.detection.data.annotation_writers import write_coco, write_yolo
from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations
from fbnetv3.detection.data.formats import AnnotationSource
from fbnetv3.errors import DataError
from tests.detection.annotation_files import CLASSES, write_formats
from tests.detection.coco_files import annotation, dataset, save_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same dataset by format."""
    return write_formats(tmp_path_factory.mktemp("formats"))


def read_clean(path, split="", images=None):
    raw = AnnotationSource(path, images, split=split).read()
    return clean_annotations(raw.data, raw.image_root, raw.source)


def boxes(clean):
    """Return name, class and box of all annotations."""
    return [
        (
            clean.images[a["image_id"] - 1]["file_name"].split("/")[-1],
            clean.classes[a["category_id"] - 1],
            a["bbox"],
        )
        for a in clean.annotations
    ]


@pytest.mark.parametrize("name", ["yolo", "voc", "csv", "lvis"])
def test_conversion_to_coco(tool, data, name, tmp_path):
    ran = tool("convert_annotations", data[name], "--output", tmp_path / "converted")
    assert ran.code == 0 and ran.out.count("\n") == 2
    images = ran.out.split("images in ")[1].split(")")[0]
    for split in ("train", "val"):
        converted = tmp_path / "converted" / f"{split}.json"
        assert boxes(read_clean(converted, images=images)) == boxes(read_clean(data["coco"], split))
        # Others' readers need all keys
        keys = {key for entry in json.loads(converted.read_text())["annotations"] for key in entry}
        assert {"id", "image_id", "category_id", "bbox", "area", "iscrowd"} <= keys


def test_a_folder_called_images_in_the_names_keeps_its_labels(tmp_path):
    """YOLO's readers replace the last "images" of a path by "labels"."""
    data = dataset(2, [annotation(1, 1), annotation(2, 2)])
    data["images"][0]["file_name"] = "images/a/1.png"
    file, root = save_dataset(tmp_path, data)
    source = clean_annotations(data, root, file)
    converted = read_clean(write_yolo({"train": source}, tmp_path / "converted"), "train")
    assert sorted(boxes(converted)) == boxes(source)
    again = write_yolo({"train": converted}, tmp_path / "again")
    assert sorted(boxes(read_clean(again, "train"))) == boxes(source)


def test_conversion_to_yolo(tool, data, tmp_path):
    ran = tool("convert_annotations", data["coco"], "--to", "yolo", "--output", tmp_path / "converted")
    assert ran.out == f"yolo:        {tmp_path / 'converted' / 'data.yaml'}\n"
    for split in ("train", "val"):
        converted = read_clean(tmp_path / "converted", split)
        assert boxes(converted) == boxes(read_clean(data["coco"], split))
        assert converted.summary.empty_images == read_clean(data["coco"], split).summary.empty_images


def test_boxes_of_any_size_survive_yolo_to_a_millionth_of_a_pixel(tmp_path):
    box = (45.52, 12.31, 7.19, 20.07)
    file, root = save_dataset(tmp_path, dataset(1, [annotation(bbox=box)]))
    write_yolo({"train": read_clean(file, images=root)}, tmp_path / "converted")
    assert read_clean(tmp_path / "converted", "train").annotations[0]["bbox"] == list(box)


def test_an_undivided_dataset_is_for_training_and_validation(tool, data, tmp_path):
    """Ultralytics requires both keys."""
    tool("convert_annotations", data["coco"] / "val.json", "--to", "yolo", "--output", tmp_path)
    values = yaml.safe_load((tmp_path / "data.yaml").read_text())
    assert (values["train"], values["val"]) == ("images/train", "images/train")
    assert values["names"] == dict(enumerate(CLASSES))
    assert boxes(read_clean(tmp_path, "train")) == boxes(read_clean(data["coco"], "val"))


def test_masks_and_crowds_are_kept_in_coco(tmp_path):
    polygon = [[8, 8, 32, 8, 32, 24, 8, 24]]
    run_lengths = {"counts": [0, 48, 64 * 48 - 48], "size": [48, 64]}  # the first column
    annotations = [
        annotation(1, segmentation=polygon),
        annotation(2, bbox=(0, 0, 1, 48), segmentation=run_lengths, iscrowd=1),
    ]
    file, root = save_dataset(tmp_path, dataset(1, annotations))
    write_coco(read_clean(file, images=root), tmp_path / "converted.json")
    coco = COCO(tmp_path / "converted.json")
    assert [int(coco.annToMask(entry).sum()) for entry in coco.loadAnns([1, 2])] == [24 * 16, 48]
    assert [entry["iscrowd"] for entry in coco.loadAnns([1, 2])] == [0, 1]


def test_one_split(tool, data, tmp_path):
    ran = tool("convert_annotations", data["csv"], "--split", "val", "--output", tmp_path / "val.json")
    assert ran.out.startswith(
        f"coco:        {tmp_path / 'val.json'} (3 images, 9 boxes, 3 classes; images in "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--output", "all.json"],
            "all.json: name a folder for the splits train, val, or choose one with --split",
        ),
        (["--output", "all", "--split", "test"], "--split test: .*csv has train, val"),
        (["--output", "a.json", "--to", "yolo"], "a.json: name a folder, which --to yolo fills"),
    ],
)
def test_errors_are_one_line(tool, data, arguments, message):
    ran = tool("convert_annotations", data["csv"], *arguments)
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert re.search(message, ran.err)


def test_nothing_is_overwritten(tool, tmp_path):
    file, root = save_dataset(tmp_path, dataset(1))
    content = file.read_bytes(), (root / "1.png").read_bytes()
    assert "is the file to convert" in tool("convert_annotations", file, "--output", file).err
    ran = tool("convert_annotations", file, "--images", root, "--to", "yolo", "--output", tmp_path)
    assert ran.code == 1 and "is not empty: name a new folder" in ran.err
    assert content == (file.read_bytes(), (root / "1.png").read_bytes())


def test_images_that_differ_in_their_suffix_only(tmp_path):
    content = dataset(2, [])
    content["images"][0]["file_name"], content["images"][1]["file_name"] = "a.png", "a.jpg"
    file, root = save_dataset(tmp_path, content)
    with pytest.raises(DataError, match=r"a.png and a.jpg would have the same label file: rename one"):
        write_yolo({"train": read_clean(file, images=root)}, tmp_path / "converted")
