"""Annotation files are checked before a training: what is wrong is named, with what to do about it."""

import json
import logging

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import SizeMismatchError

from fbnetv3.detection.data.coco_annotations import AnnotationError, check_annotations, read_annotations
from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper
from tests.detection.coco_files import annotation, dataset, save_dataset, save_image, turned
from tests.detection.detectors import small_config


def changed(part, **values):
    """A dataset whose second entry of a list has other values."""
    data = dataset()
    data[part][1].update(values)
    return data


def without(part, key):
    data = dataset()
    del data[part][1][key]
    return data


def test_a_good_file_is_summed_up(tmp_path, caplog):
    data = dataset(3, [annotation(1), annotation(2, category_id=2), annotation(3, 2, iscrowd=1)], ("dog", "cat"))
    data["categories"].reverse()
    found = check_annotations(*save_dataset(tmp_path, data), num_classes=2)
    assert (found.images, found.boxes, found.crowds, found.empty_images) == (3, 2, 1, 2)
    assert (found.clipped, found.dropped, found.masks, found.sizes_checked) == (0, 0, 0, 3)
    assert found.classes == ("dog", "cat")
    assert str(found) == "3 images, 2 boxes of 2 classes, 2 images without a box"
    assert not caplog.records


def test_classes_are_in_detectron2s_order(tmp_path):
    data = dataset(1, [annotation(category_id=90)])
    data["categories"] = [{"id": 90, "name": "z"}, {"id": 3, "name": "b"}, {"id": 7, "name": "a"}]
    file, root = save_dataset(tmp_path, data)
    load_coco_json(str(file), str(root), f"order of classes {tmp_path}")
    assert check_annotations(file, root).classes == tuple(
        MetadataCatalog.get(f"order of classes {tmp_path}").thing_classes
    )


WRONG = {
    "box on unknown category": (
        changed("annotations", category_id=9),
        '1 annotations are of categories that "categories" lacks: category 9 of annotation 2; add these',
    ),
    "three numbers": (changed("annotations", bbox=[1, 2, 3]), "no list of four finite numbers: 2; it is [x, y, width"),
    "no number": (changed("annotations", bbox=[1, 2, float("nan"), 3]), "no list of four finite numbers: 2"),
    "infinite": (changed("annotations", bbox=[1, 2, float("inf"), 3]), "no list of four finite numbers: 2"),
    "text": (changed("annotations", bbox="1 2 3 4"), "no list of four finite numbers: 2"),
    "corners": (changed("annotations", bbox=[50, 40, -10, 5]), "negative width or height: 2; a box is [x, y, width"),
    "ignore": (changed("annotations", ignore=1), 'have "ignore", which detectron2 does not know: 2; remove them'),
    "annotation twice": (changed("annotations", id=1), "1 ids of annotations are there more than once: 1; number"),
    "image twice": (changed("images", id=1), "1 ids of images are there more than once: 1"),
    "category twice": (changed("categories", id=1), "1 ids of categories are there more than once: 1"),
    "size": (
        changed("images", width=65),
        "1 images have another size than the file says (width x height): 2.png is 64 x 48, not 65 x 48; correct",
    ),
    "no size": (changed("images", width=None), "1 images have a width or height that is no number of pixels: 2.png"),
    "missing image": (
        changed("images", file_name="x/3.png"),
        "1 of 2 images are not below {root}: x/3.png; give the folder that each file_name leads from",
    ),
    "no box left": (dataset(1, [annotation(iscrowd=1)]), "has no box to train on among its 1 annotations"),
    "no bbox": (without("annotations", "bbox"), '1 of 2 annotations have no "bbox": annotations[1]; each needs id, im'),
    "no file_name": (without("images", "file_name"), '1 of 2 images have no "file_name": images[1]'),
    "no category name": (without("categories", "name"), '1 of 2 categories have no "name": categories[1]'),
    "no list": ({"images": [], "categories": []}, 'the list "images" is empty'),
    "no annotations": (
        {k: v for k, v in dataset().items() if k != "annotations"},
        'has no list "annotations": COCO\'s format has images, annotations, categories',
    ),
    "results": ([{"image_id": 1}], "is a list, as results are: annotations are a mapping with images"),
    "a number": (5, "is no mapping with images, annotations, categories"),
    "an id that is a list": (changed("annotations", image_id=[1]), '"image_id" of annotations must be all whole'),
    "mixed ids": (changed("images", id="x"), '"id" of images must be all whole numbers, or all text'),
    "a name that is a number": (changed("images", file_name=7), '"file_name" of images must be text, such as 7'),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what, tmp_path):
    data, message = WRONG[what]
    file, root = save_dataset(tmp_path)
    file.write_text(json.dumps(data))
    with pytest.raises(AnnotationError) as error:
        check_annotations(file, root)
    text = str(error.value)
    assert text.startswith(f"{file}: ") and "\n" not in text
    assert message.format(root=root) in text


def test_images_to_evaluate_on_need_no_boxes(tmp_path):
    file, root = save_dataset(tmp_path, dataset(2, [annotation(iscrowd=1)]))
    found = check_annotations(file, root, need_boxes=False)
    assert (found.boxes, found.crowds, found.empty_images) == (0, 1, 2)


