"""tools/train_net.py for classifiers: complete runs, resuming, and errors."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from fbnetv3.arch import configs_folder, list_archs
from fbnetv3.training.run_state.metrics import read_metrics
from tests.tools.conftest import TOOLS

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = ["SOLVER.EPOCHS", "2", "SOLVER.WARMUP_EPOCHS", "0.5", "SOLVER.BATCH_SIZE", "128"]


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a dataset of two easy classes, in ImageNet's layout."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, base in (("dark", 0), ("light", 150)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(base, base + 100, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.jpg")
    return tmp_path / "data"


@pytest.fixture
def config(tmp_path, folder):
    """Return a config file for that dataset."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"MODEL: {{ARCH: fbnetv3_digits}}\n"
        f"DATA: {{NAME: imagefolder, ROOT: {folder}, WORKERS: 0}}\n"
        f"SOLVER: {{EPOCHS: 1, WARMUP_EPOCHS: 0.0, BATCH_SIZE: 8, LR: 0.01}}\n"
        f"OUTPUT_DIR: {tmp_path / 'run'}\n"
    )
    return path


def test_a_complete_run(tool, tmp_path):
    out = tmp_path / "run"
    ran = tool("train_net", "--config", DIGITS, "OUTPUT_DIR", out, *SHORT)
    assert (ran.code, ran.err) == (0, "")
    assert "epoch 2/2" in ran.out and "left" in ran.out
    for file in ("model_final.pth", "model_best.pth", "metrics.jsonl", "curve.png", "log.txt", "tensorboard"):
        assert f"{out / file}" in ran.out and (out / file).exists()
    assert f"{out / 'checkpoints'}" in ran.out
    metrics = read_metrics(out / "metrics.jsonl")
    assert [m["epoch"] for m in metrics if "val_top1" in m] == [1, 2]
    assert any({"loss", "lr", "step"} <= m.keys() for m in metrics)
    assert sorted(os.listdir(out / "checkpoints")) == ["step_00000011.pth", "step_00000022.pth"]
    assert "epoch 2/2" in (out / "log.txt").read_text()
    saved = torch.load(out / "model_final.pth", weights_only=True)
    assert (saved["arch"], saved["num_classes"], saved["in_chans"]) == ("fbnetv3_digits", 10, 1)

    again = tool("train_net", "--config", out / "config.yaml", "--eval-only")
    last = metrics[-1]
    assert again.out.splitlines()[-1].startswith(f"top1 {last['val_top1']:.2f}%")
    weights = tool("train_net", "--config", DIGITS, "--eval-only", "MODEL.WEIGHTS", out / "model_final.pth")
    assert weights.out.splitlines()[-1] == again.out.splitlines()[-1]


def test_a_resumed_run_equals_an_uninterrupted_one(tool, config, tmp_path):
    three = ["SOLVER.EPOCHS", "3", "MODEL.DROP_RATE", "0.2", "MODEL.DROP_PATH_RATE", "0.1"]
    tool("train_net", "--config", config, *three, "OUTPUT_DIR", tmp_path / "uninterrupted")
    tool("train_net", "--config", config, *three, "OUTPUT_DIR", tmp_path / "cut")
    for later in ("checkpoints/step_00000006.pth", "checkpoints/step_00000009.pth", "model_final.pth"):
        (tmp_path / "cut" / later).unlink()
    ran = tool("train_net", "--config", config, *three, "OUTPUT_DIR", tmp_path / "cut", "--resume")
    assert "resuming after 1 epochs" in ran.out
    whole, cut = (torch.load(tmp_path / run / "model_final.pth")["model"] for run in ("uninterrupted", "cut"))
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())
    assert read_metrics(tmp_path / "uninterrupted" / "metrics.jsonl") == read_metrics(
        tmp_path / "cut" / "metrics.jsonl"
    )


def test_resume_without_a_checkpoint_starts_a_run(tool, config):
    assert tool("train_net", "--config", config, "--resume").code == 0


