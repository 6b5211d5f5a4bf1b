"""Errors of tools/train_net.py for detectors: one line that says what to do."""

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.proposal_generator import RPN

import fbnetv3
from fbnetv3.config import is_detection_config
from fbnetv3.detection import config_file
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.errors import UsageError
from tests.tools.conftest import TOOLS


@pytest.fixture
def fails(tool, digits_config, tmp_path):
    """Run the tool by `fails(KEY, VALUE, ...)`, which returns its error; nothing must be written."""

    def run(*arguments, config=digits_config):
        ran = tool("train_net", "--config", config, "OUTPUT_DIR", tmp_path / "run", *arguments)
        assert ran.code in (1, 2)
        assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
        assert not (tmp_path / "run").exists()
        return ran.err

    return run


def test_another_number_of_classes(fails):
    message = fails("MODEL.ROI_HEADS.NUM_CLASSES", "80")
    assert "custom_train has 10 classes (0, 1, 2 and 7 more), but the network has 80" in message
    assert "set MODEL.ROI_HEADS.NUM_CLASSES 10" in message


def test_too_little_memory(tool, digits_config, tmp_path, monkeypatch):
    """Of the GPU in a step of the training, and in the evaluation after it."""
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
    arguments = ("train_net", "--config", digits_config, "SOLVER.MAX_ITER", "1", "OUTPUT_DIR")
    for key, method in (
        ("SOLVER.IMS_PER_BATCH or INPUT.MIN_SIZE_TRAIN", "losses"),
        ("INPUT.MIN_SIZE_TEST", "inference"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                RPN if method == "losses" else GeneralizedRCNN, method, mock.Mock(side_effect=error)
            )
            ran = tool(*arguments, tmp_path / method)
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert ran.err.startswith("error: out of memory on cpu") and f": lower {key}" in ran.err


def test_retinanet_has_its_own_key_for_the_number_of_classes(digits_config, scenes):
    from fbnetv3.detection.data.detection_datasets import load_dataset_dicts, register_custom_datasets
    from fbnetv3.detection.data.detector_class_matching import model_classes

    cfg = load_detection_config(digits_config).clone()
    cfg.defrost()
    register_custom_datasets(cfg)
    load_dataset_dicts("custom_train")
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(UsageError, match=r"the network has 80: set MODEL.RETINANET.NUM_CLASSES 10"):
        model_classes(cfg, ["custom_train"])


def test_training_and_test_with_different_classes(fails, scenes, tmp_path):
    content = json.loads((scenes / "test.json").read_text())
    content["categories"][3]["name"] = "three"
    (tmp_path / "test.json").write_text(json.dumps(content))
    message = fails("DATASETS.CUSTOM.TEST_ANNOTATIONS", tmp_path / "test.json")
    assert "custom_train lacks three: custom_test has 10 classes (0, 1, 2, three, " in message
    assert "; custom_train has 10 classes (0, 1, 2, 3, " in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            "no such file (custom_train): set DATASETS.CUSTOM.DATA, or its other keys, to where it is now",
        ),
        ('{"images": [', "is not JSON: line 1, column 13"),
        ("[1, 2]", "is a list, as in a results file"),
        ('{"images": []}', 'the list "images" is empty'),
        ('{"images": [{"id": 1}]}', 'images[0] has no "file_name"'),
    ],
)
def test_errors_name_a_missing_or_corrupt_annotation_file(fails, tmp_path, content, message):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    error = fails("DATASETS.CUSTOM.TRAIN_ANNOTATIONS", file)
    assert str(file) in error and message in error


def test_problems_of_annotations_and_images_are_listed(fails, scenes, tmp_path):
    content = json.loads((scenes / "train.json").read_text())
    content["images"][0]["file_name"] = "nowhere.png"
    content["annotations"][0]["category_id"] = 77
    content["annotations"][1]["bbox"] = [5, 5, -3, 4]
    (tmp_path / "mine.json").write_text(json.dumps(content))
    message = fails("DATASETS.CUSTOM.TRAIN_ANNOTATIONS", tmp_path / "mine.json")
    for text in ("nowhere.png", "category 77", "negative width or height"):
        assert text in message


def test_errors_about_coco_say_where_it_is_expected(fails):
    message = fails(
        "DATASETS.CUSTOM.TRAIN_ANNOTATIONS",
        "",
        "DATASETS.CUSTOM.TRAIN_IMAGES",
        "",
        "DATASETS.TRAIN",
        "('coco_2017_train',)",
    )
    assert "instances_train2017.json: no such file (coco_2017_train): set DETECTRON2_DATASETS" in message


