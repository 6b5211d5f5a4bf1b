"""Hooks that draw augmented images before a run's first step, and report on its last evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fbnetv3.data import Preprocessing
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.training.builders import Inputs
from fbnetv3.training.reports.augmentation_grid import MAX_IMAGES, draw_augmented_images
from fbnetv3.training.reports.evaluation_report import (
    report_folder,
    warn_on_failure,
    write_evaluation_report,
)
from fbnetv3.training.reports.predictions import PredictionRecorder
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.trainer import Hook, Trainer
from fbnetv3.utils.plotting import save_figure


@dataclass
class AugmentationHook(Hook):
    """Draws training images as the network sees them before the first step; rank 0 has this hook."""

    file: Path
    preprocessing: Preprocessing
    classes: Sequence[str]

    def before_train(self, trainer: Trainer) -> None:
        """Draw the first images of the first epoch, unless the run resumes."""
        if trainer.progress.step:
            return
        with warn_on_failure(self.file):
            batch = trainer.loader.read_first(MAX_IMAGES)
            if len(batch.targets):
                figure = draw_augmented_images(batch, self.preprocessing, self.classes, trainer.mixup)
                save_figure(figure, self.file)


@dataclass
class ReportHook(Hook):
    """Writes the report on a run's last evaluation; with averaged weights, theirs. All ranks have this hook."""

    folder: Path
    recorder: PredictionRecorder
    dataset: ImageDataset
    classes: Sequence[str]
    preprocessing: Preprocessing
    weights: str  # what the summary names
    data: str = ""

    def after_train(self, trainer: Trainer) -> None:
        """Gather the predictions of all processes and write the report in rank 0."""
        predictions = self.recorder.gather(trainer.group)
        # A run that was already complete has no new evaluation
        if predictions is not None and trainer.group.is_rank_0:
            write_evaluation_report(
                self.folder,
                predictions,
                self.classes,
                self.dataset,
                self.preprocessing,
                self.weights,
                self.data,
            )


def build_report_hooks(
    setting: str, run_folder: RunFolder, inputs: Inputs, is_rank_0: bool
) -> tuple[PredictionRecorder | None, list[Hook]]:
    """Build the hooks for the report that EVAL.REPORT asks for, and the recorder to pass to the evaluations."""
    folder = report_folder(setting, run_folder)
    if folder is None:
        return None, []
    preprocessing = inputs.preprocessing
    recorder = PredictionRecorder()
    weights = str(run_folder.path)
    data = inputs.cfg.DATA.ROOT or inputs.cfg.DATA.NAME
    hooks: list[Hook] = [
        ReportHook(folder, recorder, inputs.val, inputs.val.classes, preprocessing, weights, data)
    ]
    if is_rank_0:
        file = run_folder.augmented_images
        hooks.append(AugmentationHook(file, preprocessing, inputs.train.classes))
    return recorder, hooks