def test_numbers_that_yaml_reads_as_other_types(tool, config):
    """YAML reads 1e-3 as text and 1 as an integer."""
    config.write_text(config.read_text().replace("LR: 0.01", "LR: 1e-3, WEIGHT_DECAY: 1"))
    assert tool("train_net", "--config", config).code == 0


def test_config_file_is_an_alias_of_config(tool, config):
    assert tool("train_net", "--config-file", config).code == 0


def test_evaluation_writes_nothing(tool, tmp_path):
    ran = tool("train_net", "--config", DIGITS, "--eval-only", "OUTPUT_DIR", tmp_path / "run", "MODEL.WEIGHTS",
               "zoo://digits/fbnetv3_digits")  # fmt: skip
    assert ran.out.splitlines()[-1].startswith("top1 99.72%")
    assert not (tmp_path / "run").exists()


def test_corrupt_images_within_the_limit(tool, config, folder):
    for name in ("train/dark/3.jpg", "val/light/1.jpg"):
        (folder / name).write_bytes(b"corrupt")
    ran = tool("train_net", "--config", config, "DATA.MAX_CORRUPT", "2")
    assert ran.code == 0
    assert "on 7 images" in ran.out


def test_all_parts_of_a_recipe_together(tool, config, tmp_path):
    """RMSProp, EMA, mixup, augmentation, erasing, accumulation, bfloat16, stochastic depth."""
    (tmp_path / "recipe.yaml").write_text(
        "optimizer: rmsprop\nlr: 0.001\nmixup: 0.2\ndrop_rate: 0.1\ndrop_path_rate: 0.1\n"
    )
    options = ["RECIPE", tmp_path / "recipe.yaml", "INPUT.AUTO_AUGMENT", "randaugment", "INPUT.RANDOM_ERASING", "0.5"]
    options += ["SOLVER.ACCUMULATE", "2", "SOLVER.PRECISION", "bfloat16", "SOLVER.LR_BATCH_SIZE", "16"]
    options += ["SOLVER.DECAY_NORM_BIAS", "False", "EMA.DECAY", "0.9", "SOLVER.EPOCHS", "2"]
    ran = tool("train_net", "--config", config, *options)
    assert (ran.code, ran.err) == (0, "")
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"val_top1", "val_ema_top1", "val_loss", "val_ema_loss"} <= metrics[-1].keys()
    assert max(m["lr"] for m in metrics if "lr" in m) == pytest.approx(0.001 * 8 / 16, rel=0.02)
    assert "EMA top1" in ran.out
    saved = torch.load(tmp_path / "run" / "model_final.pth")
    assert not torch.equal(saved["model"]["head.weight"], saved["model_ema"]["head.weight"])
    averaged = tool("train_net", "--config", config, *options, "--eval-only").out.splitlines()[-1]
    assert averaged.startswith(f"top1 {metrics[-1]['val_ema_top1']:.2f}%")


def test_distillation_from_the_zoo(tool, tmp_path):
    """The student has a different resolution from its teacher."""
    teacher = ["DISTILL.ARCH", "fbnetv3_digits", "DISTILL.WEIGHTS", "zoo://digits/fbnetv3_digits"]
    ran = tool(
        "train_net", "--config", DIGITS, *SHORT, *teacher, "INPUT.RESOLUTION", "24", "OUTPUT_DIR", tmp_path / "run"
    )
    assert (ran.code, ran.err) == (0, "")
    assert "input 24 px" in ran.out and "distilled from fbnetv3_digits" in ran.out


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_torchvision_networks(tool, config, tmp_path, name):
    options = ["MODEL.ARCH", f"torchvision/{name}", "INPUT.RESOLUTION", "64", "MODEL.DROP_RATE", "0.2"]
    assert tool("train_net", "--config", config, *options).code == 0
    again = tool("train_net", "--config", config, *options, "--eval-only")
    assert again.code == 0 and again.out.splitlines()[-1].startswith("top1 ")


