"""Corrupt and foreign databases of trials and metrics files."""

import json
import sqlite3

import numpy as np
import pytest

from fbnetv3.errors import UserError
from fbnetv3.nars.trials.trial_store import TRIALS_FILE, Proposal, TrialStore, TrialStoreError
from fbnetv3.training.run_state.metrics import plot_curve, read_metrics, truncate_metrics
from tests.hardening.conftest import SCALE


def test_corrupt_and_foreign_databases_are_refused(tmp_path, rng):
    file = tmp_path / TRIALS_FILE
    with pytest.raises(TrialStoreError, match="contains no search"):
        TrialStore(tmp_path)
    for content in (b"", b"x" * 5000, b"SQLite format 3\0" + bytes(84), b"SQLite format 3\0" + bytes(5000)):
        file.write_bytes(content)
        with pytest.raises(UserError):
            TrialStore(tmp_path)
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE trials (number INTEGER)")
    connection.close()
    with pytest.raises(TrialStoreError, match="is not a file of search trials"):
        TrialStore(tmp_path, create=True)
    file.unlink()
    store = TrialStore(tmp_path, create=True)
    proposals = [Proposal(3, np.zeros(6, int)) for _ in range(40)]
    store.add(proposals, decode=lambda candidate: {"x": candidate.tolist()})
    for number in range(20):
        store.start(number)
        store.complete(number, [1.0, 2.0, 3.0], 1.0)
    store.close()
    complete = file.read_bytes()
    for _ in range(40 * SCALE):
        corrupt = bytearray(complete)
        for _ in range(rng.integers(1, 40)):
            corrupt[rng.integers(len(corrupt))] = rng.integers(256)
        file.write_bytes(corrupt[: rng.integers(len(corrupt))] if rng.random() < 0.3 else corrupt)
        try:
            store = TrialStore(tmp_path)
            store.trials(), store.metadata(), store.segments()
            store.close()
        except UserError as error:
            assert "\n" not in str(error)


def test_corrupt_metrics_are_skipped(tmp_path, rng):
    file = tmp_path / "metrics.jsonl"
    metrics = "".join(
        json.dumps({"step": i, "epoch": i / 2, "loss": 1.0, "lr": 0.1})
        + "\n"
        + json.dumps({"step": i, "epoch": i, "val_top1": 1.0, "val_loss": 1.0})
        + "\n"
        for i in range(8)
    ).encode()
    invalid_lines = [
        "[1]",
        "{}",
        '{"step": "x"}',
        '{"step": 1, "val_top1": 3}',
        '{"step": 1, "loss": null, "epoch": 1}',
        "[" * 9999,
    ]
    for line in invalid_lines:
        file.write_text(f"{line}\n{metrics.decode()}")
        assert len(read_metrics(file)) >= 16
        truncate_metrics(file, 4, 4)
        plot_curve(file, tmp_path / "curve.png")
    for _ in range(20 * SCALE):
        corrupt = bytearray(metrics)
        for _ in range(rng.integers(1, 9)):
            corrupt[rng.integers(len(corrupt))] = rng.integers(256)
        file.write_bytes(corrupt)
        assert len(read_metrics(file)) <= 16
        truncate_metrics(file, 4, 4)
