"""Metrics file and curve."""

import json

import pytest

from fbnetv3.errors import OutputError
from fbnetv3.training.run_state.metrics import plot_curve, read_metrics, truncate_metrics
from fbnetv3.utils.json_lines import append_json_line


def test_a_partial_last_line_is_skipped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_entries_after_a_checkpoint_are_dropped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for step in range(5):
        append_json_line(file, {"step": step})
    append_json_line(file, {"step": 2, "epoch": 1, "val_top1": 1.0})
    append_json_line(file, {"step": 2, "epoch": 2, "val_top1": 1.0})
    truncate_metrics(file, step=2, epoch=1)
    assert read_metrics(file) == [
        {"step": 0},
        {"step": 1},
        {"step": 2},
        {"step": 2, "epoch": 1, "val_top1": 1.0},
    ]
    with pytest.raises(OutputError, match="metrics.jsonl: cannot be written: No such file"):
        append_json_line(tmp_path / "nowhere" / "metrics.jsonl", {"step": 0})


def test_entries_of_detectors_are_dropped_by_iteration(tmp_path):
    file = tmp_path / "metrics.jsonl"
    for iteration in (19, 39, 59):
        append_json_line(file, {"iteration": iteration, "total_loss": 1.0})
    truncate_metrics(file, step=39, key="iteration")
    assert [entry["iteration"] for entry in read_metrics(file, "iteration")] == [19, 39]
    truncate_metrics(tmp_path / "nowhere.jsonl", step=0)
    assert not (tmp_path / "nowhere.jsonl").exists()


def test_the_curve_is_an_image(tmp_path):
    from PIL import Image

    entries = [{"step": i, "epoch": i / 4, "loss": 1 / (i + 1), "lr": 0.1} for i in range(8)]
    entries.insert(4, {"step": 4, "epoch": 1, "val_top1": 50.0, "val_loss": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 600


def test_a_curve_without_evaluations_has_no_title(tmp_path, monkeypatch):
    def save(figure, path):
        titles.append(figure.axes[1].get_title())

    titles = []
    monkeypatch.setattr("fbnetv3.training.run_state.metrics.save_figure", save)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "epoch": 0.5, "loss": 2.0}\n')
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert titles == [""]
