"""Metrics file of a run (JSON lines), and its figure of loss and accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fbnetv3.utils.json_lines import read_json_lines, write_json_lines
from fbnetv3.utils.plotting import new_figure, save_figure, style_axes

Entry = dict[str, float]

# Metrics by which weights are compared: top-1, or with several labels per image the mean average precision
ACCURACIES = ("top1", "map")


def find_accuracy(entry: Mapping[str, float], prefix: str = "") -> float | None:
    """Return the accuracy in percent of an evaluation whose keys begin with `prefix`; None if it has none."""
    return next((entry[f"{prefix}{key}"] for key in ACCURACIES if f"{prefix}{key}" in entry), None)


def selection_accuracy(result: Mapping[str, float], prefix: str = "") -> float:
    """Return the accuracy by which the best weights are selected: that of the averaged weights if there are any.

    `prefix` begins the keys of `result`, as "val_" in metrics. Without an evaluation, the result is -1.
    """
    accuracies = (find_accuracy(result, f"{prefix}{kind}") for kind in ("ema_", ""))
    return next((accuracy for accuracy in accuracies if accuracy is not None), -1.0)


def read_metrics(file: Path, key: str = "step") -> list[Entry]:
    """Read the entries that have a step count, under `key`. Skip invalid lines, such as a killed run's last one."""
    # NaN is valid: float16 training continues after a loss that overflows
    return [
        entry
        for entry in read_json_lines(file)
        if key in entry and all(type(value) in (int, float) for value in entry.values())
    ]


def read_learning_curve(file: Path) -> list[Entry]:
    """Read the evaluations in a metrics file: "epoch", "top1", "loss" and so on; empty if there is no file."""
    if not file.exists():
        return []
    evaluations = [
        entry
        for entry in read_metrics(file)
        if "epoch" in entry and find_accuracy(entry, "val_") is not None
    ]
    return [
        {key.removeprefix("val_"): value for key, value in entry.items() if key != "step"}
        for entry in evaluations
    ]


def truncate_metrics(file: Path, step: int, epoch: float = float("inf"), key: str = "step") -> None:
    """Drop the entries that were written after the checkpoint from which a run resumes, if there is a file.

    Entries stay if their step count, under `key`, is at most `step`, except evaluations of epochs after `epoch`.
    """
    if not file.exists():
        return
    entries = [
        entry
        for entry in read_metrics(file, key)
        if entry[key] <= step
        and not (find_accuracy(entry, "val_") is not None and entry.get("epoch", 0) > epoch)
    ]
    # Replace the file atomically, so that no older entries are lost if the process is killed
    write_json_lines(file, entries)


def plot_curve(metrics: Path, figure_file: Path) -> None:
    """Draw loss and accuracy by epoch, from a metrics file that `MetricsHook` has written, into a PNG."""
    entries = read_metrics(metrics)
    steps = [entry for entry in entries if {"epoch", "loss"} <= entry.keys()]
    evaluations = [
        entry
        for entry in entries
        if {"epoch", "val_loss"} <= entry.keys() and find_accuracy(entry, "val_") is not None
    ]
    averaged = [entry for entry in evaluations if find_accuracy(entry, "val_ema_") is not None]
    figure = new_figure(9, 3.4, dpi=110)
    loss_axes, accuracy_axes = figure.subplots(1, 2)

    # Legends are above the axes, where they hide nothing
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "fontsize": "small"}
    above |= {"borderpad": 0, "handlelength": 1.2, "columnspacing": 1}

    # Left: training loss, raw and smoothed, and validation loss
    losses = [entry["loss"] for entry in steps]
    _plot(loss_axes, steps, losses, color="0.75", lw=1, label="training, one batch")
    _plot(loss_axes, steps, _smooth(losses), color="tab:blue", label="training, smoothed")
    markers = {"marker": "o", "markersize": 3}
    val_losses = [entry["val_loss"] for entry in evaluations]
    _plot(loss_axes, evaluations, val_losses, color="tab:orange", label="validation", **markers)
    loss_axes.legend(frameon=False, **above)
    style_axes(loss_axes, xlabel="epoch", ylabel="loss")

    # Right: validation accuracy of the raw and the averaged weights
    accuracies = [find_accuracy(entry, "val_") or 0.0 for entry in evaluations]
    _plot(accuracy_axes, evaluations, accuracies, color="tab:orange", label="raw", **markers)
    if averaged:
        ema_accuracies = [find_accuracy(entry, "val_ema_") or 0.0 for entry in averaged]
        _plot(accuracy_axes, averaged, ema_accuracies, color="tab:green", label="EMA", **markers)
        accuracy_axes.legend(frameon=False, **above)
    title = f"last: {accuracies[-1]:.2f}%" if accuracies else ""
    if averaged:
        title += f", EMA {ema_accuracies[-1]:.2f}%"
    kind = "mAP" if any("val_map" in entry for entry in evaluations) else "top-1"
    style_axes(accuracy_axes, xlabel="epoch", ylabel=f"validation {kind} (%)")
    accuracy_axes.set_title(title, loc="right", fontsize="medium")
    for axes in (loss_axes, accuracy_axes):
        axes.xaxis.get_major_locator().set_params(integer=True)  # epochs
    save_figure(figure, figure_file)


def _plot(axes: Any, entries: list[Entry], values: list[float], **style: Any) -> None:
    axes.plot([entry["epoch"] for entry in entries], values, **style)


def _smooth(values: list[float], weight: float = 0.9) -> list[float]:
    """Return the exponential moving average, without bias toward the first value."""
    average, norm, smoothed = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        smoothed.append(average / norm)
    return smoothed
