"""Annotation files are checked before training: errors name the problem and the remedy."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import SizeMismatchError

from fbnetv3.detection.data.annotations.clean_annotations import (
    check_annotations,
    read_image_and_category_entries,
)
from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper
from fbnetv3.errors import DataError
from tests.detection.coco_files import annotation, dataset, exif_with_orientation, save_dataset, save_image
from tests.detection.detectors import small_config


def changed(part, **values):
    """Return a dataset with different values in the second entry of a list."""
    data = dataset()
    data[part][1].update(values)
    return data


def without(part, key):
    data = dataset()
    del data[part][1][key]
    return data


def test_a_correct_file_is_summarized(tmp_path, caplog):
    data = dataset(
        3, [annotation(1), annotation(2, category_id=2), annotation(3, 2, iscrowd=1)], ("dog", "cat")
    )
    data["categories"].reverse()
    summary = check_annotations(*save_dataset(tmp_path, data))
    assert (summary.images, summary.boxes, summary.crowds, summary.empty_images) == (3, 2, 1, 2)
    assert (summary.clipped, summary.skipped, summary.masks, summary.images_opened) == (0, 0, 0, 3)
    assert summary.classes == ["dog", "cat"]
    assert not caplog.records


def test_classes_are_in_detectron2s_order(tmp_path):
    data = dataset(1, [annotation(category_id=90)])
    data["categories"] = [{"id": 90, "name": "z"}, {"id": 3, "name": "b"}, {"id": 7, "name": "a"}]
    file, root = save_dataset(tmp_path, data)
    load_coco_json(str(file), str(root), f"order of classes {tmp_path}")
    assert (
        check_annotations(file, root).classes
        == MetadataCatalog.get(f"order of classes {tmp_path}").thing_classes
    )


PROBLEMS = {
    "unknown category": (
        changed("annotations", category_id=9),
        'annotations of categories that are not in "categories" (1): 2 of 2.png (category 9); add them',
    ),
    "three numbers": (
        changed("annotations", bbox=[1, 2, 3]),
        "not a list of four finite numbers (1): 2 of 2.png ([1, 2, 3]); it is [x, y, width",
    ),
    "not a number": (
        changed("annotations", bbox=[1, 2, float("nan"), 3]),
        "not a list of four finite numbers (1): 2",
    ),
    "infinite": (
        changed("annotations", bbox=[1, 2, float("inf"), 3]),
        "not a list of four finite numbers (1): 2",
    ),
    "text": (changed("annotations", bbox="1 2 3 4"), "not a list of four finite numbers (1): 2"),
    "corners": (
        changed("annotations", bbox=[50, 40, -10, 5]),
        "boxes of negative width or height (1): 2 of 2.png; a box is [x, y, width",
    ),
    "repeated image": (changed("images", id=1), "repeated ids (1): 1 of images; renumber them"),
    "repeated category": (changed("categories", id=1), "repeated ids (1): 1 of categories"),
    "size": (
        changed("images", width=65),
        "images whose size (width x height) differs from the file (1): 2.png is 64 x 48, not 65 x 48; correct",
    ),
    "no size": (
        changed("images", width="64"),
        "images whose width or height is not a positive integer (1): 2.png; correct it, or remove",
    ),
    "missing image": (
        changed("images", file_name="x/3.png"),
        "missing images (1): {root}/x/3.png; name the folder that each file_name is relative to",
    ),
    "no box to train on": (
        dataset(1, [annotation(iscrowd=1)]),
        "none of its 1 annotations has a box to train on",
    ),
    "no bbox": (
        without("annotations", "bbox"),
        'annotations without "bbox" and "segmentation" (1): 2 of 2.png; add one of them',
    ),
    "rotated box": (
        changed("annotations", bbox=[1, 2, 3, 4, 45]),
        "rotated boxes, of five numbers, (1): 2 of 2.png; they are not supported",
    ),
    "box as text": (
        changed("annotations", bbox=["12.5", 2, 3, 4]),
        "not a list of four finite numbers (1): 2 of 2.png (['12.5', 2, 3, 4])",
    ),
    "area as text": (
        changed("annotations", area="12.5"),
        'whose "area" is not a number (1): 2 of 2.png (12.5)',
    ),
    "crowd as text": (
        changed("annotations", iscrowd="0"),
        'whose "iscrowd" or "ignore" is not 0 or 1 (1): 2 of 2.png; correct it',
    ),
    "no category_id": (
        without("annotations", "category_id"),
        'whose "category_id" is neither a number nor a string (1): 2 of 2.png',
    ),
    "equal names": (
        {
            **dataset(annotations=[annotation(1), annotation(2, category_id=2)]),
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}],
        },
        "categories with equal names (1): 1, 2 (cat); rename them, or merge them",
    ),
    "no file_name": (without("images", "file_name"), 'images[1] has no "file_name"'),
    "no category name": (without("categories", "name"), 'categories[1] has no "name"'),
    "empty list": ({"images": [], "categories": []}, 'the list "images" is empty'),
    "no list": (
        {k: v for k, v in dataset().items() if k != "annotations"},
        'has no list "annotations": COCO\'s format has images, annotations, categories',
    ),
    "results": (
        [{"image_id": 1}],
        "is a list, as in a results file: annotations are a mapping with the keys images",
    ),
    "number": (
        5,
        "is not a mapping: annotations are a mapping with the keys images, annotations, categories",
    ),
    "id that is a list": (
        changed("annotations", image_id=[1]),
        'annotations whose "image_id" is neither a number nor a string (1): 2; correct it',
    ),
    "id that is true": (changed("images", id=True), 'images[1]: "id" True must be a number or a string'),
    "name that is a number": (changed("images", file_name=7), 'images[1]: "file_name" 7 must be a string'),
}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_problems_are_named(kind, tmp_path):
    data, message = PROBLEMS[kind]
    file, root = save_dataset(tmp_path)
    file.write_text(json.dumps(data))
    with pytest.raises(DataError) as error:
        check_annotations(file, root)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and "\n" not in text
    assert message.format(root=root) in text


def test_images_to_evaluate_on_need_no_boxes(tmp_path):
    file, root = save_dataset(tmp_path, dataset(2, [annotation(iscrowd=1)]))
    summary = check_annotations(file, root, need_boxes=False)
    assert (summary.boxes, summary.crowds, summary.empty_images) == (0, 1, 2)


def test_all_problems_are_reported_at_once_and_counted(tmp_path):
    data = dataset(5)
    for entry in data["annotations"]:
        entry["category_id"] = 3
    file, root = save_dataset(tmp_path, data, images=False)
    with pytest.raises(DataError) as error:
        check_annotations(file, root)
    text = str(error.value)
    assert f"missing images (5): {root}/1.png, {root}/2.png, {root}/3.png and 2 more;" in text
    assert (
        'annotations of categories that are not in "categories" (5): 1 of 1.png (category 3), 2 of 2.png (cat'
        in text
    )


def test_corrupt_json_is_named_with_line_and_column(tmp_path):
    file, root = save_dataset(tmp_path)
    file.write_text('{"images": [],\n "annotations": [1 2]}')
    with pytest.raises(
        DataError, match="instances.json: is not JSON: line 2, column 20: Expecting ',' delim"
    ):
        check_annotations(file, root)
    file.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(DataError, match="byte 12 is not UTF-8"):
        check_annotations(file, root)
    with pytest.raises(DataError, match="nowhere.json: cannot be read: No such file"):
        check_annotations(tmp_path / "nowhere.json", root)
    with pytest.raises(DataError, match="no image folder .*nowhere: name the folder"):
        check_annotations(save_dataset(tmp_path)[0], tmp_path / "nowhere")


def test_a_corrupt_image_is_named(tmp_path):
    file, root = save_dataset(tmp_path)
    (root / "2.png").write_bytes(b"no image")
    with pytest.raises(
        DataError, match=r"corrupt images \(1\): 2.png \(cannot identify.*replace them, or rem"
    ):
        check_annotations(file, root)


def test_the_size_of_an_image_rotated_by_exif_is_that_after_rotation(tmp_path):
    file, root = save_dataset(tmp_path, dataset(1))
    save_image(root / "1.png", 64, 48, exif=exif_with_orientation(6))  # stored as 48 x 64, shown as 64 x 48
    assert check_annotations(file, root).images == 1
    (record,) = load_coco_json(str(file), str(root), f"turned {tmp_path}")
    assert mapper()(record)["image"].shape[1:] == (48, 64)
    save_image(root / "1.png", 48, 64, exif=exif_with_orientation(6))
    with pytest.raises(
        DataError, match=r"1.png is 48 x 64 \(rotated by its EXIF orientation\), not 64 x 48"
    ):
        check_annotations(file, root)
    with pytest.raises(SizeMismatchError):
        mapper()(record)


def mapper():
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (48,), "none"
    return FBNetV3DatasetMapper(cfg, is_train=True)


def test_one_warning_counts_what_detectron2_fixes(tmp_path, caplog):
    """The counts agree with what detectron2's loader and mapper keep."""
    boxes = [
        annotation(1, bbox=(8, 8, 24, 16)),
        annotation(2, bbox=(-9, 8, 24, 16)),
        annotation(3, bbox=(40, 30, 60, 60)),
        annotation(4, bbox=(8, 8, 0, 16)),
        annotation(5, bbox=(70, 8, 5, 5)),
        annotation(6, bbox=(-30, 8, 5, 5)),
        annotation(7, image_id=99),
        annotation(8, iscrowd=1),
        annotation(9, segmentation=[[1, 2, 3, 4]]),
        annotation(10, segmentation=[]),
        annotation(11, segmentation=[[8, 8, 32, 8, 32, 24]]),
        annotation(12, bbox=(8, 8, 56.5, 40.5)),  # exceeds the image by half a pixel, as after rounding
    ]
    file, root = save_dataset(tmp_path, dataset(1, boxes))
    with caplog.at_level(logging.WARNING, "fbnetv3"):
        summary = check_annotations(file, root)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{file}: clipped: boxes that exceed their image (2); left out: boxes without area inside their image (3), "
        "annotations whose polygons all have fewer than three points (kept if they had no segmentation) (1), "
        "annotations of images that are not listed (1); boxes that exceed their image may be two corners instead of "
        "[x, y, width, height]"
    )
    assert (summary.boxes, summary.clipped, summary.skipped, summary.crowds, summary.masks) == (
        6,
        2,
        5,
        1,
        1,
    )
    (image,) = load_coco_json(str(file), str(root), f"corrected {tmp_path}")
    boxes_of_mapper = mapper()(image)["instances"].gt_boxes.tensor.numpy()
    assert len(boxes_of_mapper) == summary.boxes
    assert np.array_equal(boxes_of_mapper[1], [0, 8, 15, 24])
    assert np.array_equal(boxes_of_mapper[2], [40, 30, 64, 48])


