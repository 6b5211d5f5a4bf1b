"""Keypoints and masks through the tool: from annotation files to average precision."""

import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.detection.data.annotations.ground_truth import build_ground_truth
from fbnetv3.detection.data.detection_datasets import (
    load_clean_annotations,
    load_dataset_dicts,
    prepare_datasets,
)
from fbnetv3.detection.data.detection_loaders import build_train_loader
from fbnetv3.detection.data.keypoint_names import flip_pairs, registered_skeleton
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.inference.array_predictors import ConfigPredictor
from fbnetv3.detection.training.detector_evaluation import evaluate_datasets
from fbnetv3.errors import DataError, UsageError
from fbnetv3.training.processes.distributed import SINGLE_PROCESS
from fbnetv3.training.run_state.detector_record import read_detector_record

NAMES = ["nose", "left_ear", "right_ear"]
SKELETON = KeypointSkeleton(
    tuple(NAMES), (("left_ear", "right_ear"),), (("nose", "left_ear"), ("nose", "right_ear"))
)
HEIGHT, WIDTH = 64, 96
SMALL_HEADS = ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]
SMALL_HEADS += [
    "SOLVER.MAX_ITER",
    "2",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "2",
    "MODEL.FBNETV3.ARCH",
    "fbnetv3_digits",
]
KEYPOINTS = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3"]
SIGMAS = ["TEST.KEYPOINT_OKS_SIGMAS", "[0.05, 0.05, 0.05]"]


def animal(x, y, side):
    """Return box, keypoints and polygon of a square animal that looks at us; its left ear is on our right."""
    keypoints = [x + side // 2, y + side // 2, 2, x + side - 1, y, 2, x, y, 1]
    polygon = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"bbox": [x, y, side, side], "keypoints": keypoints, "segmentation": [polygon]}


def run_length(segmentation):
    """Return a mask as uncompressed run lengths, as COCO's crowds have them."""
    bits = mask_util.decode(mask_util.frPyObjects(segmentation, HEIGHT, WIDTH))[..., 0].ravel(order="F")
    changes = np.flatnonzero(np.diff(bits)) + 1
    counts = np.diff(np.concatenate([[0], changes, [bits.size]])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts if not bits[0] else [0, *counts]}


