"""The folder of tables and figures about an evaluation. It is an extra: what cannot be written is a warning."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fbnetv3.data import Preprocessing
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.training.reports.calibration import (
    compute_calibration,
    draw_reliability_diagram,
    write_calibration,
)
from fbnetv3.training.reports.class_metrics import (
    average_over_classes,
    class_table,
    compute_class_metrics,
    write_class_metrics,
)
from fbnetv3.training.reports.confusion import (
    compute_confusion_matrix,
    draw_confusion_matrix,
    write_confusion_matrix,
)
from fbnetv3.training.reports.mistakes import draw_mistakes, write_mistakes
from fbnetv3.training.reports.predictions import Predictions
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.files import expand_path, make_folder, write_json
from fbnetv3.utils.plotting import save_figure
from fbnetv3.utils.text import describe_error

logger = logging.getLogger(__name__)


def report_folder(setting: str, run_folder: RunFolder, weights: str | os.PathLike = "") -> Path | None:
    """Return the folder that EVAL.REPORT names for the report on a run, or on weights if they are given.

    None for no report: "off", or "auto" and weights that are not those of the run in `run_folder`.
    """
    if setting in ("off", ""):
        return None
    if setting != "auto":
        return expand_path(setting)
    is_own = run_folder.has_run() and Path(weights).resolve().is_relative_to(run_folder.path.resolve())
    return run_folder.report if is_own or not weights else None


def write_evaluation_report(
    folder: Path,
    predictions: Predictions,
    classes: Sequence[str],
    dataset: ImageDataset,
    preprocessing: Preprocessing,
    weights: str = "",
    data: str = "",
) -> None:
    """Write tables and figures about predictions to a folder, and log a table of the classes.

    A part that fails is a warning, and the others are written.

    Args:
        folder: created if it does not exist; the files of an earlier report are replaced.
        predictions: predictions for the images of `dataset`.
        classes: names of the network's classes.
        dataset: the images.
        preprocessing: preprocessing of the evaluation.
        weights: file of the evaluated weights, for the summary.
        data: where the images are, for the summary.
    """
    # A network may have more classes than the dataset names
    classes = [*classes, *map(str, range(len(classes), predictions.num_classes))]
    with warn_on_failure(folder):
        make_folder(folder)
    summary: dict[str, Any] = {"weights": weights, "data": data, "images": len(predictions)}
    with warn_on_failure(folder / "classes.csv"):
        metrics = compute_class_metrics(predictions, classes)
        logger.info("%s", class_table(metrics))
        summary |= {"accuracy": float(predictions.correct.mean()), **average_over_classes(metrics)}
        write_class_metrics(folder / "classes.csv", metrics)
    with warn_on_failure(folder / "confusion.csv"):
        matrix = compute_confusion_matrix(predictions)
        write_confusion_matrix(folder / "confusion.csv", matrix, classes)
        save_figure(draw_confusion_matrix(matrix, classes), folder / "confusion.png")
    with warn_on_failure(folder / "mistakes.png"):
        write_mistakes(folder / "mistakes.csv", predictions, classes)
        save_figure(draw_mistakes(predictions, classes, dataset, preprocessing), folder / "mistakes.png")
    with warn_on_failure(folder / "calibration.png"):
        calibration = compute_calibration(predictions)
        summary |= {"ece": calibration.error, "overconfidence": calibration.overconfidence}
        write_calibration(folder / "calibration.csv", calibration)
        save_figure(draw_reliability_diagram(calibration), folder / "calibration.png")
    with warn_on_failure(folder / "summary.json"):
        write_json(folder / "summary.json", summary)
    if "ece" in summary and "macro_f1" in summary:
        logger.info(
            "balanced accuracy %.2f%%, macro F1 %.2f%%, calibration error (ECE) %.2f%%",
            *(100 * summary[key] for key in ("balanced_accuracy", "macro_f1", "ece")),
        )
    logger.info("%-12s %s", "report:", folder)


@contextlib.contextmanager
def warn_on_failure(path: Path) -> Iterator[None]:
    """Log an error within the block, such as of a full disk or of an image that is gone, as a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("%s was not written: %s", path, describe_error(error))
