"""A detector's checkpoint is enough: it records config, architecture, preprocessing, classes and data."""

import json
import shutil
import sys

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from fbnetv3.arch import dump_arch, get_arch
from fbnetv3.commands import evaluate
from fbnetv3.detection import add_fbnetv3_config, config_from_checkpoint
from fbnetv3.detection.data.detection_datasets import detector_classes
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.inference.array_predictors import ExportedPredictor
from fbnetv3.detection.recorded_detectors import use_recorded_detector
from fbnetv3.detection.training.detector_checkpoint import load_detector
from fbnetv3.detection.training.detector_setup import build_detector
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.errors import UsageError, UserError
from fbnetv3.training.run_state.data_fingerprint import fingerprint_of_names
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.utils.nested_keys import flatten
from tests.detection.coco_files import write_with_categories

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
# After a few steps, all scores are nearly equal: keep all boxes, whatever their order
ALL_BOXES = (
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.ROI_HEADS.NMS_THRESH_TEST", "1.0"),
    *("TEST.DETECTIONS_PER_IMAGE", "1000", "INPUT.MIN_SIZE_TEST", "96"),
)
IDS = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31]


@pytest.fixture(scope="module")
def run(scenes, digits_config, tmp_path_factory):
    """Return the folder of a run whose architecture file, config and annotations have been deleted."""
    folder = tmp_path_factory.mktemp("recorded")
    data = folder / "data"
    data.mkdir()
    arch = dump_arch(get_arch("fbnetv3_digits")).replace("fbnetv3_digits", "my_digits")
    (data / "my_digits.yaml").write_text(arch)
    values = {
        "_BASE_": str(digits_config),
        "MODEL": {"FBNETV3": {"ARCH": "my_digits.yaml"}},
        "DATASETS": {
            "CUSTOM": {
                f"{part}_ANNOTATIONS": str(
                    write_with_categories(
                        scenes / f"{part.lower()}.json", data / f"{part}.json", NAMES, IDS
                    )
                )
                for part in ("TRAIN", "TEST")
            }
        },
        "OUTPUT_DIR": str(folder / "run"),
    }
    (data / "config.yaml").write_text(yaml.safe_dump(values))
    train_detector(load_detection_config(data / "config.yaml"))
    shutil.rmtree(data)
    (folder / "run" / "config.yaml").unlink()
    return folder / "run"


@pytest.fixture(params=["model_final.pth", "model_best.pth", "checkpoints/step_00000004.pth"])
def weights(run, request):
    return run / request.param


def test_every_checkpoint_records_its_detector(weights, scenes):
    record = read_detector_record(str(weights))
    assert record.arch == "my_digits"
    assert list(record.classes) == NAMES and list(record.category_ids) == IDS
    assert record.preprocessing == {
        "format": "BGR",
        "mean": [103.53, 116.28, 123.675],
        "std": [57.375, 57.12, 58.395],
        "min_size": 160,
        "max_size": 224,
    }
    images = json.loads((scenes / "train.json").read_text())["images"]
    assert record.data["custom_train"] == fingerprint_of_names(
        str(scenes / "train" / image["file_name"]) for image in images
    )
    checkpoint = torch.load(weights, weights_only=True)
    assert {"fbnetv3", "torch"} <= checkpoint["metadata"]["versions"].keys()


def test_a_detector_is_built_from_its_checkpoint_alone(weights):
    cfg = config_from_checkpoint(weights, ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96"])
    assert (str(weights), 96) == (cfg.MODEL.WEIGHTS, cfg.INPUT.MIN_SIZE_TEST)
    model = load_detector(build_detector(cfg), cfg.MODEL.WEIGHTS)
    final = torch.load(weights.parents[weights.parent.name == "checkpoints"] / "model_final.pth")["model"]
    if weights.name != "model_best.pth":
        assert all(torch.equal(value, final[key]) for key, value in model.state_dict().items())
    assert detector_classes(cfg) == dict(zip(IDS, NAMES, strict=True))


def test_a_run_folder_names_its_weights(run):
    assert str(run / "model_final.pth") == config_from_checkpoint(run).MODEL.WEIGHTS


def test_classes_of_an_annotation_file_are_matched_by_name(run):
    cfg = config_from_checkpoint(run)
    others = [{"id": 1, "name": "nine"}, {"id": 2, "name": "two"}]
    classes = detector_classes(cfg, others)
    assert list(classes.values()) == NAMES
    assert [key for key, name in classes.items() if name in ("two", "nine")] == [2, 1]
    with pytest.raises(
        UsageError, match="the detector lacks cat: the annotation file has 1 class .cat.; the"
    ):
        detector_classes(cfg, [{"id": 1, "name": "cat"}])


def test_detectron2s_own_predictor_gets_what_was_evaluated(run):
    cfg = get_cfg()
    add_fbnetv3_config(cfg)
    record = read_detector_record(str(run / "model_final.pth"))
    cfg.merge_from_other_cfg(type(cfg)(yaml.safe_load(record.config)))
    cfg.MODEL.FBNETV3.ARCH = record.definition
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    predictor = DefaultPredictor(cfg)
    checkpoint = torch.load(run / "checkpoints" / "step_00000004.pth", weights_only=True)
    assert all(
        torch.equal(value, checkpoint["ema_state"][key])
        for key, value in predictor.model.state_dict().items()
    )
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8), (64, 48))
    assert len(predictor(image)["instances"]) > 0