def test_a_users_architecture(tool, config, tmp_path):
    (tmp_path / "archs").mkdir()
    (tmp_path / "archs" / "mine.yaml").write_text(
        "name: mine\nresolution: 32\nstages:\n- rows:\n  - {block: conv, kernel: 3, channels: 8, stride: 2}\n"
        "  - {block: mbpool, expansion: 2, channels: 16}\n"
    )
    ran = tool("train_net", "--config", config, "MODEL.ARCH_DIRS", f"['{tmp_path / 'archs'}']", "MODEL.ARCH", "mine")
    assert ran.code == 0 and "mine (0.00 M parameters" in ran.out
    assert "mine" not in list_archs()
    (tmp_path / "archs" / "mine.yaml").write_text((tmp_path / "archs" / "mine.yaml").read_text().replace("16", "24"))
    again = ["MODEL.ARCH_DIRS", f"['{tmp_path / 'archs'}']", "OUTPUT_DIR", tmp_path / "again"]
    assert tool("train_net", "--config", config, *again, "MODEL.ARCH", "mine").code == 0
    ran = tool("train_net", "--config", config, *again[:2], "OUTPUT_DIR", tmp_path / "x", "MODEL.ARCH", "mone")
    assert ran.code == 2 and "unknown architecture 'mone': did you mean mine?" in ran.err


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_missing_folder(tool, config, folder, missing):
    import shutil

    shutil.rmtree(folder / missing)
    check(tool("train_net", "--config", config), 1, f"{folder / missing}: no such folder; set DATA.ROOT", config)


