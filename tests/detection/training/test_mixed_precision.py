"""Training of detectors in bfloat16, also on CPUs."""

import json

import torch
from torch import nn

from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training.checked_trainer import AutocastModel
from fbnetv3.detection.training.detector_setup import training_precision
from fbnetv3.detection.training.detector_training import train_detector

BFLOAT16 = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]


def losses(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return next(entry["total_loss"] for entry in map(json.loads, lines) if "total_loss" in entry)


def test_bfloat16_trains_nearly_as_float32_does(digits_config, tmp_path):
    for name, options in (("float32", []), ("bfloat16", BFLOAT16)):
        cfg = load_detection_config(
            digits_config, [*options, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / name)]
        )
        train_detector(cfg)
    float32, bfloat16 = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    # bfloat16 has 8 significant bits
    assert bfloat16 != float32 and abs(bfloat16 / float32 - 1) < 2**-5
    weights = torch.load(tmp_path / "bfloat16" / "model_final.pth", weights_only=True)["raw_model"]
    assert {value.dtype for value in weights.values()} <= {torch.float32, torch.int64}


def test_the_forward_pass_runs_in_bfloat16():
    model = AutocastModel(nn.Linear(2, 2), torch.device("cpu"), torch.bfloat16)
    assert model(torch.ones(1, 2)).dtype is torch.bfloat16
    assert model.module(torch.ones(1, 2)).dtype is torch.float32


def test_precision_of_a_config(digits_config):
    precisions = [
        training_precision(load_detection_config(digits_config, options))
        for options in ([], ["SOLVER.AMP.DTYPE", "bfloat16"], BFLOAT16)
    ]
    assert precisions == [torch.float32, torch.float32, torch.bfloat16]
