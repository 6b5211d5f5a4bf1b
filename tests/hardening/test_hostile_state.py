"""What searches and trainings keep, damaged or not theirs."""

import json
import sqlite3

import numpy as np
import pytest

from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.trial_store import FILE, TrialsError, TrialStore
from fbnetv3.training.run_state.metrics import plot_curve, read_metrics, truncate_metrics
from tests.hardening.conftest import THOROUGH


def test_databases_that_are_not_ours(tmp_path, chance):
    file = tmp_path / FILE
    with pytest.raises(TrialsError, match="holds no search"):
        TrialStore(tmp_path)
    for content in (b"", b"x" * 5000, b"SQLite format 3\0" + bytes(84), b"SQLite format 3\0" + bytes(5000)):
        file.write_bytes(content)
        with pytest.raises(UserError):
            TrialStore(tmp_path)
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE trials (number INTEGER)")
    connection.close()
    with pytest.raises(TrialsError, match="is no file of a search's trials"):
        TrialStore(tmp_path, create=True)
    file.unlink()
    store = TrialStore(tmp_path, create=True)
    store.add_round(0, np.zeros((40, 6), int), 3)
    for number in range(20):
        store.start(number)
        store.finish(number, [1.0, 2.0, 3.0], 1.0)
    store.close()
    whole = file.read_bytes()
    for _ in range(40 * THOROUGH):
        wrong = bytearray(whole)
        for _ in range(chance.integers(1, 40)):
            wrong[chance.integers(len(wrong))] = chance.integers(256)
        file.write_bytes(wrong[: chance.integers(len(wrong))] if chance.random() < 0.3 else wrong)
        try:
            store = TrialStore(tmp_path)
            store.all(), store.about(), store.rounds()
            store.close()
        except UserError as error:
            assert "\n" not in str(error)


def test_damaged_metrics(tmp_path, chance):
    file = tmp_path / "metrics.jsonl"
    good = "".join(
        json.dumps({"step": i, "epoch": i / 2, "loss": 1.0, "lr": 0.1})
        + "\n"
        + json.dumps({"step": i, "epoch": i, "val_top1": 1.0, "val_loss": 1.0})
        + "\n"
        for i in range(8)
    ).encode()
    odd = [
        "[1]",
        "{}",
        '{"step": "x"}',
        '{"step": 1, "val_top1": 3}',
        '{"step": 1, "loss": null, "epoch": 1}',
        "[" * 9999,
    ]
    for line in odd:
        file.write_text(f"{line}\n{good.decode()}")
        assert len(read_metrics(file)) >= 16
        truncate_metrics(file, 4, 4)
        plot_curve(file, tmp_path / "curve.png")
    for _ in range(20 * THOROUGH):
        wrong = bytearray(good)
        for _ in range(chance.integers(1, 9)):
            wrong[chance.integers(len(wrong))] = chance.integers(256)
        file.write_bytes(wrong)
        assert len(read_metrics(file)) <= 16
        truncate_metrics(file, 4, 4)