def write_animals(folder, categories=None, run_lengths=False, change=lambda data: None):
    """Write four images with an animal and a stone, which has no keypoints, each. Return the config overrides."""
    folder.mkdir(exist_ok=True)
    data = {"images": [], "annotations": []}
    skeleton = [[1, 2], [1, 3]]
    data["categories"] = categories or [
        {"id": 1, "name": "animal", "keypoints": NAMES, "skeleton": skeleton},
        {"id": 2, "name": "stone"},
    ]
    for number in range(1, 5):
        pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
        stone = {"bbox": [60, 30, 30, 25], "segmentation": [[60, 30, 90, 30, 90, 55, 60, 55]]}
        for category, entry in ((1, animal(4 * number, 3 * number, 36)), (2, stone)):
            x, y, width, height = entry["bbox"]
            pixels[y : y + height, x : x + width] = 120 + 60 * category
            if run_lengths:
                entry["segmentation"] = run_length(entry["segmentation"])
            area = float(width * height)
            identifier = len(data["annotations"]) + 1
            data["annotations"].append(
                {
                    "id": identifier,
                    "image_id": number,
                    "category_id": category,
                    "area": area,
                    "iscrowd": 0,
                    "num_keypoints": 3 if "keypoints" in entry else 0,
                    "keypoints": [0] * 9,
                    **entry,
                }
            )
        Image.fromarray(pixels).save(folder / f"{number}.png")
        data["images"].append(
            {"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH}
        )
    change(data)
    (folder / "a.json").write_text(json.dumps(data))
    overrides = []
    for part in ("TRAIN", "TEST"):
        overrides += [f"DATASETS.CUSTOM.{part}_ANNOTATIONS", str(folder / "a.json")]
        overrides += [f"DATASETS.CUSTOM.{part}_IMAGES", str(folder)]
    return [*overrides, *SMALL_HEADS]


def test_keypoints_are_trained_and_evaluated(tool, digits_config, tmp_path):
    overrides = write_animals(tmp_path / "data")
    run = ["--config", digits_config, "OUTPUT_DIR", tmp_path / "run", *overrides, *KEYPOINTS, *SIGMAS]
    ran = tool("train_net", *run, "INPUT.AUGMENTATION.MOSAIC", "0.5")
    assert (ran.code, ran.err) == (0, "")
    assert "keypoints: nose, left_ear, right_ear; a flip exchanges left_ear / right_ear" in ran.out
    assert [line.split()[1] for line in ran.out.splitlines() if line.startswith("custom_test ")] == [
        "bbox",
        "keypoints",
    ]
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["keypoints/AP"] >= 0
    assert (tmp_path / "run" / "augmented_images.png").exists()
    weights = tmp_path / "run" / "model_final.pth"
    assert read_detector_record(str(weights)).skeleton == SKELETON
    # A resumed run must have them in the same order
    file = tmp_path / "data" / "a.json"
    data = json.loads(file.read_text())
    data["categories"][0]["keypoints"] = NAMES[::-1]
    (tmp_path / "data" / "b.json").write_text(json.dumps(data))
    other = ["DATASETS.CUSTOM.TRAIN_ANNOTATIONS", tmp_path / "data" / "b.json", "SOLVER.MAX_ITER", "3"]
    refused = tool("train_net", *run, *other, "--resume")
    assert refused.code == 1
    assert "custom_train: its keypoints right_ear, left_ear, nose are not those of the det" in refused.err
    # Detecting needs no annotations for the lines in pictures
    file.unlink()
    predictor = ConfigPredictor.from_checkpoint(weights, ["MODEL.DEVICE", "cpu"])
    assert predictor.skeleton == SKELETON


class Oracle(nn.Module):
    """Detects what a dataset's annotations say."""

    def __init__(self, dicts):
        super().__init__()
        self.annotations = {image["image_id"]: image["annotations"] for image in dicts}

    def forward(self, inputs):
        outputs = []
        for image in inputs:
            annotations = self.annotations[image["image_id"]]
            boxes = torch.tensor([a["bbox"] for a in annotations])
            instances = Instances((image["height"], image["width"]))
            instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
            instances.pred_classes = torch.tensor([a["category_id"] for a in annotations])
            instances.scores = torch.ones(len(annotations))
            keypoints = [a.get("keypoints") or [0.0] * 9 for a in annotations]
            instances.pred_keypoints = torch.tensor(keypoints).reshape(-1, 3, 3)
            outputs.append({"instances": instances})
        return outputs


def test_an_oracle_has_all_keypoints_right(digits_config, tmp_path):
    overrides = write_animals(tmp_path / "data")
    cfg = load_detection_config(digits_config, [*overrides, *KEYPOINTS, *SIGMAS])
    prepare_datasets(cfg, SINGLE_PROCESS)
    oracle = Oracle(load_dataset_dicts("custom_test"))
    results = evaluate_datasets(cfg, oracle, ["custom_test"], SINGLE_PROCESS)["custom_test"]
    assert results["keypoints"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_a_flip_exchanges_left_and_right(digits_config, tmp_path):
    """Flipped, the animal's left ear is still on our right."""
    overrides = write_animals(tmp_path / "data")
    overrides += [
        *KEYPOINTS,
        *SIGMAS,
        "INPUT.MIN_SIZE_TRAIN",
        f"({HEIGHT},)",
        "INPUT.MAX_SIZE_TRAIN",
        "200",
    ]
    cfg = load_detection_config(digits_config, [*overrides, "INPUT.RANDOM_FLIP", "horizontal"])
    prepare_datasets(cfg, SINGLE_PROCESS, training=True)
    loader = build_train_loader(cfg, 0, SINGLE_PROCESS)
    corners = set()
    for position in range(8):
        instances = loader.dataset[position, 0]["instances"]
        first = instances.gt_classes.tolist().index(0)
        x0, y0, x1, _ = instances.gt_boxes.tensor[first].tolist()
        nose, left_ear, right_ear = instances.gt_keypoints.tensor[first].tolist()
        # Half a pixel inside the corners
        assert left_ear == pytest.approx([x1 - 0.5, y0 + 0.5, 1 if x0 > 30 else 2])
        assert right_ear == pytest.approx([x0 + 0.5, y0 + 0.5, 2 if x0 > 30 else 1])
        assert nose[2] == 2
        stone = 1 - first
        assert instances.gt_keypoints.tensor[stone].tolist() == [[0, 0, 0]] * 3
        corners.add(x0)
    assert len(corners) == 2


def test_keypoints_are_registered_with_detectron2(digits_config, tmp_path, caplog):
    cfg = load_detection_config(digits_config, [*write_animals(tmp_path / "data"), *KEYPOINTS, *SIGMAS])
    with caplog.at_level(logging.INFO, "fbnetv3"):
        prepare_datasets(cfg, SINGLE_PROCESS, training=True)
    metadata = MetadataCatalog.get("custom_train")
    assert metadata.keypoint_names == NAMES
    assert metadata.keypoint_flip_map == [("left_ear", "right_ear")]
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("nose", "left_ear"),
        ("nose", "right_ear"),
    ]


def test_datasets_must_have_the_keypoints_of_a_trained_detector(digits_config, tmp_path):
    cfg = load_detection_config(digits_config, [*write_animals(tmp_path / "data"), *KEYPOINTS, *SIGMAS])
    prepare_datasets(cfg, SINGLE_PROCESS, skeleton=SKELETON)
    assert registered_skeleton("custom_test") == SKELETON
    with pytest.raises(
        DataError, match="custom_test: its keypoints nose, .* are not those of the detector"
    ):
        prepare_datasets(cfg, SINGLE_PROCESS, skeleton=KeypointSkeleton(("a", "b", "c")))


def test_flip_pairs_of_a_category(digits_config, tmp_path):
    """As from YOLO's `flip_idx`; a key of the config replaces them."""
    category = {"id": 1, "name": "animal", "keypoints": NAMES, "flip_pairs": [["nose", "left_ear"]]}
    overrides = write_animals(tmp_path / "data", [category, {"id": 2, "name": "stone"}])
    overrides += [*KEYPOINTS, *SIGMAS]
    for more, expected in (
        ([], ("nose", "left_ear")),
        (["INPUT.KEYPOINT_FLIP_PAIRS", "[['nose','right_ear']]"], ("nose", "right_ear")),
    ):
        prepare_datasets(load_detection_config(digits_config, [*overrides, *more]), SINGLE_PROCESS)
        assert registered_skeleton("custom_test").flip_pairs == (expected,)


@pytest.mark.parametrize(
    ("names", "configured", "expected"),
    [
        (["left_eye", "right_eye", "tail"], [], [("left_eye", "right_eye")]),
        (["eye_l", "eye_r", "ball"], [], [("eye_l", "eye_r")]),
        (["leftEye", "rightEye", "left_out"], [], [("leftEye", "rightEye")]),
        (["a", "b", "left_eye", "right_eye"], [["a", "b"]], [("a", "b")]),
    ],
)
def test_flip_pairs(names, configured, expected):
    assert flip_pairs(names, configured) == expected


def test_flip_pairs_must_be_keypoints():
    with pytest.raises(
        UsageError, match=r"INPUT.KEYPOINT_FLIP_PAIRS: \['a', 'c'\] must be two of the keypoints"
    ):
        flip_pairs(["a", "b"], [["a", "c"]])


def test_cocos_flip_pairs():
    from detectron2.data.datasets.builtin_meta import (
        COCO_PERSON_KEYPOINT_FLIP_MAP,
        COCO_PERSON_KEYPOINT_NAMES,
    )

    assert flip_pairs(COCO_PERSON_KEYPOINT_NAMES) == list(COCO_PERSON_KEYPOINT_FLIP_MAP)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (KEYPOINTS[:2], r"has 3 keypoints \(nose, left_ear, right_ear\), but the network has 17: set .* 3"),
        (KEYPOINTS, "TEST.KEYPOINT_OKS_SIGMAS is empty: average precision of 3 keypoints needs"),
        ([*KEYPOINTS, "TEST.KEYPOINT_OKS_SIGMAS", "[0.1]"], "must be 3 positive numbers"),
    ],
)
def test_numbers_of_keypoints_are_checked(digits_config, tmp_path, overrides, message):
    cfg = load_detection_config(digits_config, [*write_animals(tmp_path / "data"), *overrides])
    with pytest.raises(UsageError, match=message):
        prepare_datasets(cfg, SINGLE_PROCESS, training=True)