def test_modules_are_named_and_not_imported(run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    (tmp_path / "runs_code.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(run / "model_final.pth", weights_only=True)
    values = {**yaml.safe_load(checkpoint["metadata"]["detection_config"]), "IMPORTS": ["runs_code"]}
    checkpoint["metadata"]["detection_config"] = yaml.safe_dump({**values, "KEY_OF_ANOTHER_VERSION": 3})
    torch.save(checkpoint, tmp_path / "x.pth")
    assert config_from_checkpoint(tmp_path / "x.pth").IMPORTS == []
    assert "runs_code" not in sys.modules
    assert (
        f"{tmp_path}/x.pth was trained with modules that --import can import: runs_code" in caplog.messages
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection_config": "a: ["}, "x.pth: the config that it records cannot be read"),
        ({"detection_config": "[1, 2]"}, "x.pth: the config that it records cannot be read"),
        (
            {"detection_config": "SOLVER: {MAX_ITER: many}"},
            "x.pth: SOLVER.MAX_ITER many must be an integer",
        ),
        ({"classes": ["a"]}, "x.pth: what it records .* cannot be read .* 1 classes but 0 category ids"),
        (
            {"definition": "name: x\nstages: 3\n"},
            "x.pth: the architecture that it records cannot be read .*resolution",
        ),
    ],
)
def test_unusable_records(changes, message, tmp_path):
    record = {"detection_config": "{}", "arch": "a", "definition": "a", "classes": [], "category_ids": []}
    torch.save({"metadata": {**record, **changes}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=message) as error:
        build_detector(config_from_checkpoint(tmp_path / "x.pth"))
    assert "\n" not in str(error.value)


def test_weights_without_a_record(tmp_path):
    torch.save({"model": {"backbone.x": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="x.pth: does not record a detector's config: pass --config FILE"):
        config_from_checkpoint(tmp_path / "x.pth")


def test_another_config_gets_the_recorded_architecture_and_input(run, digits_config, caplog):
    caplog.set_level("INFO")
    cfg = load_detection_config(
        digits_config,
        [
            *("MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]", "INPUT.FORMAT", "RGB"),
            *("MODEL.ANCHOR_GENERATOR.OFFSET", "0.5"),
            *("MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", "True", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "5"),
            *("MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0, 1.0, 2.0, 2.0)"),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.2"),
        ],
    )
    record = read_detector_record(str(run / "model_final.pth"))
    used = use_recorded_detector(cfg, record, "x.pth", keep={"INPUT.FORMAT"})
    assert flatten(used)["MODEL.PIXEL_STD"] == [57.375, 57.12, 58.395]
    assert used.MODEL.ANCHOR_GENERATOR.OFFSET == 0
    trained = load_detection_config(digits_config).MODEL
    for section in ("ROI_BOX_HEAD", "RPN", "ROI_MASK_HEAD"):
        assert used.MODEL[section] == trained[section]
    assert used.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.2  # weights say nothing about thresholds
    assert (
        "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE False, as x.pth was trained: the config has True"
        in caplog.messages
    )
    assert sum("x.pth was" in line for line in caplog.messages) == 7  # nothing that is equal is reported
    assert ("RGB", record.definition) == (used.INPUT.FORMAT, used.MODEL.FBNETV3.ARCH)
    assert "INPUT.FORMAT RGB, as given: x.pth was trained with BGR" in caplog.messages
    assert (
        "MODEL.FBNETV3.ARCH my_digits, as x.pth was trained: the config has fbnetv3_digits"
        in caplog.messages
    )


def test_evaluation_and_export_need_only_the_checkpoint(run, scenes, tool, tmp_path):
    shutil.copy(run / "model_final.pth", tmp_path / "mine.pth")
    annotations = write_with_categories(scenes / "test.json", tmp_path / "test.json", NAMES, IDS)
    ran = tool(
        "train_net",
        "--eval-only",
        *("MODEL.WEIGHTS", tmp_path / "mine.pth", "DATASETS.CUSTOM.TEST_ANNOTATIONS", annotations),
        *(
            "DATASETS.CUSTOM.TRAIN_ANNOTATIONS",
            "",
            "DATASETS.CUSTOM.TRAIN_IMAGES",
            "",
            "OUTPUT_DIR",
            tmp_path / "out",
        ),
    )
    assert (ran.code, ran.err) == (0, "")
    folder = tmp_path / "out" / "inference" / "custom_test"
    results = json.loads((folder / "results.json").read_text())
    assert {"AP", "AP50", "AP-zero", "AP-nine"} <= results["bbox"].keys()
    detections = json.loads((folder / "coco_instances_results.json").read_text())
    assert {detection["category_id"] for detection in detections} <= set(IDS)
    rows = (folder / "per_class.csv").read_text().splitlines()
    assert rows[0] == "class,AP (bbox)" and sorted(row.split(",")[0] for row in rows[1:]) == sorted(NAMES)


def test_other_annotations_are_not_silently_combined_with_the_recorded_images(run, tmp_path, caplog):
    weights = run / "model_final.pth"
    folder = config_from_checkpoint(weights).DATASETS.CUSTOM.TEST_IMAGES
    key, images_key = "DATASETS.CUSTOM.TEST_ANNOTATIONS", "DATASETS.CUSTOM.TEST_IMAGES"
    other = str(tmp_path / "other.json")
    assert folder == config_from_checkpoint(weights, [key, other]).DATASETS.CUSTOM.TEST_IMAGES
    assert f"images of {other} are looked for in {folder}, as before: if they are" in caplog.messages[-1]
    # The folder is named, or there is nothing to combine it with
    caplog.clear()
    cfg = config_from_checkpoint(weights, [key, other, images_key, str(tmp_path)])
    assert str(tmp_path) == cfg.DATASETS.CUSTOM.TEST_IMAGES
    assert config_from_checkpoint(weights, [key, ""]).DATASETS.CUSTOM.TEST_IMAGES == ""
    checkpoint = torch.load(weights, weights_only=True)
    recorded = checkpoint["metadata"]["detection_config"]
    checkpoint["metadata"]["detection_config"] = recorded.replace(folder, str(tmp_path / "gone"))
    torch.save(checkpoint, tmp_path / "moved.pth")
    cfg = config_from_checkpoint(tmp_path / "moved.pth", [key, other])
    assert cfg.DATASETS.CUSTOM.TEST_IMAGES == "" and not caplog.messages


def test_the_eval_command_takes_other_annotations(run, scenes, tmp_path, capsys):
    (tmp_path / "train").symlink_to(scenes / "train")
    annotations = write_with_categories(scenes / "train.json", tmp_path / "train.json", NAMES[::-1], IDS)
    evaluate.main(
        [str(run / "model_final.pth"), "--data", str(annotations), "OUTPUT_DIR", str(tmp_path / "out")]
    )
    results = json.loads((tmp_path / "out/inference/custom_test/results.json").read_text())
    assert {"AP", "AP-zero"} <= results["bbox"].keys() and "custom_test" in capsys.readouterr().out
    detections = json.loads(
        (tmp_path / "out/inference/custom_test/coco_instances_results.json").read_text()
    )
    images = {image["id"] for image in json.loads(annotations.read_text())["images"]}
    assert {detection["image_id"] for detection in detections} <= images


def test_a_copied_checkpoint_does_not_write_into_another_run(run, tmp_path):
    assert str(run / "model_best") == config_from_checkpoint(run / "model_best.pth").OUTPUT_DIR
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    for name in ("run/model_final.pth", "copy.pth"):
        shutil.copy(run / "model_final.pth", tmp_path / name)
    assert str(tmp_path / "run") == config_from_checkpoint(tmp_path / "run/model_final.pth").OUTPUT_DIR
    assert str(tmp_path / "copy") == config_from_checkpoint(tmp_path / "copy.pth").OUTPUT_DIR


def test_a_detector_does_not_classify(run, tool):
    ran = tool("classify", run, "a.png")
    assert ran.code == 2
    assert f"{run / 'model_final.pth'}: is a detector, not a classifier: use `fbnetv3 detect`" in ran.err


def test_an_exported_folder_has_the_names_and_ids_of_the_checkpoint(run, tool, tmp_path):
    folder = tmp_path / "exported"
    ran = tool(
        *("export_net", "--model", run / "model_final.pth", "--format", "onnx", "--output", folder),
        *ALL_BOXES,
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{folder}/model.onnx: my_digits")
    predictor = ExportedPredictor(folder)
    assert predictor.classes() == dict(zip(IDS, NAMES, strict=True))
    others = [{"id": 1, "name": "nine"}, {"id": 2, "name": "two"}]
    assert list(predictor.classes(others))[9] == 1 and list(predictor.classes(others))[2] == 2


def test_an_export_is_not_named_after_the_config_file_of_a_run(run, tool, tmp_path):
    (tmp_path / "config.yaml").write_text(config_from_checkpoint(run / "model_final.pth").dump())
    ran = tool(
        *("export_net", "--config", tmp_path / "config.yaml", "--weights", run / "model_final.pth"),
        *("--format", "onnx", "--output", tmp_path / "exported"),
        *ALL_BOXES,
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"{tmp_path}/exported/model.onnx: my_digits")
