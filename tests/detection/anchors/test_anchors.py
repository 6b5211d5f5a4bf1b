"""How well anchors cover boxes, and fitting them: numbers by hand, or by enumerating detectron2's anchors."""

import json
import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_anchor_generator, build_model
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from fbnetv3.detection.anchors.anchor_coverage import (
    AnchorLevel,
    TrainingBoxes,
    best_ious,
    coverage_table,
    training_boxes,
)
from fbnetv3.detection.anchors.anchor_fitting import (
    anchor_levels,
    detectron2_anchors,
    fit_anchors,
    resolve_anchors,
)
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.errors import UsageError
from tests.detection.detectors import sample_inputs, small_config, train_step

CONFIGS = ["faster_rcnn_fbnetv3_a_C4", "faster_rcnn_fbnetv3_g_FPN", "retinanet_fbnetv3_a_FPN"]


def make_boxes(corners, image_sides=(320, 256)):
    """Return boxes of an image that is not resized, from corners (N, 4)."""
    corners = np.array(corners, dtype=float)
    sides = corners[:, 2:] - corners[:, :2]
    centers = (corners[:, 2:] + corners[:, :2]) / 2
    return TrainingBoxes(centers, sides, np.tile(image_sides, (len(corners), 1)), np.sqrt(sides.prod(1)))


def random_corners(count=200, seed=0):
    rng = np.random.default_rng(seed)
    upper_left = rng.uniform(0, (250, 200), (count, 2))
    sides = np.exp(rng.uniform(1, 5.5, (count, 2)))
    return np.hstack([upper_left, np.minimum(upper_left + sides, (320, 256))])


def image_dict(boxes, width=320, height=256, **more):
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0, **more}
        for box in boxes
    ]
    return {"width": width, "height": height, "annotations": annotations}


