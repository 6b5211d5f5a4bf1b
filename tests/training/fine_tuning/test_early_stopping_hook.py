"""Early stopping with patience: when it stops, what it leaves, and resuming."""

import logging

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.training import Hook, train
from fbnetv3.training.fine_tuning.early_stopping_hook import EarlyStoppingHook
from fbnetv3.training.training_hooks import LearningCurveHook
from tests.training.small_trainer import make_checkpointing, make_trainer

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


class Evaluations(Hook):
    """A hook whose evaluations are prescribed."""

    def __init__(self, accuracies, key="val_top1"):
        self.accuracies, self.key = accuracies, key

    def after_epoch(self, trainer):
        accuracy = self.accuracies[trainer.progress.epoch - 1]
        trainer.progress.metrics = {} if accuracy is None else {self.key: accuracy}


def stopping_trainer(accuracies, patience, *hooks, key="val_top1", previous=()):
    curve = LearningCurveHook((), list(previous))
    stopping = EarlyStoppingHook(curve.results, patience)
    return make_trainer([Evaluations(accuracies, key), curve, stopping, *hooks], epochs=len(accuracies))


@pytest.mark.parametrize(
    ("accuracies", "patience", "last_epoch"),
    [
        ([50, 60, 55, 58, 70, 80], 2, 4),
        ([50, 60, 55, 58, 70, 80], 3, 6),
        ([50, 50, 50, 50], 2, 3),  # an equal accuracy is no improvement
        ([50, None, 40, None, 30, 90], 2, 5),  # epochs without evaluation do not count
    ],
)
def test_a_run_ends_after_evaluations_without_improvement(accuracies, patience, last_epoch):
    trainer = stopping_trainer(accuracies, patience)
    trainer.run()
    assert trainer.progress.epoch == last_epoch


def test_a_run_resumed_within_an_epoch_finishes_and_evaluates_it():
    previous = [{"epoch": epoch, "top1": top1} for epoch, top1 in enumerate((60, 50, 40), 1)]
    trainer = stopping_trainer([0, 0, 0, 30, 20, 10], 2, previous=previous)
    trainer.progress.epoch, trainer.progress.step = 3, 3 * len(trainer.loader) + 1
    metrics = trainer.run()
    assert trainer.progress.epoch == 4 and metrics == {"val_top1": 30}


def test_averaged_weights_decide_if_there_are_any():
    trainer = stopping_trainer([50, 40, 30, 20], 2, key="val_ema_top1")
    trainer.run()
    assert trainer.progress.epoch == 3


def test_the_best_weights_are_kept_and_named(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        trainer = stopping_trainer([50, 60, 55, 58, 70], 2, make_checkpointing(tmp_path))
        trainer.run()
    message = (
        "no improvement in 2 evaluations; the best weights are those of epoch 2 (60.00%), in model_best.pth"
    )
    assert f"stopped after epoch 4: {message}" in caplog.text
    assert torch.load(tmp_path / "model_best.pth")["metrics"] == {"val_top1": 60}
    assert (tmp_path / "model_final.pth").exists()


def make_config(folder, patience):
    short = "SOLVER.EPOCHS 4 SOLVER.WARMUP_EPOCHS 0 SOLVER.BATCH_SIZE 512 INPUT.RESOLUTION 16"
    short += " SOLVER.LR 0.0 MODEL.FREEZE_NORM True"  # nothing improves
    return load_config(
        DIGITS, [*short.split(), "SOLVER.PATIENCE", str(patience), "OUTPUT_DIR", str(folder)]
    )


def test_resuming(tmp_path):
    """A stopped run is complete, an interrupted one counts its earlier evaluations, and more patience goes on."""
    train(make_config(tmp_path / "interrupted", 2), [lambda result: result["epoch"] < 2])
    curve = train(make_config(tmp_path / "interrupted", 2), resume=True)
    assert [result["epoch"] for result in curve] == [1, 2, 3]
    assert train(make_config(tmp_path / "interrupted", 2), resume=True) == curve
    assert (tmp_path / "interrupted" / "model_final.pth").exists()
    assert len(train(make_config(tmp_path / "interrupted", 9), resume=True)) == 4
