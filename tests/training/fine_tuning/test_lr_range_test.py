"""The learning-rate range test."""

import itertools

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError
from fbnetv3.training import find_lr
from fbnetv3.training.fine_tuning.lr_range_test import RangeTest

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = ["SOLVER.BATCH_SIZE", "64", "SOLVER.LR_BATCH_SIZE", "32", "INPUT.RESOLUTION", "16", "OUTPUT_DIR"]


def test_the_suggestion_is_a_tenth_of_the_best_learning_rate():
    assert RangeTest([1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.5, 1.0, 3.0]).suggestion == pytest.approx(1e-2)


def test_the_learning_rate_grows_until_the_loss_diverges(tmp_path):
    state = torch.get_rng_state()
    cfg = load_config(DIGITS, [*SHORT, str(tmp_path / "run"), "SOLVER.LOSS", "cross_entropy"])
    result = find_lr(cfg, lowest=1e-4, highest=1e6, steps=40)
    ratios = [later / earlier for earlier, later in itertools.pairwise(result.lrs)]
    assert ratios == pytest.approx([10 ** (10 / 39)] * len(ratios))
    assert len(result.lrs) < 40  # it has diverged
    assert 1e-3 < result.suggestion < 1
    # It leaves nothing behind but its figure
    result.plot(tmp_path / "figure.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert torch.equal(state, torch.get_rng_state())


def test_wrong_bounds():
    with pytest.raises(
        UsageError, match="the lowest learning rate, 1, must be above 0 and below the highest, 0.1"
    ):
        find_lr(load_config(DIGITS), lowest=1.0, highest=0.1)