def check(ran, code, message, config):
    """Require a one-line error with this text, the exit code, and no output folder."""
    assert ran.code == code
    assert message in ran.err
    assert ran.err.startswith("error: ") and ran.err.count("\n") == 1
    assert "Traceback" not in ran.err + ran.out
    assert not (config.parent / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.LRR", "1"], "unknown key SOLVER.LRR: did you mean SOLVER.LR"),
        (["NOTHING", "1"], "unknown key NOTHING: available: "),
        (["SOLVER.EPOCHS", "many"], "SOLVER.EPOCHS 'many' must be an integer"),
        (["SOLVER.EPOCHS", "1.5"], "SOLVER.EPOCHS 1.5 must be an integer"),
        (["SOLVER.EPOCHS"], "SOLVER.EPOCHS has no value: pass overrides as KEY VALUE pairs"),
        (["SOLVER.EPOCHS", "0"], "SOLVER.EPOCHS 0 must be at least 1"),
        (["SOLVER.BATCH_SIZE", "1"], "SOLVER.BATCH_SIZE 1 must be at least 2"),
        (["OUTPUT_DIR", ""], "OUTPUT_DIR is empty"),
        (["SEED", "99999999999999999999999"], "SEED 99999999999999999999999 must be in [0, "),
        (["MODEL.ARCH_DIRS", "[5]"], "MODEL.ARCH_DIRS [5] must be a list of text"),
        (["INPUT.STD", "[True, 1, 1]"], "INPUT.STD [True, 1, 1] must be a list of numbers"),
        (["INPUT.RESOLUTION", "4", "MODEL.ARCH", "fbnetv3_b"], "an input of 4x4 pixels is too small"),
        (
            ["INPUT.CROP", "padded", "INPUT.CROP_PADDING", "99"],
            "INPUT.CROP_PADDING 99 is larger than the 32-pixel input",
        ),
        (["SOLVER.ACCUMULATE", "5"], "SOLVER.ACCUMULATE 5 is too large for SOLVER.BATCH_SIZE 8"),
        (["SOLVER.PRECISION", "float8"], "SOLVER.PRECISION 'float8' must be one of float32, bfloat16, float16"),
        (
            ["INPUT.AUTO_AUGMENT", "yes"],
            "unknown augmentation (INPUT.AUTO_AUGMENT) 'yes': available: autoaugment, none, ",
        ),
        (["INPUT.RANDOM_ERASING", "1.5"], "INPUT.RANDOM_ERASING 1.5 must be in [0, 1]"),
        (["DISTILL.ARCH", "fbnetv3_g"], "DISTILL.ARCH and DISTILL.WEIGHTS must be set together"),
        (["DISTILL.ARCH", "fbnetv3_q", "DISTILL.WEIGHTS", "x.pth"], "unknown architecture 'fbnetv3_q': did you mean"),
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
        (["SOLVER", "1"], "unknown key SOLVER: did you mean SOLVER"),
        (["SOLVER.SCHEDULE", "step"], "SOLVER.SCHEDULE: unknown schedule 'step': available: cosine, exp"),
        (["SOLVER.OPTIMIZER", "sgdd"], "unknown optimizer 'sgdd': did you mean sgd?"),
        (["SOLVER.WARMUP_EPOCHS", "3.0"], "SOLVER.WARMUP_EPOCHS 3.0 is longer than SOLVER.EPOCHS 1"),
        (["INPUT.MEAN", "[0.5]"], "INPUT.MEAN [0.5] has 1 values, but MODEL.IN_CHANS is 3"),
        (["INPUT.STD", "[1, 1, 0]"], "INPUT.STD [1, 1, 0] must have only positive values"),
        (["INPUT.CROP_SCALE", "[0.5]"], "INPUT.CROP_SCALE [0.5] must be [smallest, largest]"),
        (["INPUT.RESIZE", "16"], "INPUT.RESIZE 16 must be at least the crop size of 32 pixels"),
        (["MODEL.IN_CHANS", "2", "INPUT.MEAN", "[0,0]", "INPUT.STD", "[1,1]"], "MODEL.IN_CHANS 2 must be one of 1, 3"),
        (["MODEL.ARCH", "fbnetv3_digit"], "unknown architecture 'fbnetv3_digit': did you mean fbnetv3_digits"),
        (["MODEL.ARCH", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["MODEL.ARCH_DIRS", "['nowhere']"], "nowhere: no such folder, or no architecture files"),
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
        ("SOLVER: 3", "config.yaml: SOLVER 3 must be a section with the keys OPTIMIZER"),
        ("_BASE_: nowhere.yaml", "_BASE_"),
        ("_BASE_: config.yaml", "_BASE_: circular inheritance"),
        ("_BASE_: 5", "_BASE_: 5 must be a file name"),
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
    check(tool("train_net", "--config", "nowhere.yaml"), 2, "nowhere.yaml: cannot be read: No such file", config)
    check(tool("train_net"), 2, "the following arguments are required: --config", config)


def test_an_empty_class_folder(tool, config, folder):
    (folder / "train" / "void").mkdir()
    check(tool("train_net", "--config", config), 1, "train: no image in the class folder void", config)


def test_different_classes_in_validation(tool, config, folder):
    (folder / "val" / "dark").rename(folder / "val" / "dusk")
    check(
        tool("train_net", "--config", config), 2, "training and validation have different classes: dark, dusk", config
    )


def test_too_few_images(tool, config):
    message = "24 training images are fewer than one batch of 64 (SOLVER.BATCH_SIZE)"
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
    check(tool("train_net", "--config", config, "MODEL.WEIGHTS", tmp_path / "x.pth"), 1, "x.pth: is ", config)


def test_missing_and_foreign_weights(tool, config, tmp_path):
    from torchvision.models import resnet18

    weights = tmp_path / "x.pth"
    check(tool("train_net", "--config", config, "MODEL.WEIGHTS", weights), 1, "x.pth: no such file", config)
    torch.save(resnet18().state_dict(), weights)
    check(tool("train_net", "--config", config, "MODEL.WEIGHTS", weights), 1, "unknown layout of weights", config)


def test_evaluation_with_another_class_count(tool, config):
    weights = ["MODEL.WEIGHTS", "zoo://digits/fbnetv3_digits", "MODEL.IN_CHANS", "1"]
    ran = tool("train_net", "--config", config, "--eval-only", *weights, "INPUT.MEAN", "[0.5]", "INPUT.STD", "[0.5]")
    check(ran, 2, "does not have the 2 classes of imagefolder", config)


def test_evaluation_without_weights(tool, config):
    check(tool("train_net", "--config", config, "--eval-only"), 2, "no weights to evaluate: set MODEL.WEIGHTS", config)


def test_an_output_folder_with_a_run(tool, config):
    assert tool("train_net", "--config", config).code == 0
    ran = tool("train_net", "--config", config)
    assert ran.code == 2
    assert "already holds a run; add --resume" in ran.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.ARCH", "fbnetv3_a0_cifar"], "arch has changed: was fbnetv3_digits, is now fbnetv3_a0_cifar"),
        (["SOLVER.BATCH_SIZE", "4"], "steps_per_epoch has changed: was 3, is now 6"),
        (["SOLVER.EPOCHS", "1"], "it already has 2 epochs, more than SOLVER.EPOCHS 1"),
        (["SOLVER.LR", "0.02"], "SOLVER.LR has changed: was 0.01, is now 0.02"),
        (["SOLVER.DECAY_NORM_BIAS", "False"], "SOLVER.DECAY_NORM_BIAS has changed: was True, is now False"),
        (["SOLVER.PRECISION", "float16"], "SOLVER.PRECISION has changed: was float32, is now float16"),
        (["SEED", "5"], "SEED has changed: was 0, is now 5"),
    ],
)
def test_another_run_is_not_resumed(tool, config, overrides, message):
    assert tool("train_net", "--config", config, "SOLVER.EPOCHS", "2").code == 0
    times = modification_times(config.parent / "run")
    ran = tool("train_net", "--config", config, "SOLVER.EPOCHS", "2", "--resume", *overrides)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "cannot resume: " in ran.err
    assert message in ran.err
    assert times == modification_times(config.parent / "run")