@pytest.mark.parametrize("name", CONFIGS)
def test_ious_are_those_with_detectron2s_anchors(name):
    """The best of all anchors on all positions of the maps of an image."""
    cfg = small_config(name)
    levels = anchor_levels(cfg)
    generator = build_anchor_generator(cfg, [ShapeSpec(stride=level.stride) for level in levels])
    maps = [torch.zeros(1, 1, -(-256 // level.stride), -(-320 // level.stride)) for level in levels]
    corners = random_corners()
    expected = pairwise_iou(Boxes(torch.tensor(corners)), Boxes.cat(generator(maps))).amax(1)
    assert np.allclose(best_ious(make_boxes(corners), levels), expected, atol=1e-5)


def test_training_boxes_have_the_size_of_the_training():
    """An image of 320 x 256 is resized to a short side of 512, twice its size; a crowd is left out."""
    cfg = small_config()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (480, 512, 544), 2000
    images = [image_dict([(10, 20, 50, 40), (300, 0, 400, 9)]), image_dict([(0, 0, 9, 9)], iscrowd=1)]
    boxes = training_boxes(cfg, images)
    assert boxes.centers.tolist() == [[60, 60], [620, 9]]
    assert boxes.sides.tolist() == [[80, 40], [40, 18]]  # the second is clipped to the image
    assert boxes.image_sides.tolist() == [[640, 512]] * 2
    assert boxes.original_sizes.tolist() == pytest.approx([800**0.5, 180**0.5])


def test_training_boxes_with_large_scale_jitter():
    """At the middle scale of 1.5, an image of 320 x 256 is fitted into 480 x 480."""
    cfg = small_config()
    cfg.INPUT.AUGMENTATION.LARGE_SCALE_JITTER = [1.0, 2.0]
    cfg.INPUT.AUGMENTATION.LARGE_SCALE_JITTER_SIZE = [320, 320]
    boxes = training_boxes(cfg, [image_dict([(0, 0, 40, 20)])])
    assert boxes.sides.tolist() == [[60, 30]]


def test_coverage_table_divides_boxes_by_cocos_sizes():
    """One box of each size, whose IoUs are 0.2, 0.4 and 0.9."""
    boxes = make_boxes([(0, 0, 20, 20), (0, 0, 40, 40), (0, 0, 100, 100)])
    lines = coverage_table(boxes, {"before": np.array([0.2, 0.4, 0.9])}, 0.7).splitlines()
    rows = [line.split() for line in lines[2:]]
    assert rows == [
        ["before", "all", "3", "0.50", "33.3%", "66.7%", "33.3%"],
        ["before", "small", "1", "0.20", "100.0%", "100.0%", "0.0%"],
        ["before", "medium", "1", "0.40", "0.0%", "100.0%", "0.0%"],
        ["before", "large", "1", "0.90", "0.0%", "0.0%", "100.0%"],
    ]


def test_anchors_are_fitted_to_the_shapes_of_the_boxes():
    """Boxes of three shapes in the centers of cells: sizes 20, 60, 180, all twice as high as wide."""
    corners = []
    for size in (20, 60, 180):
        width, height = size / 2**0.5, size * 2**0.5
        corners += [(160 - width / 2, 128 - height / 2, 160 + width / 2, 128 + height / 2)] * 5
    levels = [AnchorLevel(16, 0.0, (32, 64, 128), (1.0,))]
    (fit,) = fit_anchors(make_boxes(corners), levels)
    assert fit.sizes == pytest.approx((20, 60, 180), rel=0.02)
    assert fit.aspect_ratios == pytest.approx((2.0,), rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_fitted_anchors_cover_boxes_better(name):
    boxes = make_boxes(random_corners())
    levels = anchor_levels(small_config(name))
    fit = fit_anchors(boxes, levels)
    assert best_ious(boxes, fit).mean() > best_ious(boxes, levels).mean()
    assert [len(level.sizes) for level in fit] == [len(level.sizes) for level in levels]
    sizes = [size for level in fit for size in level.sizes]
    assert sizes == sorted(sizes)


def test_feature_maps_that_the_backbone_lacks():
    """detectron2 raises a KeyError. Architectures of one's own may ignore the key."""
    cfg = small_config()
    cfg.MODEL.RPN.IN_FEATURES = ["p3"]
    with pytest.raises(
        UsageError, match=r"^MODEL.RPN.IN_FEATURES p3: the backbone has the feature maps res4$"
    ):
        resolve_anchors(cfg, [image_dict([(0, 0, 9, 9)])])
    cfg.MODEL.META_ARCHITECTURE = "OneStage"
    assert resolve_anchors(cfg, [image_dict([(0, 0, 9, 9)])]) == (cfg, "")


def test_fewer_boxes_than_anchors():
    boxes = make_boxes([(0, 0, 40, 40)])
    (fit,) = fit_anchors(boxes, [AnchorLevel(16, 0.0, (32, 64, 96, 128, 160), (0.5, 1.0, 2.0))])
    assert (len(fit.sizes), len(fit.aspect_ratios)) == (5, 3)
    assert best_ious(boxes, [fit])[0] > 0.6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        (CONFIGS[0], [(32, 64, 128, 256, 512)]),
        (CONFIGS[1], [(32,), (64,), (128,), (256,), (512,)]),
        (CONFIGS[2], [tuple(x * 2 ** (i / 3) for i in range(3)) for x in (32, 64, 128, 256, 512)]),
    ],
)
def test_detectron2s_anchors(name, sizes):
    """Of C4, FPN and RetinaNet, as in detectron2's configs."""
    cfg = small_config(name)
    anchors = detectron2_anchors(cfg, anchor_levels(cfg))
    assert [level.sizes for level in anchors] == [pytest.approx(level, abs=0.1) for level in sizes]
    assert {level.aspect_ratios for level in anchors} == {(0.5, 1.0, 2.0)}


def test_the_config_receives_the_anchors():
    images = [image_dict(random_corners(60))]
    cfg = small_config()
    cfg.MODEL.ANCHOR_GENERATOR.FIT = "auto"
    resolved, message = resolve_anchors(cfg, images)
    section = resolved.MODEL.ANCHOR_GENERATOR
    assert section.FIT == "" and section.SIZES != cfg.MODEL.ANCHOR_GENERATOR.SIZES
    assert len(section.SIZES[0]) == 5 and len(section.ASPECT_RATIOS[0]) == 3
    assert "best possible recall" in message and "after      large" in message
    # Fitting is exact, and a resumed run keeps its anchors whatever the fit would be
    assert section == resolve_anchors(cfg, images)[0].MODEL.ANCHOR_GENERATOR
    recorded = {"MODEL.ANCHOR_GENERATOR.SIZES": [[7]], "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]]}
    assert resolve_anchors(cfg, images, recorded)[0].MODEL.ANCHOR_GENERATOR.SIZES == [[7]]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fit", ["auto", "detectron2"])
def test_detectors_train_with_the_anchors(name, fit):
    cfg = small_config(name)
    cfg.MODEL.ANCHOR_GENERATOR.FIT = fit
    resolved, _ = resolve_anchors(cfg, [image_dict(random_corners(60))])
    losses = train_step(build_model(resolved), sample_inputs()[:2])
    assert all(math.isfinite(loss) for loss in losses.values())


def test_without_the_key_nothing_changes_but_bad_anchors_are_mentioned():
    cfg = small_config()
    same, message = resolve_anchors(cfg, [image_dict([(0, 0, 10, 10), (0, 0, 60, 60)])])
    assert same is cfg
    assert message.startswith(
        "50% of 2 boxes have an IoU below 0.3 with every anchor: MODEL.ANCHOR_GENERATOR"
    )
    assert resolve_anchors(cfg, [image_dict([(0, 0, 60, 60)])]) == (cfg, "")


def test_invalid_settings_are_refused():
    cfg = small_config()
    cfg.MODEL.ANCHOR_GENERATOR.FIT = "auto"
    with pytest.raises(UsageError, match="FIT auto needs boxes to train on"):
        resolve_anchors(cfg, [image_dict([])])
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64]]
    with pytest.raises(UsageError, match="SIZES has 2 lists for 1 feature maps"):
        resolve_anchors(cfg, [image_dict([(0, 0, 10, 10)])])
    with pytest.raises(UsageError, match="FIT 'aut' is unknown: did you mean auto"):
        load_detection_config(
            "configs/coco/faster_rcnn_fbnetv3_a_C4.yaml", ["MODEL.ANCHOR_GENERATOR.FIT", "aut"]
        )


def test_evaluation_uses_the_anchors_of_the_training(tool, digits_config, tmp_path):
    """Neither the original config nor the command line has their values."""
    run = ["--config", digits_config, "OUTPUT_DIR", tmp_path / "run", "MODEL.ANCHOR_GENERATOR.FIT", "auto"]
    trained = tool("train_net", *run, "SOLVER.MAX_ITER", "2")
    assert (trained.code, trained.err) == (0, "")
    assert "MODEL.ANCHOR_GENERATOR.FIT auto: MODEL.ANCHOR_GENERATOR.SIZES" in trained.out
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "best possible recall" in (tmp_path / "run" / "log.txt").read_text()
    assert "FIT: ''" in config and "- 36" not in config
    resumed = tool("train_net", *run, "--resume", "SOLVER.MAX_ITER", "4")
    assert (resumed.code, resumed.err) == (0, "")
    results = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    evaluated = tool("train_net", "--config", digits_config, "OUTPUT_DIR", tmp_path / "run", "--eval-only")
    assert (evaluated.code, evaluated.err) == (0, "")
    assert "MODEL.ANCHOR_GENERATOR.SIZES" in evaluated.out
    assert resumed.out.splitlines()[-10:] and results["iteration"] == 4
    table = [line for line in resumed.out.splitlines() if line.startswith("custom_test ")]
    assert table and set(table) <= set(evaluated.out.splitlines())