def test_masks_are_required_where_they_are_needed(tmp_path):
    polygon, run_length = [[8, 8, 32, 8, 32, 24]], {"size": [48, 64], "counts": [3072]}
    boxes = [annotation(1, segmentation=polygon), annotation(2, segmentation=run_length), annotation(3)]
    file, root = save_dataset(tmp_path, dataset(1, boxes))
    assert check_annotations(file, root).masks == 2
    with pytest.raises(DataError) as error:
        check_annotations(file, root, mask_format="polygon")
    assert (
        "annotations with run-length masks instead of polygons (1): 2 of 1.png; set INPUT.MASK_FORMAT bitmask"
        in str(error.value)
    )
    assert 'annotations without "segmentation" (1): 3 of 1.png; add it, or set MODEL.MASK_ON False' in str(
        error.value
    )
    with pytest.raises(DataError) as error:
        check_annotations(file, root, mask_format="bitmask")
    assert "run-length" not in str(error.value)


def test_only_some_images_are_opened(tmp_path):
    data = dataset(6)
    data["images"][5]["width"] = 640
    file, root = save_dataset(tmp_path, data)
    save_image(root / "6.png")
    assert check_annotations(file, root, max_opened=2).images_opened == 2  # the first and the fourth
    with pytest.raises(
        DataError, match=r"images whose size .width x height. differs from the file \(1\): 6.png"
    ):
        check_annotations(file, root, max_opened=None)
    save_image(root / "4.png", 5, 5)
    with pytest.raises(
        DataError, match=r"differs from the file \(1\): 4.png .*; 2 of 6 images were opened"
    ):
        check_annotations(file, root, max_opened=2)


def test_images_can_be_read_without_annotations(tmp_path):
    data = {k: v for k, v in dataset().items() if k != "annotations"}
    data["images"][0]["id"] = "x"
    data["categories"].insert(0, {"id": 7, "name": "dog"})  # unused, like the other
    file, _ = save_dataset(tmp_path, data)
    listed = read_image_and_category_entries(file)
    assert [image["id"] for image in listed["images"]] == [2, "x"]
    assert [category["id"] for category in listed["categories"]] == [1, 2]
    data["images"].append(data["images"][0])
    data["categories"].append(data["categories"][1])
    file.write_text(json.dumps(data))
    with pytest.raises(DataError, match=r"repeated ids \(2\): x of images, 1 of categories; renumber"):
        read_image_and_category_entries(file)