def modification_times(folder):
    """Return the modification times of a run's files; the lock file holds the id of the last process."""
    return {path: path.stat().st_mtime for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_a_complete_run_can_be_extended(tool, config, tmp_path):
    tool("train_net", "--config", config)
    short = torch.load(tmp_path / "run" / "model_final.pth")["model"]
    assert tool("train_net", "--config", config, "SOLVER.EPOCHS", "2", "--resume").code == 0
    long = torch.load(tmp_path / "run" / "model_final.pth")["model"]
    assert not torch.equal(short["head.weight"], long["head.weight"])
    assert [m["epoch"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_top1" in m] == [1, 2]


def test_an_unwritable_output_folder(tool, config, tmp_path):
    (tmp_path / "file").write_text("")
    ran = tool("train_net", "--config", config, "OUTPUT_DIR", tmp_path / "file" / "run")
    check(ran, 1, "cannot be written: Not a directory; set OUTPUT_DIR to another, writable folder", config)


def test_a_corrupt_checkpoint_on_resume(tool, config):
    checkpoints = config.parent / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "step_00000001.pth").write_bytes(b"nonsense")
    ran = tool("train_net", "--config", config, "--resume")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "step_00000001.pth: is corrupt" in ran.err


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_run_can_be_resumed_after_a_signal(config, tmp_path, number, code, word):
    command = [sys.executable, str(TOOLS / "train_net.py"), "--config", str(config), "SOLVER.EPOCHS", "500"]
    process = subprocess.Popen(
        [*command, "DATA.WORKERS", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("step_*.pth")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, number)  # to the workers too, as terminals and schedulers do
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines() == [f"{word}; add --resume to continue from the newest checkpoint"]
    state = torch.load(max(checkpoints.glob("step_*.pth")))
    epoch = state["epoch"]
    resumed = [*command[:-1], str(epoch + 1), "--resume"]
    done = subprocess.run(resumed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"after {epoch} epochs and {state['step']} steps" in done.stdout
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == epoch + 1
