"""YOLO label files and data.yaml."""

import re
from pathlib import Path

import pytest
import yaml

from fbnetv3.detection.data.formats import AnnotationSource
from fbnetv3.detection.data.formats.yolo_dataset import label_file, read_yolo_dataset
from fbnetv3.detection.data.formats.yolo_labels import LabelLineError, parse_label_line
from fbnetv3.errors import DataError, FieldError
from tests.detection.coco_files import exif_with_orientation, save_image


def write_dataset(folder, labels, images="images/train", name="data.yaml", size=(100, 50), **values):
    """Write images with label files by stem (None for no file) and a description. Return the description."""
    for stem, text in labels.items():
        image = folder / images / f"{stem}.png"
        save_image(image, size[1], size[0])
        if text is not None:
            file = label_file(image)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    file = folder / name
    file.write_text(yaml.safe_dump({"train": images, "names": ["cat", "dog"], **values}))
    return file


def read(file, split="train"):
    return AnnotationSource(file, split=split).read()


def parse(line, size=(100, 50), class_ids=(0, 1), keypoints=None):
    return parse_label_line(line, size, class_ids, keypoints)


def test_a_box_has_its_center_and_its_size():
    assert parse("1 0.5 0.5 0.2 0.4") == {"category_id": 1, "bbox": [40, 15, 20, 20]}


def test_a_polygon_has_the_box_around_it():
    annotation = parse("0 0.1 0.2 0.5 0.2 0.5 0.6")
    assert annotation["segmentation"] == [[10, 10, 50, 10, 50, 30]]
    assert annotation["bbox"] == [10, 10, 40, 20]


def test_a_rotated_box_is_a_polygon_of_four_points():
    annotation = parse("0 0.5 0.0 1.0 0.5 0.5 1.0 0.0 0.5")
    assert annotation["bbox"] == [0, 0, 100, 50]
    assert len(annotation["segmentation"][0]) == 8


def test_fractions_of_full_precision_give_back_the_pixels():
    """COCO's boxes have two decimals."""
    x, y, width, height = 45.52, 12.31, 7.19, 20.07
    line = f"0 {(x + width / 2) / 640} {(y + height / 2) / 427} {width / 640} {height / 427}"
    assert parse(line, size=(640, 427))["bbox"] == [x, y, width, height]


def test_keypoints_follow_the_box():
    annotation = parse("0 0.5 0.5 0.2 0.4  0.1 0.2 2  0.3 0.4 1  0 0 0", keypoints=(3, 3))
    assert annotation["keypoints"] == [10, 10, 2, 30, 20, 1, 0, 0, 0]
    assert annotation["num_keypoints"] == 2
    # Without a visibility
    annotation = parse("0 0.5 0.5 0.2 0.4  0.1 0.2  0 0", keypoints=(2, 2))
    assert annotation["keypoints"] == [10, 10, 2, 0, 0, 0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("2 0.5 0.5 0.2 0.2", "class 2 has no name"),
        ("-1 0.5 0.5 0.2 0.2", "class -1 has no name"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 must be an integer"),
        ("cat 0.5 0.5 0.2 0.2", "not a number: 'cat'"),
        ("0 0.5 nan 0.2 0.2", "NaN or infinity"),
        ("0 0.5 0.5 0.2", "4 values; a box has 5"),
        ("0 0.5 0.5 0.2 0.2 0.9", "6 values: are these detections with scores?"),
        ("0 0.5 0.5 0.2 0.2 0.9 0.9 0.1", "8 values"),
        ("0 50 25 20 10", "50 is not a fraction of the image; are these pixels?"),
    ],
)
def test_wrong_lines(line, problem):
    with pytest.raises(LabelLineError, match=re.escape(problem)):
        parse(line)


