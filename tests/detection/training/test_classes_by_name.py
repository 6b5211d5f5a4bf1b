"""Classes of datasets are matched by name with those of a detector, in evaluation and when a run resumes."""

import json
import shutil

import pytest
import torch

from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training.detector_evaluation import evaluate_detector
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.errors import UsageError
from tests.detection.coco_files import write_with_categories

DIGITS = [str(digit) for digit in range(10)]
REVERSED_IDS = list(range(10, 0, -1))
# Detects something after a few steps
QUICK = [
    *("SOLVER.MAX_ITER", "50", "SOLVER.BASE_LR", "0.005", "SOLVER.WARMUP_ITERS", "5"),
    *("SOLVER.IMS_PER_BATCH", "4", "MODEL_EMA.DECAY", "0.8"),
    *("INPUT.MIN_SIZE_TRAIN", "(80,)", "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TEST", "80"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "SOLVER.CHECKPOINT_PERIOD", "20"),
]


def custom(part, file, images):
    return [f"DATASETS.CUSTOM.{part}_ANNOTATIONS", str(file), f"DATASETS.CUSTOM.{part}_IMAGES", str(images)]


@pytest.fixture(scope="module")
def trained(digits_config, scenes, tmp_path_factory):
    """Return the result of a run that is evaluated on its training images."""
    out = tmp_path_factory.mktemp("by_name") / "run"
    test = custom("TEST", scenes / "train.json", scenes / "train")
    return train_detector(load_detection_config(digits_config, [*QUICK, *test, "OUTPUT_DIR", str(out)]))


def evaluate(digits_config, trained, scenes, file):
    weights = ["MODEL.WEIGHTS", str(trained.run_folder.weights), "OUTPUT_DIR", str(file.parent / "out")]
    overrides = [*QUICK, *custom("TEST", file, scenes / "train"), *weights]
    return evaluate_detector(load_detection_config(digits_config, overrides), keep={"MODEL.WEIGHTS"})


def test_another_order_is_mapped_and_said(digits_config, trained, scenes, tmp_path, caplog):
    caplog.set_level("INFO")
    # Ids in the opposite order turn the order of the classes around
    file = write_with_categories(scenes / "train.json", tmp_path / "x.json", DIGITS, REVERSED_IDS)
    results = evaluate(digits_config, trained, scenes, file)["custom_test"]["bbox"]
    expected = trained.results["custom_test"]["bbox"]
    assert expected["AP50"] > 0
    assert results == pytest.approx(expected, nan_ok=True)
    line = "custom_test has its classes in another order than the detector; they are matched by name"
    assert caplog.messages.count(line) == 1


def test_a_subset_is_mapped_and_said(digits_config, trained, scenes, tmp_path, caplog):
    caplog.set_level("INFO")
    content = json.loads((scenes / "train.json").read_text())
    content["categories"] = [c for c in content["categories"] if c["name"] in ("3", "7")]
    ids = {category["id"] for category in content["categories"]}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] in ids]
    file = tmp_path / "x.json"
    file.write_text(json.dumps(content))
    results = evaluate(digits_config, trained, scenes, file)["custom_test"]["bbox"]
    expected = trained.results["custom_test"]["bbox"]
    # Each class is evaluated on its own, so others in the dataset do not matter
    assert results["AP-3"] == pytest.approx(expected["AP-3"]) and "AP-4" not in results
    assert results["AP-7"] == pytest.approx(expected["AP-7"])
    line = "custom_test has 2 of the 10 classes of the detector, matched by name; it lacks 0, 1, 2, 4, 5, 6, 8, 9"
    assert caplog.messages.count(line) == 1


def test_other_names_are_refused_with_both_lists(digits_config, trained, scenes, tmp_path):
    names = ["7", *DIGITS[1:7], "zero", *DIGITS[8:]]
    file = write_with_categories(scenes / "train.json", tmp_path / "x.json", names)
    message = "the detector lacks zero: custom_test has 10 classes .7, 1, 2, 3, 4, 5, 6, zero, 8, 9.; the detector"
    with pytest.raises(
        UsageError, match=f"{message} has 10 classes .0, 1, 2, 3, 4, 5, 6, 7, 8, 9."
    ) as error:
        evaluate(digits_config, trained, scenes, file)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.fixture
def interrupted(digits_config, scenes, tmp_path):
    """Return the overrides of a run of four steps, its folder with a checkpoint after two steps, and its end."""
    overrides = [
        *custom("TEST", scenes / "test.json", scenes / "test"),
        "OUTPUT_DIR",
        str(tmp_path / "run"),
    ]
    train_detector(load_detection_config(digits_config, overrides))
    end = torch.load(tmp_path / "run/checkpoints/step_00000004.pth", weights_only=True)
    (tmp_path / "run/checkpoints/step_00000004.pth").unlink()
    return overrides, tmp_path / "run", end


def test_a_run_resumes_with_its_own_order_of_classes(digits_config, scenes, interrupted, tmp_path, caplog):
    caplog.set_level("INFO")
    overrides, folder, end = interrupted
    file = write_with_categories(scenes / "train.json", tmp_path / "x.json", DIGITS, REVERSED_IDS)
    train = custom("TRAIN", file, scenes / "train")
    train_detector(load_detection_config(digits_config, [*overrides, *train]), resume=True)
    resumed = torch.load(folder / "checkpoints/step_00000004.pth", weights_only=True)
    assert resumed["metadata"]["classes"] == end["metadata"]["classes"] == DIGITS
    for key, value in end["model"].items():
        assert torch.equal(value, resumed["model"][key]), key
    line = "custom_train has its classes in another order than the detector; they are matched by name"
    assert caplog.messages.count(line) == 1


def test_a_run_does_not_resume_with_other_names(digits_config, scenes, interrupted, tmp_path):
    overrides, folder, _ = interrupted
    before = shutil.copytree(folder, tmp_path / "before")
    file = write_with_categories(scenes / "train.json", tmp_path / "x.json", ["zero", *DIGITS[1:]])
    train = custom("TRAIN", file, scenes / "train")
    with pytest.raises(
        UsageError, match="the detector lacks zero: custom_train has 10 classes .zero, 1, 2"
    ):
        train_detector(load_detection_config(digits_config, [*overrides, *train]), resume=True)
    assert (folder / "model_final.pth").read_bytes() == (before / "model_final.pth").read_bytes()


def test_fine_tuning_for_other_classes_keeps_the_common_ones(
    digits_config, scenes, trained, tmp_path, caplog
):
    caplog.set_level("INFO")
    file = write_with_categories(scenes / "train.json", tmp_path / "x.json", ["a", *DIGITS[1:9], "b"])
    overrides = [*custom("TRAIN", file, scenes / "train"), *custom("TEST", file, scenes / "train")]
    overrides += ["MODEL.WEIGHTS", str(trained.run_folder.weights), "OUTPUT_DIR", str(tmp_path / "run")]
    overrides += ["SOLVER.MAX_ITER", "1", "SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1e-30"]
    train_detector(load_detection_config(digits_config, overrides))
    line = "the last layers have 8 of 10 classes from the weights, matched by name; new: a, b"
    assert caplog.messages.count(line) == 1
    start = torch.load(trained.run_folder.weights, weights_only=True)["model"]
    weights = torch.load(tmp_path / "run/model_final.pth", weights_only=True)["raw_model"]
    key = "roi_heads.box_predictor.cls_score.weight"
    equal = (start[key] == weights[key]).all(dim=1).tolist()
    assert equal == [False, *[True] * 8, False, True]
