"""What annotation files lack is filled in, and one line says how often."""

import logging

import pytest

from fbnetv3.detection.data.annotations.clean_annotations import clean_annotations
from fbnetv3.errors import DataError
from tests.detection.coco_files import annotation, dataset, save_dataset

TRIANGLE = [8, 8, 32, 8, 32, 24]
LEFT_HALF = {"size": [48, 64], "counts": [0, 1536, 1536]}
BOX = {"image_id": 1, "category_id": 1, "bbox": [8, 8, 24, 16]}


@pytest.fixture
def clean(caplog):
    """Clean a dataset of one image with these annotations; return what is left of them, and the logged line."""

    def run(*annotations, data=None, root=""):
        caplog.clear()
        with caplog.at_level(logging.INFO, "fbnetv3"):
            result = clean_annotations(data or dataset(1, list(annotations)), root, "a.json")
        return result, "; ".join(caplog.messages).removeprefix("a.json: ")

    return run


def test_a_complete_file_remains_as_it_is(clean):
    data = dataset(2)
    result, line = clean(data=data)
    assert (result.images, result.categories, line) == (data["images"], data["categories"], "")
    assert result.annotations == data["annotations"]


def test_missing_keys_are_filled_in(clean):
    result, line = clean(
        BOX, {**BOX, "segmentation": LEFT_HALF}, {**BOX, "segmentation": [[8, 8, 16, 8, 16, 24, 8, 24]]}
    )
    boxes = result.annotations
    assert line == ("filled in: annotation ids that are missing, repeated or 0 (3), iscrowd (3), area (3)")
    assert [box["id"] for box in boxes] == [1, 2, 3]
    assert [box["iscrowd"] for box in boxes] == [0, 0, 0]
    # From the box, and from the pixels of the mask
    assert [box["area"] for box in boxes] == [24 * 16, 32 * 48, 8 * 16]


@pytest.mark.parametrize("area", [None, 0, -1, float("nan"), 1e12])
def test_an_area_that_cannot_be_is_computed(clean, area):
    result, line = clean(annotation(area=area))
    assert (result.annotations[0]["area"], line) == (24 * 16, "filled in: area (1)")


@pytest.mark.parametrize("mask", [[TRIANGLE], TRIANGLE])
def test_a_missing_box_is_that_of_the_mask(clean, mask):
    result, line = clean({**annotation(segmentation=mask), "bbox": None})
    assert (result.annotations[0]["bbox"], line) == ([8, 8, 24, 16], "filled in: bbox from the mask (1)")
    result, _ = clean({**annotation(segmentation=LEFT_HALF), "bbox": []})
    assert result.annotations[0]["bbox"] == [0, 0, 32, 48]


@pytest.mark.parametrize("value", [None, 0])
def test_missing_sizes_are_read_from_the_images(clean, tmp_path, value):
    _, root = save_dataset(tmp_path)
    data = dataset()
    data["images"][0]["width"] = value
    del data["images"][1]["height"]
    result, line = clean(data=data, root=root)
    assert [(image["width"], image["height"]) for image in result.images] == [(64, 48)] * 2
    assert line == "filled in: width and height from the image files (2)"
    (root / "1.png").unlink()
    with pytest.raises(DataError, match=r"^a.json: missing images \(1\): .*1.png"):
        clean(data=data, root=root)
    with pytest.raises(DataError, match="no image folder .*nowhere: name the folder"):
        clean(data=data, root=tmp_path / "nowhere")


def test_a_clipped_box_has_the_area_inside_its_image(clean):
    polygon = [[-24, 0, 8, 0, 8, 10, -24, 10]]
    result, line = clean(
        annotation(bbox=(-24, 0, 32, 10)), annotation(2, bbox=(-24, 0, 32, 10), segmentation=polygon)
    )
    for box in result.annotations:
        assert (box["bbox"], box["area"]) == ([0, 0, 8, 10], 80)
    assert sorted(zip(*[iter(result.annotations[1]["segmentation"][0])] * 2, strict=True)) == [
        (0, 0),
        (0, 10),
        (8, 0),
        (8, 10),
    ]
    assert line.startswith("clipped: boxes that exceed their image (2)")