def test_errors_name_file_and_line(tmp_path):
    file = write_dataset(tmp_path, {"a": "0 0.5 0.5 0.1 0.1\n\n7 0.5 0.5 0.1 0.1\n", "b": "0 1 2\n"})
    with pytest.raises(DataError) as error:
        read(file)
    assert str(error.value) == (
        f"{file}: 2 problems: labels/train/a.txt:3: class 7 has no name; labels/train/b.txt:1: 3 values; a box has 5 "
        "(class, x, y, width, height), a polygon 1 and two for each of at least three points; keypoints need kpt_shape "
        "in data.yaml"
    )


def test_images_without_labels_are_empty_and_labels_without_image_are_named(tmp_path):
    file = write_dataset(tmp_path, {"a": "0 0.5 0.5 0.1 0.1", "b": "", "c": None})
    (tmp_path / "labels" / "train" / "d.txt").write_text("0 0.5 0.5 0.1 0.1")
    raw = read(file)
    assert [image["file_name"] for image in raw.data["images"]] == [
        f"images/train/{stem}.png" for stem in "abc"
    ]
    assert [annotation["id"] for annotation in raw.data["annotations"]] == ["labels/train/a.txt:1"]
    assert raw.notes == (
        "images without a label file, taken to be empty (1): c.png",
        "label files without an image in this split (1): d.txt",
    )


def test_no_label_file_at_all(tmp_path):
    file = write_dataset(tmp_path, {"a": None})
    with pytest.raises(DataError, match=r"none of 1 images has a label file, such as .*labels/train/a.txt"):
        read(file)


def test_fractions_are_of_the_image_as_a_viewer_shows_it(tmp_path):
    file = write_dataset(tmp_path, {"a": "0 0.5 0.5 1 1"})
    save_image(tmp_path / "images" / "train" / "a.png", 50, 100, exif=exif_with_orientation(6))
    raw = read(file)
    assert raw.data["annotations"][0]["bbox"] == [0, 0, 50, 100]
    assert (raw.data["images"][0]["width"], raw.data["images"][0]["height"]) == (50, 100)


def test_an_unreadable_image_has_no_size(tmp_path):
    """Cleaning, which needs the size, then reports it."""
    file = write_dataset(tmp_path, {"a": "0 0.5 0.5 1 1"})
    (tmp_path / "images" / "train" / "a.png").write_bytes(b"no image")
    assert read(file).data["images"] == [{"id": 1, "file_name": "images/train/a.png"}]


def test_ids_with_gaps_keep_their_order(tmp_path):
    file = write_dataset(tmp_path, {"a": "7 0.5 0.5 0.1 0.1"}, names={7: "dog", 3: "cat"})
    raw = read(file)
    assert raw.class_names == ["cat", "dog"]
    assert raw.data["annotations"][0]["category_id"] == 7