@pytest.mark.parametrize(
    ("animal_keys", "stone_keys", "message"),
    [
        ({}, {}, 'no category has "keypoints"'),
        (
            {"keypoints": NAMES},
            {"keypoints": ["top", "left", "right"]},
            "categories have different keypoints",
        ),
        ({"keypoints": ["a", "a", "b"]}, {}, "names of keypoints must differ"),
        ({"keypoints": NAMES, "skeleton": [[0, 1]]}, {}, '"skeleton" .* numbers from 1 to 3'),
        (
            {"keypoints": NAMES, "flip_pairs": [["nose"]]},
            {},
            '"flip_pairs" .* list of pairs of its keypoints',
        ),
    ],
)
def test_categories_are_checked(digits_config, tmp_path, animal_keys, stone_keys, message):
    categories = [{"id": 1, "name": "animal", **animal_keys}, {"id": 2, "name": "stone", **stone_keys}]
    overrides = write_animals(tmp_path / "data", categories)
    cfg = load_detection_config(digits_config, [*overrides, *KEYPOINTS, *SIGMAS])
    with pytest.raises(DataError, match=message):
        prepare_datasets(cfg, SINGLE_PROCESS, training=True)


MASKS = ["MODEL.MASK_ON", "True"]


@pytest.mark.parametrize("run_lengths", [False, True])
def test_masks_are_trained_and_evaluated(tool, digits_config, tmp_path, run_lengths):
    """Polygons, and run lengths after the key that the error names is set; both with every augmentation."""
    overrides = write_animals(tmp_path / "data", run_lengths=run_lengths)
    run = ["--config", digits_config, "OUTPUT_DIR", tmp_path / "run", *overrides, *MASKS]
    run += ["INPUT.AUGMENTATION.COPY_PASTE", "0.5", "INPUT.AUGMENTATION.LARGE_SCALE_JITTER", "[0.5,1.5]"]
    if run_lengths:
        refused = tool("train_net", *run)
        assert refused.code == 1 and "set INPUT.MASK_FORMAT bitmask" in refused.err
        run += ["INPUT.MASK_FORMAT", "bitmask"]
    ran = tool("train_net", *run)
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[1] for line in ran.out.splitlines() if line.startswith("custom_test ")] == [
        "bbox",
        "segm",
    ]


