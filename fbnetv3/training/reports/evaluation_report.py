"""The folder of tables and figures about an evaluation. It is an extra: what cannot be written is a warning."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fbnetv3.data import Preprocessing
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.training.evaluation.multi_label_metrics import LABEL_THRESHOLD
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
from fbnetv3.training.reports.label_metrics import (
    average_over_labels,
    compute_label_metrics,
    count_label_decisions,
    write_label_counts,
)
from fbnetv3.training.reports.label_mistakes import draw_label_mistakes, write_label_mistakes
from fbnetv3.training.reports.mistakes import draw_mistakes, write_mistakes
from fbnetv3.training.reports.predictions import LabelPredictions, Predictions
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.files import expand_path, make_folder, write_json
from fbnetv3.utils.plotting import save_figure
from fbnetv3.utils.text import describe_error

logger = logging.getLogger(__name__)

_ONE_CLASS_FILES = ("confusion.png", "calibration.csv", "calibration.png")


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
    predictions: Predictions | LabelPredictions,
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
    if isinstance(predictions, LabelPredictions):
        summary |= _write_label_tables(folder, predictions, classes)
        draw: Callable[..., Any] = draw_label_mistakes
    else:
        summary |= _write_class_tables(folder, predictions, classes)
        draw = draw_mistakes
    with warn_on_failure(folder / "mistakes.png"):
        save_figure(draw(predictions, classes, dataset, preprocessing), folder / "mistakes.png")
    with warn_on_failure(folder / "summary.json"):
        write_json(folder / "summary.json", summary)
    _log_averages(summary)
    logger.info("%-12s %s", "report:", folder)


def _write_class_tables(folder: Path, predictions: Predictions, classes: Sequence[str]) -> dict[str, Any]:
    """Write what there is with one class per image, except for the mistakes' picture; return averages."""
    summary: dict[str, Any] = {}
    with warn_on_failure(folder / "classes.csv"):
        metrics = compute_class_metrics(predictions, classes)
        logger.info("%s", class_table(metrics))
        summary |= {"accuracy": float(predictions.correct.mean()), **average_over_classes(metrics)}
        write_class_metrics(folder / "classes.csv", metrics)
    with warn_on_failure(folder / "confusion.csv"):
        matrix = compute_confusion_matrix(predictions)
        write_confusion_matrix(folder / "confusion.csv", matrix, classes)
        save_figure(draw_confusion_matrix(matrix, classes), folder / "confusion.png")
    with warn_on_failure(folder / "mistakes.csv"):
        write_mistakes(folder / "mistakes.csv", predictions, classes)
    with warn_on_failure(folder / "calibration.png"):
        calibration = compute_calibration(predictions)
        summary |= {"ece": calibration.error, "overconfidence": calibration.overconfidence}
        write_calibration(folder / "calibration.csv", calibration)
        save_figure(draw_reliability_diagram(calibration), folder / "calibration.png")
    return summary


def _write_label_tables(
    folder: Path, predictions: LabelPredictions, classes: Sequence[str]
) -> dict[str, Any]:
    """Write what there is with several labels per image, except for the mistakes' picture; return averages."""
    summary: dict[str, Any] = {"threshold": LABEL_THRESHOLD}
    with warn_on_failure(folder / "classes.csv"):
        metrics = compute_label_metrics(predictions, classes)
        logger.info("%s", class_table(metrics))
        summary |= average_over_labels(predictions, metrics)
        write_class_metrics(folder / "classes.csv", metrics)
    with warn_on_failure(folder / "confusion.csv"):
        write_label_counts(folder / "confusion.csv", count_label_decisions(predictions, classes))
    with warn_on_failure(folder / "mistakes.csv"):
        write_label_mistakes(folder / "mistakes.csv", predictions, classes)
    with warn_on_failure(folder):
        for name in _ONE_CLASS_FILES:  # of an earlier report
            (folder / name).unlink(missing_ok=True)
    return summary


def _log_averages(summary: dict[str, Any]) -> None:
    labels = {
        "balanced_accuracy": "balanced accuracy",
        "exact_match": "all labels right",
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
        "macro_average_precision": "mAP",
        "ece": "calibration error (ECE)",
    }
    averages = [
        f"{label} {100 * summary[key]:.2f}%"
        for key, label in labels.items()
        if summary.get(key) is not None
    ]
    if averages:
        logger.info("%s", ", ".join(averages))


@contextlib.contextmanager
def warn_on_failure(path: Path) -> Iterator[None]:
    """Log an error within the block, such as of a full disk or of an image that is gone, as a warning."""
    try:
        yield
    except Exception as error:
        logger.warning("%s was not written: %s", path, describe_error(error))
