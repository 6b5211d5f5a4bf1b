"""Augmented boxes, masks and keypoints stay on the marks that they annotate, for every augmentation and any seed."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_util

from fbnetv3.detection.data.augmentation.copy_paste import paste_objects
from fbnetv3.detection.data.augmentation.training_sample import TrainingSample
from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper, build_training_mapper
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.errors import UsageError
from fbnetv3.utils.random_state import seeded

COLORS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)])
HEIGHT, WIDTH = 120, 160
# Two marks an image: x, y, width, height
BOXES = [(10, 12, 50, 40), (80, 50, 64, 60)]
SECTION = "INPUT.AUGMENTATION"
JITTER = [f"{SECTION}.LARGE_SCALE_JITTER", "[0.4, 2.0]", f"{SECTION}.LARGE_SCALE_JITTER_SIZE", "[140, 180]"]
MOSAIC = [f"{SECTION}.MOSAIC", "1.0"]
COPY_PASTE = [f"{SECTION}.COPY_PASTE", "1.0"]
CROP = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE"]
GEOMETRY = {
    "none": [],
    "vertical flip": ["INPUT.RANDOM_FLIP", "vertical"],
    "relative crop": [*CROP, "relative", "INPUT.CROP.SIZE", "[0.7, 0.6]"],
    "relative range crop": [*CROP, "relative_range", "INPUT.CROP.SIZE", "[0.5, 0.5]"],
    "absolute crop": [*CROP, "absolute", "INPUT.CROP.SIZE", "[90, 100]"],
    "absolute range crop": [*CROP, "absolute_range", "INPUT.CROP.SIZE", "[80, 110]"],
    "large-scale jitter": JITTER,
    "mosaic": MOSAIC,
    "copy-paste": COPY_PASTE,
    "everything": [*JITTER, *MOSAIC, *COPY_PASTE, *CROP, "relative_range", "INPUT.CROP.SIZE", "[0.7, 0.7]"],
}
COLOR = {
    "brightness": [f"{SECTION}.BRIGHTNESS", "[0.5, 0.6]"],
    "contrast": [f"{SECTION}.CONTRAST", "[0.5, 0.6]"],
    "saturation": [f"{SECTION}.SATURATION", "[0.3, 0.4]"],
    "hue": [f"{SECTION}.HUE", "0.4"],
    "lighting": [f"{SECTION}.LIGHTING", "200.0"],
    "photometric distortion": [f"{SECTION}.PHOTOMETRIC_DISTORTION", "1.0"],
}


def marks(number):
    """Return the polygon-annotated and the run-length-annotated object of an image, with a keypoint in the middle."""
    annotations = []
    for i, (x, y, width, height) in enumerate(BOXES):
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        bitmap[y : y + height, x : x + width] = 1
        annotations.append(
            {
                "bbox": [x, y, width, height],
                "bbox_mode": 1,
                "category_id": (2 * number + i) % len(COLORS),
                "segmentation": [corners] if i == 0 else mask_util.encode(bitmap),
                "keypoints": [x + width / 2, y + height / 2, 2],
            }
        )
    return annotations


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return the dataset dicts of three black images with two colored rectangles each."""
    folder = tmp_path_factory.mktemp("marks")
    dicts = []
    for number in range(3):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        annotations = marks(number)
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            pixels[y : y + height, x : x + width] = COLORS[annotation["category_id"]]
        file = folder / f"{number}.png"
        Image.fromarray(pixels).save(file)
        dicts.append({"file_name": str(file), "height": HEIGHT, "width": WIDTH, "annotations": annotations})
    return dicts


def config(*overrides, masks=True):
    common = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(110, 150)", "INPUT.FORMAT", "RGB"]
    common += ["INPUT.MAX_SIZE_TRAIN", "200", "INPUT.MASK_FORMAT", "bitmask", "MODEL.MASK_ON", str(masks)]
    common += [f"{SECTION}.MIN_VISIBLE", "0.0", "MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"]
    return load_detection_config("configs/coco/faster_rcnn_fbnetv3_a_C4.yaml", [*common, *overrides])


def build(cfg, images):
    """Return the training mapper, with keypoints and their mirror images."""
    mapper = build_training_mapper(cfg, images)
    single = getattr(mapper, "mapper", mapper)
    single.use_keypoint, single.keypoint_hflip_indices = True, [0]
    return mapper


def run(mapper, image, seed):
    with seeded(seed):
        result = mapper(image)
    return result["image"].numpy().transpose(1, 2, 0).astype(int), result["instances"]


def colored(pixels, index):
    """Return where the image has a color, (height, width) of bool."""
    return np.abs(pixels - COLORS[index]).max(-1) < 100


