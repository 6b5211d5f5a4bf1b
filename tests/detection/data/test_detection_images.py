"""Images of all kinds are read with their EXIF orientation and mapped to inputs, in training too."""

import logging
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.modeling import build_model
from PIL import Image

from fbnetv3.data import CorruptImageError
from fbnetv3.data.image_rendering import oriented_size
from fbnetv3.detection.data.dataset_mapper import (
    FBNetV3DatasetMapper,
    SafeResizeShortestEdge,
    read_image_array,
)
from tests.detection.coco_files import annotation, dataset, exif_with_orientation, save_dataset, save_image
from tests.detection.detectors import small_config, train_step

# An image of height 4 and width 6 with one white corner: row and column of the corner, height and width of the image
# after each orientation tag is applied
CORNERS = {
    1: (0, 0, 4, 6),
    2: (0, 5, 4, 6),
    3: (3, 5, 4, 6),
    4: (3, 0, 4, 6),
    5: (0, 0, 6, 4),
    6: (0, 3, 6, 4),
    7: (5, 3, 6, 4),
    8: (5, 0, 6, 4),
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "16-bit png"])
@pytest.mark.parametrize("tag", CORNERS)
def test_exif_rotates_images(tag, suffix, tmp_path):
    pixels = np.zeros((4, 6), np.uint16 if suffix.startswith("16") else np.uint8)
    pixels[0, 0] = np.iinfo(pixels.dtype).max
    path = tmp_path / f"x.{suffix.split()[-1]}"
    Image.fromarray(pixels).save(path, exif=exif_with_orientation(tag))
    row, column, height, width = CORNERS[tag]
    pixels = read_image_array(path, "L")
    assert pixels.shape == (height, width, 1)
    assert np.unravel_index(pixels.argmax(), pixels.shape)[:2] == (row, column)
    with Image.open(path) as image:
        assert oriented_size(image) == (width, height)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
@pytest.mark.parametrize("format", ["BGR", "RGB", "L"])
def test_pixels_are_those_of_detectron2(mode, format, tmp_path):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    save_image(path, mode=mode)
    assert np.array_equal(read_image_array(path, format), detection_utils.read_image(str(path), format))


def test_16_bits_are_scaled(tmp_path):
    """detectron2 clips them: everything brighter than 1/256 becomes white."""
    Image.fromarray(np.array([[0, 255, 32_768, 65_535]], np.uint16)).save(tmp_path / "x.png")
    assert read_image_array(tmp_path / "x.png", "BGR")[0].tolist() == [
        [0] * 3,
        [0] * 3,
        [128] * 3,
        [255] * 3,
    ]
    assert detection_utils.read_image(str(tmp_path / "x.png"), "L")[0].tolist() == [
        [0],
        [255],
        [255],
        [255],
    ]


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(CorruptImageError, match="gone.png: no such file"):
        read_image_array(tmp_path / "gone.png")
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(CorruptImageError, match="x.png: corrupt image .not a format that Pillow can read"):
        read_image_array(tmp_path / "x.png")
    save_image(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:900])
    with pytest.raises(CorruptImageError, match="x.jpg: corrupt image .image file is truncated"):
        read_image_array(tmp_path / "x.jpg")
    with pytest.raises(CorruptImageError, match="cannot be read .Is a directory"):
        read_image_array(tmp_path)
    save_image(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CorruptImageError, match="large.png: has too many pixels"):
        read_image_array(tmp_path / "large.png")


def test_resizing_keeps_one_pixel_per_side():
    resize = SafeResizeShortestEdge([384, 384], 640)
    assert resize.get_transform(np.zeros((10_000, 1, 3), np.uint8)).apply_image(
        np.zeros((10_000, 1, 3), np.uint8)
    ).shape == (640, 1, 3)
    wide = np.zeros((1, 10_000, 3), np.uint8)
    assert resize.get_transform(wide).apply_image(wide).shape == (1, 640, 3)


def test_ordinary_entries_are_mapped_as_by_detectron2(tmp_path):
    save_image(tmp_path / "x.jpg", 120, 90)
    boxes = [
        {**annotation(bbox=box), "bbox_mode": 1}
        for box in ((8.0, 8.5, 24.0, 16.0), (40.0, 50.0, 90.0, 90.0), (5.0, 5.0, 0.0, 9.0))
    ]
    entry = {"file_name": str(tmp_path / "x.jpg"), "height": 120, "width": 90, "annotations": boxes}
    cfg = small_config()
    for is_train in (True, False):
        inputs = []
        for mapper in (DatasetMapper(cfg, is_train), FBNetV3DatasetMapper(cfg, is_train)):
            np.random.seed(3)
            inputs.append(mapper(entry))
        expected, actual = inputs
        assert expected.keys() == actual.keys()
        assert torch.equal(expected["image"], actual["image"])
        if is_train:
            assert torch.equal(expected["instances"].gt_boxes.tensor, actual["instances"].gt_boxes.tensor)
            assert len(actual["instances"]) == 2


