"""Test-time augmentation (TTA): average a classifier's probabilities over flips and crops of each image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

TTA_VIEWS = ("none", "flip", "five_crop", "ten_crop")
"""Kinds of test-time augmentation by name: no views but the image itself, or as in `AugmentedClassifier`."""


class AugmentedClassifier(nn.Module):
    """A classifier that averages its probabilities over views of each image.

    Args:
        classifier: classifier that maps images to logits.
        views: "flip" for the image and its mirror image, "five_crop" for the corners and the center, "ten_crop" for
            both.
        multi_label: whether the probabilities of the classes are independent, as with several labels per image.
        resolution: side of the crops in pixels.
    """

    def __init__(
        self, classifier: nn.Module, views: str, resolution: int, multi_label: bool = False
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.views = views
        self.resolution = resolution
        self.multi_label = multi_label
        self.train(classifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes) of the mean probabilities."""
        views = [images]
        if self.views in ("five_crop", "ten_crop"):
            views = list(functional.five_crop(images, [self.resolution, self.resolution]))
        if self.views in ("flip", "ten_crop"):
            views += [functional.horizontal_flip(view) for view in views]
        if self.multi_label:
            return (
                torch.stack([self.classifier(view).float().sigmoid() for view in views]).mean(0).logit(1e-7)
            )
        log_probabilities = [self.classifier(view).float().log_softmax(1) for view in views]
        return torch.stack(log_probabilities).logsumexp(0) - math.log(len(views))


def augmented_for_evaluation(
    classifier: nn.Module, views: str, resolution: int, multi_label: bool = False
) -> nn.Module:
    """Return the classifier that averages over `views`; for "none", the classifier itself."""
    if views == "none":
        return classifier
    return AugmentedClassifier(classifier, views, resolution, multi_label)
