"""SOLVER.PRECISION auto: bfloat16 on GPUs that have it; recorded, and kept when the run is resumed elsewhere."""

import pytest
import torch
import yaml

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.training import Trainer, cache_teacher_logits, evaluate_classifier, train
from fbnetv3.training.builders import build_objective
from fbnetv3.training.devices.autocast_precision import (
    autocast_dtype,
    resolve_precision,
    with_precision,
)

CONFIGS = configs_folder()
SHORT = "SOLVER.WARMUP_EPOCHS 0 SOLVER.BATCH_SIZE 512 SOLVER.PRECISION auto"


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        ("cpu", None, "float32"),
        ("cuda:0", (7, 5), "float32"),  # T4
        ("cuda:0", (8, 0), "bfloat16"),  # A100
        ("cuda:0", (9, 0), "bfloat16"),  # H100
    ],
)
def test_which_devices_have_bfloat16(device, capability, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert resolve_precision("auto", torch.device(device)) == expected
    assert autocast_dtype("auto", torch.device(device)) == getattr(torch, expected)
    assert autocast_dtype("float16", torch.device(device)) == torch.float16


@pytest.mark.parametrize("config", ["imagenet/fbnetv3_b.yaml", "finetune/fbnetv3_a.yaml"])
def test_configs_for_gpus_leave_the_choice_to_the_device(config):
    assert load_config(CONFIGS / config).SOLVER.PRECISION == "auto"


def make_config(folder, epochs):
    config = CONFIGS / "digits" / "fbnetv3_digits.yaml"
    return load_config(config, [*SHORT.split(), "SOLVER.EPOCHS", str(epochs), "OUTPUT_DIR", str(folder)])


def recorded_precision(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["SOLVER"]["PRECISION"]


def test_a_run_records_what_it_computes_with(tmp_path):
    train(make_config(tmp_path, 1))
    assert recorded_precision(tmp_path) == "float32"


def test_a_run_that_began_on_a_gpu_keeps_its_precision_on_a_cpu(tmp_path, monkeypatch):
    precisions = []
    step = Trainer.step

    def recorded_step(trainer, batch):
        precisions.append(trainer.precision)
        step(trainer, batch)

    monkeypatch.setattr(Trainer, "step", recorded_step)
    with monkeypatch.context() as gpu:
        gpu.setattr(
            "fbnetv3.training.devices.autocast_precision.resolve_precision", lambda *args: "bfloat16"
        )
        train(make_config(tmp_path, 1))
    train(make_config(tmp_path, 2), resume=True)
    assert set(precisions) == {torch.bfloat16} and len(precisions) == 2 * 2
    assert recorded_precision(tmp_path) == "bfloat16"


def test_evaluation_and_teachers_resolve_it_too(tmp_path):
    teacher = (
        "DISTILL.ARCH fbnetv3_digits DISTILL.WEIGHTS zoo://digits/fbnetv3_digits SOLVER.PRECISION auto"
    )
    digits = CONFIGS / "digits" / "fbnetv3_digits.yaml"
    overrides = [
        *teacher.split(),
        "MODEL.WEIGHTS",
        "zoo://digits/fbnetv3_digits",
        "OUTPUT_DIR",
        str(tmp_path),
    ]
    results = evaluate_classifier(load_config(digits, overrides), keep=["SOLVER.PRECISION"])
    assert results["images"] == 360
    build_objective(
        load_config(digits, overrides), [str(digit) for digit in range(10)], 16, torch.device("cpu")
    )
    cfg = load_config(digits, [*overrides, "DISTILL.CACHE", str(tmp_path / "cache")])
    cache_teacher_logits(cfg)
    assert (tmp_path / "cache").is_dir()


def test_a_precision_that_a_checkpoint_cannot_have_is_not_used():
    cfg = make_config("run", 1)
    assert (
        with_precision(cfg, torch.device("cpu"), {"SOLVER.PRECISION": "load"}).SOLVER.PRECISION == "float32"
    )