def test_labels_next_to_images_below_a_folder_named_images(tmp_path):
    file = write_dataset(tmp_path, {"a": None})
    (tmp_path / "images" / "train" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert len(read(file).data["annotations"]) == 1


@pytest.mark.parametrize("name", ["data.yaml", ".", "images/train"])
def test_a_dataset_in_the_current_folder(tmp_path, monkeypatch, name):
    """The relative path images/train/a.png has no separator in front of "images"."""
    write_dataset(tmp_path, {"a": "1 0.5 0.5 0.2 0.4"})
    monkeypatch.chdir(tmp_path)
    raw = AnnotationSource(Path(name), split="train").read()
    assert [a["bbox"] for a in raw.data["annotations"]] == [[40, 15, 20, 20]]


def test_a_dataset_of_another_computer(tmp_path):
    file = write_dataset(tmp_path, {"a": ""}, path="/content/mine")
    assert read(file).notes == (
        "data.yaml: path /content/mine does not exist; using the folder of the file",
    )


def test_lists_of_folders_and_files(tmp_path):
    write_dataset(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"}, images="one/images")
    write_dataset(tmp_path, {"b": "1 0.5 0.5 0.1 0.1"}, images="two/images")
    (tmp_path / "list.txt").write_text("./one/images/a.png\ntwo/images/b.png\n")
    values = {"train": ["one/images", "two/images"], "val": "list.txt", "names": ["cat", "dog"]}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(values))
    for split in ("train", "val"):
        assert [a["category_id"] for a in read(file, split).data["annotations"]] == [0, 1]


@pytest.mark.parametrize(
    "values",
    [
        {"path": "/content/datasets/mine"},  # of another machine
        {"path": "."},
        {"train": "../images/train"},  # as Roboflow writes it
        {"nc": 2, "names": {0: "cat", 1: "dog"}},
        {"test": "images/test"},  # named, but missing
    ],
)
def test_paths_and_names_as_people_write_them(tmp_path, values):
    file = write_dataset(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"}, **values)
    assert len(read(file).data["annotations"]) == 1


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"names": "cat"}, "names: must be a list of class names, or a mapping"),
        ({"nc": 3}, "nc: 3 differs from the 2 names"),
        ({"names": ["cat", "cat"]}, "names: cat is there more than once: rename it"),
        ({"val": "images/val"}, "val: .*images/val does not exist"),
        ({"kpt_shape": [17]}, r"kpt_shape: \[17\] must be"),
        (
            {"kpt_shape": [2, 3], "flip_idx": [1, 2]},
            "flip_idx: .* index of each of the 2 keypoints' mirror",
        ),
        ({"kpt_shape": [3, 2], "flip_idx": [1, 2, 0]}, "flip_idx: .* mirror image, or its own"),
        ({"path": 3}, "path: 3 must be a folder"),
    ],
)
def test_wrong_descriptions(tmp_path, values, problem):
    file = write_dataset(tmp_path, {"a": ""}, **values)
    with pytest.raises(FieldError, match=problem):
        read_yolo_dataset(file)


def test_a_list_of_names_instead_of_data_yaml(tmp_path):
    """As labelImg and Label Studio write it: next to the images, or above `images` and `labels`."""
    for images in ("one", "two/images"):
        write_dataset(tmp_path, {"a": "1 0.5 0.5 0.1 0.1"}, images=images).unlink()
        root = tmp_path / images.split("/")[0]
        (root / "classes.txt").write_text("cat\ndog\n")
        raw = read(root)
        assert (raw.class_names, len(raw.data["annotations"])) == (["cat", "dog"], 1)


def test_an_image_folder_replaces_that_of_the_split(tmp_path):
    write_dataset(tmp_path, {"a": "0 0.5 0.5 0.1 0.1"}, images="other/images")
    file = write_dataset(tmp_path, {"b": "1 0.5 0.5 0.1 0.1"})
    raw = AnnotationSource(file, tmp_path / "other" / "images", split="train").read()
    assert [image["file_name"] for image in raw.data["images"]] == ["other/images/a.png"]


def test_a_description_without_images(tmp_path):
    file = write_dataset(tmp_path, {"a": ""}, train="")
    with pytest.raises(FieldError, match=r"data.yaml: train: must name the images"):
        read(file, "")


def test_flip_idx_says_what_a_flip_exchanges(tmp_path):
    """In Ultralytics' data.yaml, keypoint i of a flipped image is keypoint flip_idx[i] of the original."""
    values = {"kpt_shape": [3, 2], "kpt_names": {0: ["nose", "a", "b"]}}
    for indices, expected in (([0, 2, 1], [["a", "b"]]), ([0, 1, 2], [])):
        file = write_dataset(tmp_path, {"a": ""}, flip_idx=indices, **values)
        assert read(file).data["categories"][0]["flip_pairs"] == expected
    assert "flip_pairs" not in read(write_dataset(tmp_path, {"a": ""}, **values)).data["categories"][0]


def test_keypoints_have_names(tmp_path):
    file = write_dataset(
        tmp_path, {"a": "0 0.5 0.5 0.2 0.4 0.1 0.2 2"}, kpt_shape=[1, 3], kpt_names={0: ["nose"]}
    )
    raw = read(file)
    assert raw.data["categories"][0]["keypoints"] == ["nose"]
    assert raw.data["annotations"][0]["keypoints"] == [10, 10, 2]
