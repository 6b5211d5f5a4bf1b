"""tools/train_net.py for classifiers: errors are one line, and nothing is written."""

import shutil

import pytest
import torch
from torchvision.models import resnet18


def check(ran, code, message, config):
    """Require a one-line error with this text, the exit code, and no output folder."""
    assert ran.code == code
    assert message in ran.err
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert "Traceback" not in ran.err + ran.out
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_folder(tool, config, folder, missing):
    shutil.rmtree(folder / missing)
    check(
        tool("train_net", "--config", config),
        1,
        f"{folder / missing}: no such folder; DATA.ROOT must be the folder",
        config,
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.LRR", "1"], "unknown key SOLVER.LRR: did you mean SOLVER.LR"),
        (["NOTHING", "1"], "unknown key NOTHING: available: "),
        (["SOLVER.EPOCHS", "many"], "SOLVER.EPOCHS 'many' must be an integer"),
        (["SOLVER.EPOCHS", "1.5"], "SOLVER.EPOCHS 1.5 must be an integer"),
        (["SOLVER.EPOCHS"], "SOLVER.EPOCHS has no value: pass overrides as KEY VALUE pairs"),
        (["SOLVER.EPOCHS", "-1"], "SOLVER.EPOCHS -1 must be at least 0"),
        (["SOLVER.BATCH_SIZE", "1"], "SOLVER.BATCH_SIZE 1 must be at least 2"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
        (["SEED", "99999999999999999999999"], "SEED 99999999999999999999999 must be in [0, "),
        (["MODEL.ARCH_DIRS", "[5]"], "MODEL.ARCH_DIRS [5] must be a list of text"),
        (["INPUT.STD", "[True, 1, 1]"], "INPUT.STD [True, 1, 1] must be a list of finite numbers"),
        (["INPUT.RESOLUTION", "4", "MODEL.ARCH", "fbnetv3_b"], "an input of 4x4 pixels is too small"),
        (
            ["INPUT.CROP", "padded", "INPUT.CROP_PADDING", "99"],
            "INPUT.CROP_PADDING 99 is larger than the 32-pixel input",
        ),
        (["SOLVER.ACCUMULATE", "5"], "SOLVER.ACCUMULATE 5 is too large for SOLVER.BATCH_SIZE 8"),
        (
            ["SOLVER.PRECISION", "float8"],
            "SOLVER.PRECISION 'float8' must be one of auto, float32, bfloat16, float16",
        ),
        (
            ["INPUT.AUTO_AUGMENT", "yes"],
            "unknown augmentation (INPUT.AUTO_AUGMENT) 'yes': available: autoaugment, none, ",
        ),
        (["INPUT.RANDOM_ERASING", "1.5"], "INPUT.RANDOM_ERASING 1.5 must be in [0, 1]"),
        (["DISTILL.ARCH", "fbnetv3_g"], "DISTILL.ARCH and DISTILL.WEIGHTS must be set together"),
        (
            ["DISTILL.ARCH", "fbnetv3_q", "DISTILL.WEIGHTS", "x.pth"],
            "unknown architecture 'fbnetv3_q': did you mean",
        ),
        (
            ["MODEL.ARCH", "torchvision/resnet5"],
            "unknown network 'torchvision/resnet5': did you mean torchvision/resnet50",
        ),
        (["RECIPE", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (
            ["MODEL.ARCH", "torchvision/alexnet", "INPUT.RESOLUTION", "16"],
            "torchvision/alexnet does not accept 16 pixels",
        ),
        (["MODEL.ARCH", "torchvision/googlenet"], "torchvision/googlenet returns auxiliary outputs"),
        (["SOLVER.LR", "-1"], "SOLVER.LR -1.0 must be at least 0"),
        (["SOLVER.LR", "nan"], "SOLVER.LR nan must be at least 0"),
        (["SOLVER.NESTEROV", "1"], "SOLVER.NESTEROV 1 must be True or False"),
        (["INPUT.MEAN", "0.5"], "INPUT.MEAN 0.5 must be a list"),
        (["SOLVER", "1"], "SOLVER 1 must be a section, with keys such as SOLVER.OPTIMIZER"),
        (["SOLVER.SCHEDULE", "step"], "SOLVER.SCHEDULE: unknown schedule 'step': available: cosine, exp"),
        (["SOLVER.OPTIMIZER", "sgdd"], "unknown optimizer 'sgdd': did you mean sgd?"),
        (["SOLVER.WARMUP_EPOCHS", "3.0"], "SOLVER.WARMUP_EPOCHS 3.0 is longer than SOLVER.EPOCHS 1"),
        (["INPUT.MEAN", "[0.5]"], "INPUT.MEAN [0.5] has 1 values, but MODEL.IN_CHANS is 3"),
        (["INPUT.STD", "[1, 1, 1e999]"], "INPUT.STD [1, 1, inf] must be a list of finite numbers"),
        (["INPUT.MEAN", "[1, 1, 1e999]"], "INPUT.MEAN [1, 1, inf] must be a list of finite numbers"),
        (["INPUT.STD", "[1, 1, 0]"], "INPUT.STD [1, 1, 0] must have only positive values"),
        (["INPUT.CROP_SCALE", "[0.5]"], "INPUT.CROP_SCALE [0.5] must be [smallest, largest]"),
        (["INPUT.RESIZE", "16"], "INPUT.RESIZE 16 must be at least the crop size of 32 pixels"),
        (
            ["MODEL.IN_CHANS", "-1"],
            "MODEL.IN_CHANS -1 must be in [0, 1,024]",
        ),
        (
            ["MODEL.ARCH", "fbnetv3_digit"],
            "unknown architecture 'fbnetv3_digit': did you mean fbnetv3_digits",
        ),
        (["MODEL.ARCH", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["MODEL.ARCH_DIRS", "['nowhere']"], "nowhere: no such folder"),
        (["MODEL.NUM_CLASSES", "7"], "MODEL.NUM_CLASSES 7: imagefolder has 2 classes; set it to 0"),
        (["MODEL.DROP_RATE", "1.0"], "MODEL.DROP_RATE 1.0 must be in [0, 1)"),
        (["MODEL.WEIGHTS", "zoo://nothing"], "no weights for 'nothing' in the model zoo"),
        (["DATA.NAME", "cifar"], "unknown dataset 'cifar': did you mean cifar10?"),
        (["DATA.ROOT", ""], "DATA.ROOT is not set"),
        (["DEVICE", "tpu9"], "DEVICE 'tpu9' cannot be used here"),
        (["DEVICE", "cuda:77"], "DEVICE 'cuda:77' cannot be used here"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_calls(tool, config, overrides, message):
    check(tool("train_net", "--config", config, *overrides), 2, message, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SOLVER: {LRR: 1}", "unknown key SOLVER.LRR: did you mean SOLVER.LR"),
        ("SOLVER: {EPOCHS: many}", "config.yaml: SOLVER.EPOCHS 'many' must be an integer"),
        ("SOLVER: 3", "config.yaml: SOLVER 3 must be a section, with keys such as SOLVER."),
        ("_BASE_: nowhere.yaml", "_BASE_"),
        ("_BASE_: config.yaml", "_BASE_: circular inheritance"),
        ("_BASE_: 5", "config.yaml: _BASE_: 5 must be a path"),
        ("SOLVER: {EPOCHS: 1", "not YAML"),
        ("- 1", "config.yaml: must be a mapping"),
        ("", "config.yaml: must be a mapping"),
        ("SEED: 1", "DATA.ROOT is not set"),
        ("SOLVER: {LR: .nan}", "SOLVER.LR nan must be at least 0"),
        ("SOLVER: !!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_wrong_config_files(tool, config, text, message):
    config.write_text(text)
    check(tool("train_net", "--config", config), 2, message, config)


def test_a_missing_config_file(tool, config):
    check(
        tool("train_net", "--config", "nowhere.yaml"),
        2,
        "nowhere.yaml: cannot be read: No such file",
        config,
    )
    check(tool("train_net"), 2, "training needs --config FILE", config)


def test_an_empty_class_folder(tool, config, folder):
    (folder / "train" / "void").mkdir()
    check(tool("train_net", "--config", config), 1, "train: no image in the class folder void", config)


def test_different_classes_in_validation(tool, config, folder):
    (folder / "val" / "dark").rename(folder / "val" / "dusk")
    check(
        tool("train_net", "--config", config),
        2,
        "the validation split has 2 classes (dusk, light); the training split has 2 classes (dark, light)",
        config,
    )


def test_too_few_images(tool, config):
    message = "SOLVER.BATCH_SIZE 64 must be at most 24, the number of training images"
    check(tool("train_net", "--config", config, "SOLVER.BATCH_SIZE", "64"), 1, message, config)


def test_a_corrupt_image(tool, config, folder):
    (folder / "train" / "dark" / "3.jpg").write_bytes(b"corrupt")
    ran = tool("train_net", "--config", config)
    assert ran.code == 1
    assert "dark/3.jpg: corrupt image" in ran.err and "DATA.MAX_CORRUPT" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"nonsense", b"<html>"])
def test_corrupt_weights(tool, config, tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    check(
        tool("train_net", "--config", config, "MODEL.WEIGHTS", tmp_path / "x.pth"), 1, "x.pth: is ", config
    )


def test_missing_and_foreign_weights(tool, config, tmp_path):
    weights = tmp_path / "x.pth"
    check(tool("train_net", "--config", config, "MODEL.WEIGHTS", weights), 1, "x.pth: no such file", config)
    torch.save(resnet18().state_dict(), weights)
    check(
        tool("train_net", "--config", config, "MODEL.WEIGHTS", weights),
        1,
        "the keys match no known naming",
        config,
    )


def test_evaluation_with_another_class_count(tool, config):
    weights = ["MODEL.WEIGHTS", "zoo://digits/fbnetv3_digits", "MODEL.IN_CHANS", "1"]
    ran = tool(
        "train_net",
        "--config",
        config,
        "--eval-only",
        *weights,
        "INPUT.MEAN",
        "[0.5]",
        "INPUT.STD",
        "[0.5]",
    )
    check(ran, 2, "the network lacks dark, light: the validation split has 2 classes", config)


def test_evaluation_is_not_resumed(tool, config):
    check(tool("train_net", "--config", config, "--eval-only", "--resume"), 2, "omit --resume", config)


def test_evaluation_without_weights(tool, config):
    check(
        tool("train_net", "--config", config, "--eval-only"),
        2,
        "no weights to evaluate: set MODEL.WEIGHTS",
        config,
    )


def test_an_output_folder_with_a_run(tool, config):
    assert tool("train_net", "--config", config).code == 0
    ran = tool("train_net", "--config", config)
    assert ran.code == 2
    assert "already contains a run; resume it (--resume)" in ran.err


def test_an_unwritable_output_folder(tool, config, tmp_path):
    (tmp_path / "file").write_text("")
    ran = tool("train_net", "--config", config, "OUTPUT_DIR", tmp_path / "file" / "run")
    check(ran, 1, "cannot be written: Not a directory; set OUTPUT_DIR to a different folder", config)


def test_a_corrupt_checkpoint_on_resume(tool, config):
    checkpoints = config.parent / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step_00000001.pth").write_bytes(b"nonsense")
    ran = tool("train_net", "--config", config, "--resume")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "step_00000001.pth: is corrupt" in ran.err
