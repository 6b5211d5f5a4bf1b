"""Test-time augmentation, and mixing of batches."""

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from fbnetv3.arch import configs_folder
from fbnetv3.config import get_cfg, load_config
from fbnetv3.data import Preprocessing
from fbnetv3.data.transforms import evaluation_preprocessing
from fbnetv3.modeling.tta import AugmentedClassifier, augmented_for_evaluation
from fbnetv3.training import evaluate_classifier
from fbnetv3.training.solver import build_mixup

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


class CornerPixel(nn.Module):
    """A classifier that sees only the pixel in the upper left corner."""

    def forward(self, images):
        corner = images[:, 0, 0, 0]
        return torch.stack([corner, -corner], 1)


def corner_probability(*pixels):
    """Return the mean probability of class 0 over views with these pixels in their corner."""
    return torch.stack([torch.tensor([p, -p]).softmax(0)[0] for p in pixels]).mean().item()


IMAGE = torch.arange(16.0).view(1, 1, 4, 4) / 4


@pytest.mark.parametrize(
    ("views", "corners"),
    [
        ("none", [0]),
        ("flip", [0, 3]),
        # Crops of 2 x 2: the four corners, then the center
        ("five_crop", [0, 2, 8, 10, 5]),
        ("ten_crop", [0, 2, 8, 10, 5, 1, 3, 9, 11, 6]),
    ],
)
def test_probabilities_are_averaged_over_views(views, corners):
    classifier = augmented_for_evaluation(CornerPixel(), views, resolution=2)
    probabilities = classifier(IMAGE).softmax(1)
    assert probabilities[0, 0].item() == pytest.approx(corner_probability(*(c / 4 for c in corners)))


def test_outputs_are_logarithms_of_probabilities():
    assert AugmentedClassifier(CornerPixel(), "flip", 4)(IMAGE).exp().sum().item() == pytest.approx(1)


def test_crops_come_from_the_short_side():
    preprocessing = Preprocessing(224, 256)
    assert evaluation_preprocessing(preprocessing, "flip") is preprocessing
    assert evaluation_preprocessing(preprocessing, "five_crop").resolution == 256


def test_evaluation_of_the_bundled_network():
    """Mirrored digits are different ones; crops of the same size change nothing."""
    weights = ["MODEL.WEIGHTS", "zoo://digits/fbnetv3_digits"]
    top1 = {
        views: evaluate_classifier(load_config(DIGITS, [*weights, "EVAL.TTA", views]))["top1"]
        for views in ("none", "flip", "five_crop")
    }
    assert top1["five_crop"] == top1["none"] > top1["flip"]


@pytest.mark.parametrize(
    ("mixup", "cutmix", "kinds"),
    [(0.0, 0.0, ()), (0.2, 0.0, (v2.MixUp,)), (0.0, 1.0, (v2.CutMix,)), (0.2, 1.0, (v2.MixUp, v2.CutMix))],
)
def test_mixup_and_cutmix_are_drawn_for_each_batch(mixup, cutmix, kinds):
    cfg = get_cfg()
    cfg.INPUT.MIXUP, cfg.INPUT.CUTMIX = mixup, cutmix
    mix = build_mixup(cfg, 2)
    if not kinds:
        assert mix is None
        return
    targets = torch.tensor([0, 1])
    images = targets.float().view(2, 1, 1, 1).repeat(1, 1, 16, 16)  # black and white
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        mixed, mixed_targets = mix(images, targets)
        assert mixed_targets.sum(1).tolist() == pytest.approx([1, 1])
        # Mixup averages pixels, CutMix copies them, and may copy none
        if ((mixed > 0) & (mixed < 1)).any():
            seen.add(v2.MixUp)
        elif not torch.equal(mixed, images):
            seen.add(v2.CutMix)
    assert seen == set(kinds)