@pytest.mark.parametrize("name", GEOMETRY)
def test_masks_and_keypoints_stay_on_their_marks(name, images):
    mapper = build(config(*GEOMETRY[name]), images)
    num_objects = 0
    for seed in range(12):
        pixels, instances = run(mapper, images[seed % 3], seed)
        assert instances.image_size == pixels.shape[:2]
        masks = instances.gt_masks.tensor.numpy().astype(bool)
        for index in range(len(COLORS)):
            expected = colored(pixels, index)
            actual = masks[instances.gt_classes.numpy() == index].any(0) if len(masks) else expected & False
            # They differ at most in the pixels along the edges
            edges = 2 * 2 * (pixels.shape[0] + pixels.shape[1])
            assert (actual != expected).sum() <= min(edges, 0.2 * expected.sum() + 60), (seed, index)
        for box, mask in zip(instances.gt_boxes.tensor.numpy(), masks, strict=True):
            rows, columns = np.nonzero(mask)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(box - tight).max() <= 1
        for (x, y, visibility), index in zip(
            instances.gt_keypoints.tensor[:, 0].tolist() if len(instances) else [],
            instances.gt_classes.tolist(),
            strict=True,
        ):
            if visibility == 2:  # not covered by another mark
                column, row = min(int(x), pixels.shape[1] - 1), min(int(y), pixels.shape[0] - 1)
                assert colored(pixels, index)[row, column], seed
        num_objects += len(instances)
    assert num_objects >= 12


@pytest.mark.parametrize(
    "name", ["none", "vertical flip", *(n for n in GEOMETRY if "crop" in n or "jit" in n)]
)
def test_boxes_without_masks_end_where_their_marks_end(name, images):
    mapper = build(config(*GEOMETRY[name], masks=False), images)
    for seed in range(12):
        pixels, instances = run(mapper, images[seed % 3], seed)
        assert not instances.has("gt_masks")
        for box, index in zip(
            instances.gt_boxes.tensor.numpy(), instances.gt_classes.tolist(), strict=True
        ):
            rows, columns = np.nonzero(colored(pixels, index))
            if len(rows) > 50:
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert np.abs(box - tight).max() <= 1.5, seed


def test_a_mosaic_joins_four_images(images):
    """Each quadrant has one image, so that at a scale of 0.5 and 12 of 12 seeds most of the eight marks are there."""
    mapper = build(config(*MOSAIC, f"{SECTION}.MOSAIC_SCALE", "[0.5, 0.5]", masks=False), images)
    counts = [len(run(mapper, images[0], seed)[1]) for seed in range(12)]
    assert max(counts) == 8 and min(counts) >= 5


def test_copy_paste_adds_objects_and_shrinks_those_that_they_cover(images):
    """Marks of all images have the same place: pasted ones cover those of the target exactly, which are dropped."""
    overrides = [*COPY_PASTE, f"{SECTION}.MIN_VISIBLE", "0.1", "INPUT.RANDOM_FLIP", "none"]
    cfg = config(*overrides, "INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)")
    mapper = build(cfg, images)
    classes = set()
    for seed in range(12):
        pixels, instances = run(mapper, images[0], seed)
        assert len(instances) == 2
        classes |= set(instances.gt_classes.tolist())
        for mask, index in zip(instances.gt_masks.tensor, instances.gt_classes.tolist(), strict=True):
            assert torch.equal(mask, torch.from_numpy(colored(pixels, index)))
    assert classes > {0, 1}


def test_covered_keypoints_become_invisible():
    """A pasted square covers the right half of an object with two keypoints; a third is unlabeled."""

    def sample(color, x0, x1, keypoints):
        mask = np.zeros((8, 8), np.uint8)
        mask[:, x0:x1] = 1
        box = np.array([x0, 0, x1, 8], float)
        annotation = {"bbox": box, "bbox_mode": 0, "category_id": 0, "segmentation": mask}
        annotation["keypoints"] = np.array(keypoints, float)
        return TrainingSample(np.full((8, 8, 3), color, np.uint8), [annotation])

    for seed in range(9):
        target = sample(10, 2, 6, [[3, 1, 2], [5, 1, 2], [0, 0, 0]])
        source = sample(20, 4, 8, [[5, 5, 2], [6, 6, 1], [0, 0, 0]])
        with seeded(seed):
            result = paste_objects(target, source, 0.1)
        if result is target:  # the only object was not chosen
            continue
        assert (result.image[:, :4] == 10).all() and (result.image[:, 4:] == 20).all()
        covered, pasted = result.annotations
        assert covered["keypoints"].tolist() == [[3, 1, 2], [5, 1, 1], [0, 0, 0]]
        assert pasted["keypoints"].tolist() == [[5, 5, 2], [6, 6, 1], [0, 0, 0]]
        assert covered["bbox"].tolist() == [2, 0, 4, 8]
        assert covered["visible"] == 0.5
        assert target.annotations[0]["bbox"].tolist() == [2, 0, 6, 8]
        return
    pytest.fail("nothing was pasted")


@pytest.mark.parametrize("name", COLOR)
def test_colors_change_but_annotations_do_not(name, images):
    differences = []
    for seed in range(3):
        plain_pixels, plain = run(build(config(), images), images[0], seed)
        pixels, instances = run(build(config(*COLOR[name]), images), images[0], seed)
        assert torch.equal(instances.gt_boxes.tensor, plain.gt_boxes.tensor)
        assert torch.equal(instances.gt_masks.tensor, plain.gt_masks.tensor)
        assert pixels.shape == plain_pixels.shape
        differences.append(np.abs(pixels - plain_pixels).max())
    assert max(differences) > 10


