"""The metrics file and the curve; and that every config key is explained."""

import itertools
import json
from pathlib import Path

import pytest

from fbnetv3.config import get_cfg
from fbnetv3.errors import OutputError
from fbnetv3.training.run_state.metrics import append_metrics, plot_curve, read_metrics, truncate_metrics


def test_a_metrics_file_with_a_torn_last_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]


def test_entries_ahead_of_a_step_are_dropped(tmp_path):
    for step in range(5):
        append_metrics(tmp_path / "metrics.jsonl", {"step": step})
    append_metrics(tmp_path / "metrics.jsonl", {"step": 2, "epoch": 1, "val_top1": 1.0})
    append_metrics(tmp_path / "metrics.jsonl", {"step": 2, "epoch": 2, "val_top1": 1.0})
    truncate_metrics(tmp_path / "metrics.jsonl", step=2, epoch=1)
    kept = [{"step": 0}, {"step": 1}, {"step": 2}, {"step": 2, "epoch": 1, "val_top1": 1.0}]
    assert read_metrics(tmp_path / "metrics.jsonl") == kept
    with pytest.raises(OutputError, match="metrics.jsonl: cannot be written: No such file"):
        append_metrics(tmp_path / "nowhere" / "metrics.jsonl", {"step": 0})


def test_the_curve_is_a_picture(tmp_path):
    from PIL import Image

    entries = [{"step": i, "epoch": i / 4, "loss": 1 / (i + 1), "lr": 0.1} for i in range(8)]
    entries.insert(4, {"step": 4, "epoch": 1, "val_top1": 50.0, "val_loss": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    plot_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 600


def test_every_config_key_is_explained():
    """The defaults file has a comment for each key, but for a few that name what they are."""
    import fbnetv3.config.defaults as defaults

    lines = Path(defaults.__file__).read_text().splitlines()
    plain = {"MOMENTUM", "NESTEROV", "WEIGHT_DECAY", "STD", "WARMUP_FACTOR", "RMSPROP_EPS"}
    for before, line in itertools.pairwise(lines):
        key = line.partition(" = ")[0].rpartition(".")[2]
        if line.startswith("_C.") and "CN()" not in line and key not in plain:
            assert before.startswith("# "), line
    assert get_cfg().SOLVER.EPOCHS == 400
