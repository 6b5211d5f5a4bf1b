"""Evaluation with test-time augmentation, `TEST.AUG`."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN

from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training.detector_evaluation import evaluate_datasets
from fbnetv3.detection.training.detector_setup import build_detector
from fbnetv3.training.processes.distributed import SINGLE_PROCESS

AUGMENTED = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64, 96)"]


@pytest.mark.parametrize("training", [True, False])
def test_all_versions_of_an_image_are_detected_in_without_padding(digits_config, monkeypatch, training):
    """Two sizes, each flipped, too. Padding would change what squeeze-and-excite averages over."""
    cfg = load_detection_config(digits_config, AUGMENTED)
    torch.manual_seed(0)
    model = build_detector(cfg).train(training)
    sizes = []
    original = GeneralizedRCNN.inference

    def inference(self, inputs, *arguments, **options):
        sizes.append({tuple(image["image"].shape[1:]) for image in inputs})
        return original(self, inputs, *arguments, **options)

    monkeypatch.setattr(GeneralizedRCNN, "inference", inference)
    results = evaluate_datasets(cfg, model, ["custom_test"], SINGLE_PROCESS)
    assert "AP" in results["custom_test"]["bbox"]
    assert len(sizes) == 3 * 4 and all(len(batch) == 1 for batch in sizes)
    assert model.training == training
