"""The metrics of a run: its file, and the picture of loss and accuracy by epoch."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

from fbnetv3.errors import OutputError
from fbnetv3.utils.files import atomic_write


def read_metrics(file: Path) -> list[dict[str, float]]:
    """The entries of a metrics file; what is none, such as a line cut short by a killed run, is left out."""
    entries = []
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "step" in entry and all(map(_is_number, entry.values())):
                entries.append(entry)
    return entries


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def append_metrics(file: Path, entry: dict[str, float]) -> None:
    """Add an entry to a metrics file.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with file.open("a") as f:
            f.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror or error}") from error


def truncate_metrics(file: Path, step: int, epoch: int) -> None:
    """Drop the entries ahead of the checkpoint from which a run goes on: later steps, evaluations of later epochs."""

    def keep(entry: dict[str, float]) -> bool:
        return entry["step"] <= step and not ("val_top1" in entry and entry.get("epoch", 0) > epoch)

    if file.exists():
        kept = [entry for entry in read_metrics(file) if keep(entry)]
        with atomic_write(file) as f:
            f.write("".join(json.dumps(entry) + "\n" for entry in kept).encode())


def plot_curve(metrics: Path, picture: Path) -> None:
    """Draw the curves of a metrics file (as the `Metrics` hook writes it) into a PNG."""
    from matplotlib.figure import Figure

    entries = read_metrics(metrics)
    steps = [e for e in entries if {"epoch", "loss"} <= e.keys()]
    evals = [e for e in entries if {"epoch", "val_top1", "val_loss"} <= e.keys()]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    left.plot([e["epoch"] for e in steps], [e["loss"] for e in steps], color="0.75", lw=1, label="training, one batch")
    left.plot(*_smoothed(steps), color="tab:blue", label="training, smoothed")
    left.plot(
        [e["epoch"] for e in evals], [e["val_loss"] for e in evals], "o-", ms=3, color="tab:orange", label="validation"
    )
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend(frameon=False)
    last = evals[-1]["val_top1"] if evals else float("nan")
    right.plot([e["epoch"] for e in evals], [e["val_top1"] for e in evals], "o-", ms=3, color="tab:orange", label="raw")
    averaged = [e for e in evals if "val_ema_top1" in e]
    if averaged:
        points = [e["epoch"] for e in averaged], [e["val_ema_top1"] for e in averaged]
        right.plot(*points, "o-", ms=3, color="tab:green", label="EMA")
        right.legend(frameon=False, loc="lower right")
    right.set(xlabel="epoch", ylabel="top-1 on validation, %", title=f"last: {last:.2f} %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    with atomic_write(picture) as f:
        f.write(image.getvalue())


def _smoothed(entries: list[dict], weight: float = 0.9) -> tuple[list[float], list[float]]:
    """Epochs and the exponential moving average of the loss, without the bias towards the first value."""
    average, norm, losses = 0.0, 0.0, []
    for entry in entries:
        average = weight * average + (1 - weight) * entry["loss"]
        norm = weight * norm + (1 - weight)
        losses.append(average / norm)
    return [entry["epoch"] for entry in entries], losses