def test_ignored_objects_are_crowds(clean):
    """Neither counts as a mistake in evaluation, and neither is trained on."""
    result, line = clean(annotation(1, ignore=1), annotation(2, ignore=0), annotation(3, iscrowd=True))
    assert [box["iscrowd"] for box in result.annotations] == [1, 0, 1]
    assert (result.summary.crowds, line) == (2, "filled in: iscrowd where ignore is set (1)")


@pytest.mark.parametrize(
    ("image_ids", "order"),
    [
        ([30, 4], [4, 30]),
        (["b", "a"], ["a", "b"]),
        ([2.0, 1.0], [1, 2]),
        (["1", 7, 1], [1, 7, "1"]),
        ([2**70, -1], [-1, 2**70]),
    ],
)
def test_ids_of_any_kind_are_numbered_in_their_order(clean, image_ids, order):
    data = dataset(len(image_ids), [annotation(i, image_id) for i, image_id in enumerate(image_ids, 1)])
    for image, image_id in zip(data["images"], image_ids, strict=True):
        image.update(id=image_id, file_name=f"{image_id}.png")
    result, line = clean(data=data)
    assert (result.image_ids, line) == (order, "")
    assert [image["id"] for image in result.images] == list(range(1, len(order) + 1))
    for box in result.annotations:  # each belongs to the image that it belonged to
        assert result.image_ids[box["image_id"] - 1] == image_ids[box["id"] - 1]


def test_references_may_be_text(clean):
    result, line = clean(annotation(1, "1", "2"), annotation(2, 1.0, 2))
    assert [(box["image_id"], box["category_id"]) for box in result.annotations] == [(1, 2), (1, 2)]
    assert line == "filled in: references to ids that are text in one place and numbers in another (2)"


def test_an_unused_category_with_the_name_of_another_is_left_out(clean):
    """Roboflow's exports begin with one."""
    data = dataset(1, [annotation(category_id=1)])
    data["categories"] = [{"id": 0, "name": "cat"}, {"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    result, line = clean(data=data)
    assert (result.classes, result.category_ids, result.annotations[0]["category_id"]) == (
        ["cat", "dog"],
        [1, 2],
        1,
    )
    assert line == "left out: categories without annotations that have the name of another category (1)"


def test_the_same_name_in_two_folders_is_two_images(clean):
    data = dataset(2)
    for image, name in zip(data["images"], ["a/0.png", "b/0.png"], strict=True):
        image["file_name"] = name
    result, line = clean(data=data)
    assert ([image["file_name"] for image in result.images], line) == (["a/0.png", "b/0.png"], "")


def test_file_names_of_windows(clean, tmp_path):
    data = dataset(1)
    data["images"][0]["file_name"] = "images\\1.png"
    save_dataset(tmp_path)
    result, line = clean(data=data, root=tmp_path)
    assert (result.images[0]["file_name"], line) == ("images/1.png", "filled in: slashes in file names (1)")


def test_fractions_instead_of_pixels_are_suspected(clean):
    _, line = clean(annotation(bbox=(0.1, 0.2, 0.5, 0.5)))
    assert line == "all boxes lie in the first pixel of their image: are they in pixels?"


def test_keypoints_are_counted_and_must_be_as_many_as_the_category_names(clean):
    data = dataset(1, [annotation(keypoints=[10, 10, 2, 20, 20, 0])])
    data["categories"][0]["keypoints"] = ["nose", "tail"]
    result, _ = clean(data=data)
    assert result.annotations[0]["num_keypoints"] == 1
    assert result.categories[0]["keypoints"] == ["nose", "tail"]
    data["categories"][0]["keypoints"].append("paw")
    with pytest.raises(DataError, match=r'whose "keypoints" are not .* \(1\): 1 of 1.png; correct them'):
        clean(data=data)
