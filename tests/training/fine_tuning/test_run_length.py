"""Batch size, epochs and warmup that fit the number of images."""

import pytest

from fbnetv3.arch import configs_folder
from fbnetv3.config import get_cfg, load_config
from fbnetv3.errors import UsageError
from fbnetv3.training.fine_tuning.run_length import describe_fitted, fit_config, fit_run_length

CONFIG = configs_folder() / "finetune" / "fbnetv3_digits.yaml"


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs"),
    [
        (2, 2, 100),  # one step per epoch
        (7, 7, 100),
        (50, 8, 84),  # 6 steps per epoch: 84 epochs for 500 steps
        (100, 16, 84),
        (319, 32, 56),  # 9 steps per epoch
        (320, 64, 100),  # 5 steps per epoch
        (1000, 64, 34),  # 15 steps per epoch
        (1664, 64, 20),  # 26 steps per epoch
        (50_000, 64, 20),
    ],
)
def test_small_datasets_have_small_batches_and_at_least_500_steps(images, batch_size, epochs):
    length = fit_run_length(images)
    assert (length.batch_size, length.epochs) == (batch_size, epochs)
    assert length.warmup_epochs == pytest.approx(epochs / 10)


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_processes_get_equal_parts(processes):
    for images in (*range(16, 100), 1000, 50_000):
        batch_size = fit_run_length(images, processes).batch_size
        assert batch_size % processes == 0 and 2 * processes <= batch_size <= images


def test_values_of_the_config_are_kept():
    cfg = get_cfg()
    cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.EPOCHS = 10, 0
    fitted = fit_config(cfg, 100)
    assert (fitted.SOLVER.BATCH_SIZE, fitted.SOLVER.EPOCHS, fitted.SOLVER.WARMUP_EPOCHS) == (10, 50, 5.0)
    assert describe_fitted(cfg, fitted) == "SOLVER.EPOCHS 50"
    cfg.SOLVER.BATCH_SIZE, cfg.SOLVER.EPOCHS = 0, 3
    cfg.SOLVER.WARMUP_EPOCHS = -1.0
    fitted = fit_config(cfg, 100)
    assert describe_fitted(cfg, fitted) == "SOLVER.BATCH_SIZE 16, SOLVER.WARMUP_EPOCHS 0.3"
    assert fit_config(fitted, 99) is fitted


def test_a_warmup_that_is_longer_than_the_fitted_run():
    cfg = get_cfg()
    cfg.SOLVER.EPOCHS, cfg.SOLVER.WARMUP_EPOCHS = 0, 30.0
    with pytest.raises(UsageError, match="SOLVER.WARMUP_EPOCHS 30.0 is longer than SOLVER.EPOCHS 20"):
        fit_config(cfg, 50_000)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("BATCH_SIZE", "1", "SOLVER.BATCH_SIZE 1 must be at least 2, or 0 to fit"),
        ("WARMUP_EPOCHS", "-0.5", "SOLVER.WARMUP_EPOCHS -0.5 must be at least 0, or -1"),
    ],
)
def test_values_between_the_automatic_and_the_smallest_one(key, value, message):
    with pytest.raises(UsageError, match=message):
        load_config(CONFIG, [f"SOLVER.{key}", value])
