"""tools/train_net.py for classifiers: complete runs, evaluation, and resuming."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from fbnetv3.arch import configs_folder, list_archs
from fbnetv3.training.run_state.metrics import read_metrics
from tests.tools.conftest import TOOLS

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = ["SOLVER.EPOCHS", "2", "SOLVER.WARMUP_EPOCHS", "0.5", "SOLVER.BATCH_SIZE", "128"]


def test_a_complete_run(tool, tmp_path):
    out = tmp_path / "run"
    ran = tool("train_net", "--config", DIGITS, "OUTPUT_DIR", out, *SHORT)
    assert (ran.code, ran.err) == (0, "")
    assert "epoch 2/2" in ran.out and "left" in ran.out
    for file in (
        "model_final.pth",
        "model_best.pth",
        "metrics.jsonl",
        "curve.png",
        "log.txt",
        "tensorboard",
    ):
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
    assert "(1 epoch)" in ran.out
    whole, cut = (
        torch.load(tmp_path / run / "model_final.pth")["model"] for run in ("uninterrupted", "cut")
    )
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


def test_a_report_is_written_on_a_run_and_on_weights_of_the_run(tool, config, tmp_path):
    report = tmp_path / "run" / "evaluation"
    ran = tool("train_net", "--config", config)
    assert f"report:      {report}" in ran.out
    assert (tmp_path / "run" / "augmented_images.png").exists()
    files = sorted(os.listdir(report))
    assert {"classes.csv", "confusion.png", "mistakes.png", "calibration.png"} < {*files}
    # Again from its weights
    shutil.rmtree(report)
    ran = tool("train_net", "--config", config, "--eval-only")
    assert f"report:      {report}" in ran.out and "dark" in ran.out
    assert sorted(os.listdir(report)) == files
    summary = json.loads((report / "summary.json").read_text())
    assert summary["weights"] == str(tmp_path / "run" / "model_final.pth")
    assert f"top1 {100 * summary['accuracy']:.2f}%" in ran.out


def test_a_report_on_other_weights_needs_a_folder(tool, config, tmp_path):
    tool("train_net", "--config", config, "EVAL.REPORT", "off")
    assert not {"evaluation", "augmented_images.png"} & {*os.listdir(tmp_path / "run")}
    weights = (tmp_path / "run" / "model_final.pth").rename(tmp_path / "weights.pth")
    evaluate = ("train_net", "--config", config, "--eval-only", "MODEL.WEIGHTS", weights)
    assert "no report" in tool(*evaluate).out
    assert not (tmp_path / "run" / "evaluation").exists()
    assert f"report:      {tmp_path / 'mine'}" in tool(*evaluate, "EVAL.REPORT", tmp_path / "mine").out
    assert (tmp_path / "mine" / "classes.csv").exists()


def test_the_picture_of_augmented_images_does_not_change_a_run(tool, config, tmp_path):
    for run, report in (("with", "auto"), ("without", "off")):
        overrides = ["INPUT.MIXUP", "0.2", "EVAL.REPORT", report, "OUTPUT_DIR", tmp_path / run]
        tool("train_net", "--config", config, *overrides)
    weights = [torch.load(tmp_path / run / "model_final.pth")["model"] for run in ("with", "without")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


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
    options = [
        "RECIPE",
        tmp_path / "recipe.yaml",
        "INPUT.AUTO_AUGMENT",
        "randaugment",
        "INPUT.RANDOM_ERASING",
        "0.5",
    ]
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
        "train_net",
        "--config",
        DIGITS,
        *SHORT,
        *teacher,
        "INPUT.RESOLUTION",
        "24",
        "OUTPUT_DIR",
        tmp_path / "run",
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
    ran = tool(
        "train_net",
        "--config",
        config,
        "MODEL.ARCH_DIRS",
        f"['{tmp_path / 'archs'}']",
        "MODEL.ARCH",
        "mine",
    )
    assert ran.code == 0 and "mine (0.00 M parameters" in ran.out
    assert "mine" not in list_archs()
    (tmp_path / "archs" / "mine.yaml").write_text(
        (tmp_path / "archs" / "mine.yaml").read_text().replace("16", "24")
    )
    again = ["MODEL.ARCH_DIRS", f"['{tmp_path / 'archs'}']", "OUTPUT_DIR", tmp_path / "again"]
    assert tool("train_net", "--config", config, *again, "MODEL.ARCH", "mine").code == 0
    ran = tool(
        "train_net", "--config", config, *again[:2], "OUTPUT_DIR", tmp_path / "x", "MODEL.ARCH", "mone"
    )
    assert ran.code == 2 and "unknown architecture 'mone': did you mean mine?" in ran.err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["MODEL.ARCH", "fbnetv3_a0_cifar"],
            "arch has changed: was fbnetv3_digits, is now fbnetv3_a0_cifar",
        ),
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
    return {
        path: path.stat().st_mtime for path in folder.rglob("*") if path.is_file() and path.name != "lock"
    }


def test_a_complete_run_can_be_extended(tool, config, tmp_path):
    tool("train_net", "--config", config)
    short = torch.load(tmp_path / "run" / "model_final.pth")["model"]
    assert tool("train_net", "--config", config, "SOLVER.EPOCHS", "2", "--resume").code == 0
    long = torch.load(tmp_path / "run" / "model_final.pth")["model"]
    assert not torch.equal(short["head.weight"], long["head.weight"])
    assert [m["epoch"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_top1" in m] == [
        1,
        2,
    ]


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
    line = f"{word}; add --resume to continue from the newest checkpoint, if there is one"
    assert (process.returncode, err.splitlines()) == (code, [line])
    state = torch.load(max(checkpoints.glob("step_*.pth")))
    epoch = state["epoch"]
    resumed = [*command[:-1], str(epoch + 1), "--resume"]
    done = subprocess.run(resumed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"after {state['step']} steps ({epoch} epoch" in done.stdout
    assert (
        json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["epoch"] == epoch + 1
    )