def test_masks_and_keypoints_are_mapped_as_by_detectron2(tmp_path):
    """Polygons and keypoints of the default augmentation; the crowd is left out."""
    save_image(tmp_path / "x.jpg", 120, 90)
    polygon = [10.5, 20.0, 40.0, 22.0, 30.0, 70.5, 12.0, 60.0]
    more = {"segmentation": [polygon], "keypoints": [12.5, 30.5, 2, 35.5, 40.5, 1, 0, 0, 0], "bbox_mode": 1}
    box = (10.5, 20.0, 29.5, 50.5)
    annotations = [annotation(bbox=box, **more), annotation(bbox=box, **{**more, "iscrowd": 1})]
    entry = {"file_name": str(tmp_path / "x.jpg"), "height": 120, "width": 90, "annotations": annotations}
    cfg = small_config()
    cfg.MODEL.MASK_ON = True
    for mask_format in ("polygon", "bitmask"):
        cfg.INPUT.MASK_FORMAT = mask_format
        inputs = []
        for kind in (DatasetMapper, FBNetV3DatasetMapper):
            mapper = kind(cfg, True)
            mapper.use_keypoint, mapper.keypoint_hflip_indices = True, [1, 0, 2]
            np.random.seed(3)
            inputs.append(mapper(entry)["instances"])
        expected, actual = inputs
        assert len(actual) == len(expected) == 1
        assert torch.equal(actual.gt_boxes.tensor, expected.gt_boxes.tensor)
        assert torch.equal(actual.gt_keypoints.tensor, expected.gt_keypoints.tensor)
        if mask_format == "polygon":
            assert np.array_equal(actual.gt_masks.polygons[0][0], expected.gt_masks.polygons[0][0])
        else:
            assert torch.equal(actual.gt_masks.tensor, expected.gt_masks.tensor)


def test_integer_boxes_are_not_rounded(tmp_path):
    """detectron2's mapper truncates them to integers, up to a pixel off."""
    save_image(tmp_path / "x.jpg", 120, 90)
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (40,), "none"
    boxes = [{**annotation(bbox=(8, 7, 24, 17)), "bbox_mode": 1}]
    entry = {"file_name": str(tmp_path / "x.jpg"), "height": 120, "width": 90, "annotations": boxes}
    boxes = FBNetV3DatasetMapper(cfg, is_train=True)(entry)["instances"].gt_boxes.tensor
    expected = torch.tensor([[8.0, 7, 32, 24]]) * torch.tensor([40 / 90, 53 / 120, 40 / 90, 53 / 120])
    assert (boxes - expected).abs().max() < 1e-4
    assert entry["annotations"][0]["bbox"] == [8, 7, 24, 17]


def hostile_dataset(folder):
    """Write images of unusual kinds as a COCO-format dataset. Return its file, folder and dataset dicts."""
    from detectron2.data.datasets import load_coco_json

    kinds = {
        "no_box.png": ((48, 64), {}, []),
        "crowd.png": ((48, 64), {}, [{"bbox": (4, 4, 30, 30), "iscrowd": 1}]),
        "narrow.png": ((90, 1), {}, [{"bbox": (0, 10, 1, 50)}]),
        "narrow_and_tall.png": ((10_000, 1), {}, [{"bbox": (0, 10, 1, 5000)}]),
        "tall.png": ((10_000, 12), {}, [{"bbox": (2, 100, 8, 5000)}]),
        "gray.png": ((48, 64), {"mode": "L"}, [{}]),
        "rgba.png": ((48, 64), {"mode": "RGBA"}, [{}]),
        "palette.png": ((48, 64), {"mode": "P"}, [{}]),
        "16bit.png": ((48, 64), {"mode": "I;16"}, [{}]),
        "rotated.jpg": ((64, 48), {"exif": exif_with_orientation(6)}, [{"bbox": (40, 8, 20, 30)}]),
        "outside.png": ((48, 64), {}, [{"bbox": (-5, -5, 100, 100)}, {"bbox": (70, 8, 5, 5)}]),
        "no_area.png": ((48, 64), {}, [{"bbox": (8, 8, 0, 9)}]),
        "wide.png": ((33, 257), {}, [{"bbox": (100, 8, 100, 20), "category_id": 2}]),
    }
    data = dataset(0, [], classes="abcde")
    (folder / "images").mkdir()
    for i, (name, ((height, width), arguments, boxes)) in enumerate(kinds.items(), 1):
        save_image(folder / "images" / name, height, width, **arguments)
        shown = (width, height) if name == "rotated.jpg" else (height, width)
        data["images"].append({"id": i, "file_name": name, "height": shown[0], "width": shown[1]})
        for box in boxes:
            data["annotations"].append(annotation(len(data["annotations"]) + 1, i, **box))
    file, root = save_dataset(folder, data, images=False)
    return file, root, load_coco_json(str(file), str(root), f"hostile {folder}")


@pytest.mark.parametrize("name", ["faster_rcnn_fbnetv3_a_C4", "retinanet_fbnetv3_a_FPN"])
def test_training_on_a_batch_of_all_kinds(name, tmp_path, caplog):
    from fbnetv3.detection.data.annotations.clean_annotations import check_annotations

    file, root, entries = hostile_dataset(tmp_path)
    with caplog.at_level(logging.WARNING, "fbnetv3"):
        summary = check_annotations(file, root)
    assert (summary.images, summary.empty_images, summary.clipped, summary.skipped) == (13, 3, 1, 2)
    cfg = small_config(name)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 128
    mapper = FBNetV3DatasetMapper(cfg, is_train=True)
    inputs = [mapper(entry) for entry in entries]
    assert [len(x["instances"]) for x in inputs] == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]
    model = build_model(cfg)
    losses = train_step(model, inputs)
    assert all(math.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for x in inputs:  # one image at a time, as in steps of one image
        assert all(math.isfinite(loss) for loss in train_step(model, [x]).values())


def test_training_on_a_batch_without_boxes(tmp_path):
    save_image(tmp_path / "x.png")
    entry = {"file_name": str(tmp_path / "x.png"), "height": 48, "width": 64, "annotations": []}
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    mapper = FBNetV3DatasetMapper(cfg, is_train=True)
    losses = train_step(build_model(cfg), [mapper(entry), mapper(entry)])
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses["loss_rpn_loc"] == losses["loss_box_reg"] == 0