def test_run_lengths_are_evaluated_whatever_the_format_of_the_training_masks(digits_config, tmp_path):
    training = write_animals(tmp_path / "polygons")
    test = write_animals(tmp_path / "run_lengths", run_lengths=True)[4:8]
    cfg = load_detection_config(digits_config, [*training, *test, *MASKS])
    prepare_datasets(cfg, SINGLE_PROCESS, training=True)
    truth = build_ground_truth(load_clean_annotations("custom_test"), "segm")
    assert [mask_util.area(truth.anns[i]["segmentation"]) for i in (1, 2)] == [36 * 36, 30 * 25]


def test_polygons_and_run_lengths_give_the_same_batches(digits_config, tmp_path):
    batches = []
    for name, run_lengths in (("polygons", False), ("run_lengths", True)):
        overrides = [*write_animals(tmp_path / name, run_lengths=run_lengths), *MASKS]
        overrides += ["INPUT.MASK_FORMAT", "bitmask", "INPUT.MIN_SIZE_TRAIN", f"({HEIGHT},)"]
        cfg = load_detection_config(digits_config, [*overrides, "INPUT.AUGMENTATION.COPY_PASTE", "1.0"])
        loader = build_train_loader(cfg, 0, SINGLE_PROCESS)
        batches.append([loader.dataset[position, 1] for position in range(4)])
    for polygon, run_length in zip(*batches, strict=True):
        assert torch.equal(polygon["image"], run_length["image"])
        for field in ("gt_masks", "gt_boxes"):
            a, b = (x["instances"].get(field).tensor for x in (polygon, run_length))
            assert torch.equal(a, b)


def test_rotated_boxes_are_refused_in_one_line(tool, digits_config, tmp_path):
    def rotate(data):
        for entry in data["annotations"]:
            entry["bbox"] = [*entry["bbox"], 30.0]

    overrides = write_animals(tmp_path / "data", change=rotate)
    ran = tool("train_net", "--config", digits_config, "OUTPUT_DIR", tmp_path / "run", *overrides)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "rotated" in ran.err
    assert not (tmp_path / "run").exists()