@pytest.mark.parametrize("name", COLOR)
def test_colors_change_alike_in_either_channel_order(name, images):
    rgb = run(build(config(*COLOR[name]), images), images[0], 0)[0]
    bgr = run(build(config(*COLOR[name], "INPUT.FORMAT", "BGR"), images), images[0], 0)[0]
    assert np.array_equal(rgb, bgr[..., ::-1])


@pytest.mark.parametrize(("min_visible", "num_objects"), [(0.2, 2), (0.3, 1)])
def test_objects_of_which_little_is_left_are_dropped(min_visible, num_objects, images):
    """A crop to the left half of the image leaves a quarter of the second mark: columns 80 to 96 of 80 to 144."""
    overrides = [*CROP, "absolute", "INPUT.CROP.SIZE", f"[{HEIGHT}, 96]", "INPUT.RANDOM_FLIP", "none"]
    cfg = config(*overrides, f"{SECTION}.MIN_VISIBLE", str(min_visible), "INPUT.MIN_SIZE_TRAIN", "(96,)")
    mapper = build(cfg, images)
    for seed in range(300):
        pixels, instances = run(mapper, images[0], seed)
        # The seed whose crop begins at column 0
        if colored(pixels, 0)[:, 10:60].sum() == 50 * 40:
            assert len(instances) == num_objects
            return
    pytest.fail("no seed crops at the left border")


def test_extreme_images_are_augmented(tmp_path):
    overrides = [*JITTER, *MOSAIC, *CROP, "relative_range", "INPUT.CROP.SIZE", "[0.1, 0.1]"]
    dicts = []
    for height, width in ((1, 1), (1, 900), (900, 1)):
        file = tmp_path / f"{height}x{width}.png"
        Image.new("L", (width, height)).save(file)
        box = {"bbox": [0, 0, width, height], "bbox_mode": 1, "category_id": 0}
        dicts.append({"file_name": str(file), "height": height, "width": width, "annotations": [box]})
    for cfg in (config(*overrides, masks=False), config(*MOSAIC, masks=False)):
        mapper = build_training_mapper(cfg, dicts)
        for seed in range(20):
            pixels, _ = run(mapper, dicts[seed % 3], seed)
            assert min(pixels.shape) >= 1


def test_images_without_objects_are_augmented(images):
    empty = [{**image, "annotations": []} for image in images]
    mapper = build_training_mapper(config(*JITTER, *MOSAIC), empty)
    assert len(run(mapper, empty[0], 0)[1]) == 0


def test_copy_paste_needs_masks(images):
    without = [
        {**image, "annotations": [{**a, "segmentation": []} for a in image["annotations"]]}
        for image in images
    ]
    with pytest.raises(UsageError, match='needs masks .* has a "segmentation": set it to 0'):
        build_training_mapper(config(*COPY_PASTE, masks=False), without)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "LARGE_SCALE_JITTER",
            "[2.0, 0.1]",
            r"\[2.0, 0.1\] must be \[low, high\], positive numbers in this order",
        ),
        ("LARGE_SCALE_JITTER_SIZE", "[640]", r"must be \[height, width\] in pixels, or \[\]"),
        ("BRIGHTNESS", "[0.8]", r"BRIGHTNESS \[0.8\] must be \[low, high\]"),
        ("MOSAIC", "1.5", r"MOSAIC 1.5 must be in \[0, 1\]"),
        ("MOSAIC_SCALE", "[]", r"MOSAIC_SCALE \[\] must be \[low, high\]"),
        ("HUE", "0.7", r"HUE 0.7 must be in \[0, 0.5\]"),
        ("LIGHTING", "-1.0", "LIGHTING -1.0 must be at least 0"),
    ],
)
def test_invalid_values_are_refused(key, value, message):
    with pytest.raises(UsageError, match=message):
        config(f"{SECTION}.{key}", value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{SECTION}.HUE", "0.1", "INPUT.FORMAT", "L"], "HUE needs INPUT.FORMAT BGR or RGB, not L"),
        ([*CROP, "fixed"], "INPUT.CROP.TYPE 'fixed' must be one of"),
        ([*CROP, "absolute"], r"INPUT.CROP.SIZE \[0.9, 0.9\] must be two numbers of pixels"),
        ([*CROP, "relative", "INPUT.CROP.SIZE", "[9, 9]"], r"must be two fractions in \(0, 1\]"),
    ],
)
def test_invalid_combinations_are_refused(overrides, message):
    with pytest.raises(UsageError, match=message):
        config(*overrides)


def test_without_augmentation_keys_a_plain_detectron2_config_works(images):
    from detectron2.config import get_cfg

    mapper = FBNetV3DatasetMapper(get_cfg(), is_train=True)
    assert len(run(mapper, images[0], 0)[1]) == 2
    assert json.dumps(sorted(images[0])) == '["annotations", "file_name", "height", "width"]'