def test_classifier_weights_belong_in_another_key(fails, tmp_path):
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "classifier.pth")
    message = fails("MODEL.WEIGHTS", tmp_path / "classifier.pth")
    assert "is a classifier's checkpoint" in message and "MODEL.FBNETV3.WEIGHTS" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["SOLVER.MAX_ITR", "3"], "unknown key SOLVER.MAX_ITR: did you mean SOLVER.MAX_ITER"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER many must be an integer"),
        (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER 0 must be at least 1"),
        (["SOLVER.BASE_LR", "0.0"], "SOLVER.BASE_LR 0.0 must be positive"),
        (["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER 'Adam' is unknown: did you mean AdamW?"),
        (["MODEL_EMA.DECAY", "1.5"], "MODEL_EMA.DECAY 1.5 must be in [0, 1)"),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cpu"], "SOLVER.AMP.ENABLED needs a GPU"),
        (["SOLVER.AMP.DTYPE", "half"], "SOLVER.AMP.DTYPE 'half' is unknown: available: bfloat16, float16"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE 'gpu' must be a device"),
        (
            ["DATASETS.CUSTOM.TEST_ANNOTATIONS", "", "DATASETS.CUSTOM.TEST_IMAGES", "photos"],
            "DATASETS.CUSTOM.TEST_IMAGES is set, but DATASETS.CUSTOM.TEST_ANNOTATIONS is not: set it, too",
        ),
        (
            ["DATASETS.CUSTOM.TRAIN_JSON", "train.json"],
            "DATASETS.CUSTOM.TRAIN_JSON is now DATASETS.CUSTOM.TRAIN_ANNOTATIONS: rename it",
        ),
        (
            ["DATASETS.CUSTOM.FORMAT", "yolov5"],
            "DATASETS.CUSTOM.FORMAT 'yolov5' is unknown: did you mean yolo?",
        ),
        (
            ["DATASETS.CUSTOM.TEST_SPLIT", "all"],
            "DATASETS.CUSTOM.TEST_SPLIT 'all' is unknown: did you mean val?",
        ),
        (["DATASETS.CUSTOM.DATA", "nowhere/data.yaml"], "nowhere/data.yaml: no such file or folder"),
        (["DATALOADER.SAMPLER_TRAIN", "TrainingSample"], "did you mean TrainingSampler"),
        (["MODEL.FBNETV3.ARCH", "fbnetv3_digit"], "did you mean fbnetv3_digits"),
        (["MODEL.MASK_ON", "True"], 'annotations without "segmentation" '),
        (["MODEL.META_ARCHITECTURE", "GeneralRCNN"], "did you mean GeneralizedRCNN"),
        (["MODEL.BACKBONE.NAME", "build_fbnetv3"], "did you mean build_fbnetv3_backbone"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosine"], "did you mean WarmupCosineLR"),
        (["--num-gpus", "0"], "--num-gpus: 0 must be at least 1"),
        (["--eval-only"], "has no weights to evaluate: set MODEL.WEIGHTS"),
    ],
)
def test_wrong_keys_and_values(fails, arguments, message):
    assert message in fails(*arguments)


def test_an_unknown_key_in_a_file(fails, digits_config, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"_BASE_: {digits_config}\nMODEL: {{FBNETV3: {{ARCHITECTURE: fbnetv3_a}}}}\n"
    )
    message = fails(config=tmp_path / "mine.yaml")
    assert "mine.yaml: unknown key MODEL.FBNETV3.ARCHITECTURE: did you mean" in message


def test_yaml_that_would_run_code_is_refused(fails, digits_config, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"_BASE_: {digits_config}\nSEED: !!python/object/apply:os.getpid []\n"
    )
    assert "mine.yaml: line 2: not YAML" in fails(config=tmp_path / "mine.yaml")


def test_an_architecture_file_next_to_the_config(digits_config, tmp_path, monkeypatch):
    arch = {
        "_BASE_": str(Path(config_file("coco128_fbnetv3_a_C4")).parents[1] / "archs" / "fbnetv3_a0.yaml")
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**arch, "name": "mine"}))
    config = tmp_path / "config.yaml"
    config.write_text(f"_BASE_: {digits_config}\nMODEL: {{FBNETV3: {{ARCH: mine.yaml}}}}\n")
    assert str(tmp_path / "mine.yaml") == load_detection_config(config).MODEL.FBNETV3.ARCH


def test_detection_configs_are_recognized(tmp_path):
    coco = Path(config_file("coco128_fbnetv3_a_C4")).parent
    for file in coco.glob("*.yaml"):
        assert is_detection_config(file), file
    for file in [*coco.parent.glob("digits/*.yaml"), *coco.parent.glob("imagenet/*.yaml")]:
        assert not is_detection_config(file), file
    (tmp_path / "both.yaml").write_text("DATA: {NAME: digits}\nDATASETS: {TRAIN: [coco_2017_train]}\n")
    with pytest.raises(UsageError, match="keys of a detector .DATASETS. and of a classifier .DATA."):
        is_detection_config(tmp_path / "both.yaml")
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {coco / 'base_coco.yaml'}\n")
    assert is_detection_config(tmp_path / "mine.yaml")


def test_without_detectron2_the_error_says_what_to_run(digits_config):
    script = (
        "import runpy, sys; sys.modules['detectron2'] = None; "
        f"sys.argv = ['train_net.py', '--config', {str(digits_config)!r}]; "
        f"runpy.run_path({str(TOOLS / 'train_net.py')!r}, run_name='__main__')"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "error: fbnetv3.detection needs detectron2" in ran.stderr
    assert "tools/install_detectron2.py" in ran.stderr
