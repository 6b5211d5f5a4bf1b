"""The picture of a run: loss, and accuracy on the validation images, by epoch."""

from __future__ import annotations

import io
import json
from pathlib import Path

from fbnetv3.engine.checkpoint import atomic_write


def plot_curve(metrics: Path, picture: Path) -> None:
    """Draw the curves of a metrics file (as the `Metrics` hook writes it) into a PNG."""
    from matplotlib.figure import Figure

    entries = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [e for e in entries if "loss" in e]
    evals = [e for e in entries if "val_top1" in e]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=110)
    left, right = figure.subplots(1, 2)
    left.plot([e["epoch"] for e in steps], [e["loss"] for e in steps], color="0.75", lw=1, label="training, one batch")
    left.plot(*_smoothed(steps), color="tab:blue", label="training, smoothed")
    left.plot(
        [e["epoch"] for e in evals], [e["val_loss"] for e in evals], "o-", ms=3, color="tab:orange", label="validation"
    )
    left.set(xlabel="epoch", ylabel="cross-entropy")
    left.legend(frameon=False)
    best = evals[-1]["val_top1"] if evals else float("nan")
    right.plot([e["epoch"] for e in evals], [e["val_top1"] for e in evals], "o-", ms=3, color="tab:orange")
    right.set(xlabel="epoch", ylabel="top-1 on validation, %", title=f"last: {best:.2f} %")
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
