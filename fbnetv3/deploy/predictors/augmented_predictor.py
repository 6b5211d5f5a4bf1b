"""Test-time augmentation of a classifier in any runtime: average its probabilities over views of each image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fbnetv3.data.transforms import evaluation_preprocessing
from fbnetv3.deploy.formats.export_format import Runtime
from fbnetv3.deploy.predictors.classifier_predictor import ClassifierPredictor
from fbnetv3.modeling.tta import TTA_VIEWS, AugmentedClassifier
from fbnetv3.utils.checks import check_choice


def augment_predictor(predictor: ClassifierPredictor, views: str) -> ClassifierPredictor:
    """Return a predictor that averages probabilities over views of each image, as EVAL.TTA does in evaluation.

    Args:
        predictor: the classifier, in any runtime.
        views: "none", or "flip", "five_crop" or "ten_crop"; see `AugmentedClassifier`.

    Raises:
        UsageError: there are no such views.
    """
    check_choice(views, "views", TTA_VIEWS)
    if views == "none":
        return predictor
    preprocessing = predictor.preprocessing
    return replace(
        predictor,
        runtime=_AugmentedRuntime(
            predictor.runtime, views, preprocessing.resolution, predictor.multi_label
        ),
        preprocessing=evaluation_preprocessing(preprocessing, views),
    )


class _AugmentedRuntime:
    """A runtime that runs another one on the views of each image, and returns logits of the mean probabilities."""

    def __init__(self, runtime: Runtime, views: str, resolution: int, multi_label: bool) -> None:
        self.name = runtime.name
        self._classifier = AugmentedClassifier(_RuntimeModule(runtime), views, resolution, multi_label)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run images, float32 (N, channels, H, W), and return logits, float32 (N, classes)."""
        with torch.inference_mode():
            return self._classifier(torch.from_numpy(batch)).numpy()


class _RuntimeModule(nn.Module):
    """A runtime as a module."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def forward(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.runtime.run(images.contiguous().numpy()))