def test_all_that_is_wrong_is_said_at_once_and_many_are_counted(tmp_path):
    data = dataset(5)
    for entry in data["annotations"]:
        entry["category_id"] = 3
    file, root = save_dataset(tmp_path, data, images=False)
    with pytest.raises(AnnotationError) as error:
        check_annotations(file, root, num_classes=80)
    text = str(error.value)
    assert "5 of 5 images are not below" in text and "1.png, 2.png, 3.png, ...;" in text
    assert "5 annotations are of categories" in text
    assert (
        "has 2 categories (cat, dog), the network 80 classes: set MODEL.ROI_HEADS.NUM_CLASSES 2 (for RetinaNet "
        "MODEL.RETINANET.NUM_CLASSES 2)" in text
    )


def test_broken_json_is_named_with_line_and_column(tmp_path):
    file, root = save_dataset(tmp_path)
    file.write_text('{"images": [],\n "annotations": [1 2]}')
    with pytest.raises(AnnotationError, match=r"instances.json: line 2, column 20: no JSON: Expecting ',' delimiter"):
        check_annotations(file, root)
    file.write_bytes(b'{"images": "\xff\xfe"}')
    with pytest.raises(AnnotationError, match="byte 12 is not UTF-8"):
        check_annotations(file, root)
    file.write_text("[" * 100_000)
    with pytest.raises(AnnotationError, match="no JSON"):
        check_annotations(file, root)
    with pytest.raises(AnnotationError, match="nowhere.json: cannot be read: No such file"):
        check_annotations(tmp_path / "nowhere.json", root)
    with pytest.raises(AnnotationError, match="there is no folder .*nowhere with its images"):
        check_annotations(save_dataset(tmp_path)[0], tmp_path / "nowhere")


def test_a_damaged_image_is_named(tmp_path):
    file, root = save_dataset(tmp_path)
    (root / "2.png").write_bytes(b"no image")
    with pytest.raises(AnnotationError, match=r"1 images are damaged: 2.png \(cannot identify.*replace them or take"):
        check_annotations(file, root)


def test_an_image_that_exif_turns_has_the_size_that_detectron2_sees(tmp_path):
    file, root = save_dataset(tmp_path, dataset(1))
    save_image(root / "1.png", 64, 48, exif=turned(6))  # stored 48 x 64, seen 64 x 48
    assert check_annotations(file, root).images == 1
    (record,) = load_coco_json(str(file), str(root), f"turned {tmp_path}")
    assert mapper()(record)["image"].shape[1:] == (48, 64)
    save_image(root / "1.png", 48, 64, exif=turned(6))
    with pytest.raises(AnnotationError, match="1.png is 48 x 64, turned upright as its EXIF says, not 64 x 48"):
        check_annotations(file, root)
    with pytest.raises(SizeMismatchError):
        mapper()(record)


def mapper():
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (48,), "none"
    return FBNetV3DatasetMapper(cfg, is_train=True)


def test_what_detectron2_puts_right_is_one_warning_with_counts(tmp_path, caplog):
    """And the counts are those of what its loader and mapper leave."""
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
        annotation(12, bbox=(8, 8, 56.5, 40.5)),  # half a pixel out, as by rounding
    ]
    file, root = save_dataset(tmp_path, dataset(1, boxes))
    with caplog.at_level(logging.WARNING, "fbnetv3"):
        found = check_annotations(file, root)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{file}: 2 boxes reach out of their image and are clipped; 3 boxes have no area within their image and are "
        "left out; 1 annotations have polygons of fewer than three points (without a segmentation they would stay) "
        "and are left out; 1 annotations belong to no image of the file and are left out; so many reach out that they "
        "may be two corners instead of [x, y, width, height]"
    )
    assert (found.boxes, found.clipped, found.dropped, found.crowds, found.masks) == (6, 2, 5, 1, 1)
    (image,) = load_coco_json(str(file), str(root), f"put right {tmp_path}")
    left = mapper()(image)["instances"].gt_boxes.tensor.numpy()
    assert len(left) == found.boxes
    assert np.array_equal(left[1], [0, 8, 15, 24]) and np.array_equal(left[2], [40, 30, 64, 48])


def test_masks_are_asked_for_where_they_are_needed(tmp_path):
    polygon, encoded = [[8, 8, 32, 8, 32, 24]], {"size": [48, 64], "counts": [3072]}
    boxes = [annotation(1, segmentation=polygon), annotation(2, segmentation=encoded), annotation(3)]
    file, root = save_dataset(tmp_path, dataset(1, boxes))
    assert check_annotations(file, root).masks == 2
    with pytest.raises(AnnotationError) as error:
        check_annotations(file, root, mask_format="polygon")
    assert "1 annotations have run-length masks instead of polygons: 2; set INPUT.MASK_FORMAT bitmask" in str(
        error.value
    )
    assert '1 annotations have no "segmentation": 3; add them, or set MODEL.MASK_ON False' in str(error.value)
    with pytest.raises(AnnotationError) as error:
        check_annotations(file, root, mask_format="bitmask")
    assert "run-length" not in str(error.value)


def test_sizes_are_compared_for_as_many_images_as_are_asked_for(tmp_path):
    data = dataset(6)
    data["images"][5]["width"] = 640
    file, root = save_dataset(tmp_path, data)
    save_image(root / "6.png")
    assert check_annotations(file, root, sizes=2).sizes_checked == 2  # the first and the fourth
    with pytest.raises(AnnotationError, match="1 images have another size"):
        check_annotations(file, root, sizes=None)
    save_image(root / "4.png", 5, 5)
    with pytest.raises(AnnotationError, match="1 images of 2 that were opened have another size"):
        check_annotations(file, root, sizes=2)


def test_images_alone_need_no_annotations(tmp_path):
    file, _ = save_dataset(tmp_path, {k: v for k, v in dataset().items() if k != "annotations"})
    assert len(read_annotations(file, ("images", "categories"))["images"]) == 2
