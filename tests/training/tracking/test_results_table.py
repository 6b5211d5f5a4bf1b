"""The table of runs is collected from the runs' own files: one row a run, also if several end at once."""

import csv
import json
import multiprocessing

import pytest

from fbnetv3.arch import compute_cost, configs_folder, get_arch
from fbnetv3.config import load_config
from fbnetv3.errors import OutputError
from fbnetv3.training import train
from fbnetv3.training.tracking.results_table import COLUMNS, collect_results, update_results_table

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = ["SOLVER.WARMUP_EPOCHS", "0", "SOLVER.BATCH_SIZE", "256", "EVAL.REPORT", "off", "DATA.WORKERS", "0"]


def run(folder, *overrides, callbacks=(), resume=False):
    cfg = load_config(DIGITS, [*SHORT, "OUTPUT_DIR", str(folder), *overrides])
    return train(cfg, callbacks, resume=resume)


def read_table(folder):
    with (folder / "results.csv").open(newline="") as f:
        return {row["run"]: row for row in csv.DictReader(f)}


def save_result(folder, name, **values):
    (folder / name).mkdir()
    (folder / name / "result.json").write_text(json.dumps(values))


def test_a_row_for_each_run(tmp_path):
    curve = run(tmp_path / "first", "SOLVER.EPOCHS", "2", "EMA.ENABLED", "True")
    run(tmp_path / "second", "SOLVER.EPOCHS", "1", "SOLVER.LR", "0.02")
    table = read_table(tmp_path)
    assert [*table] == ["first", "second"]
    row = table["first"]
    assert tuple(row) == COLUMNS
    assert (row["arch"], row["data"], row["epoch"], row["epochs"]) == ("fbnetv3_digits", "digits", "2", "2")
    assert float(row["top1"]) == curve[-1]["top1"] and float(row["ema_top1"]) == curve[-1]["ema_top1"]
    assert float(row["best"]) == max(result["ema_top1"] for result in curve)
    cost = compute_cost(get_arch("fbnetv3_digits"), 32, num_classes=10, in_chans=1)
    assert (int(row["parameters"]), int(row["macs"])) == (cost.params, cost.macs)
    assert float(row["seconds"]) > 0
    assert (table["second"]["lr"], table["second"]["ema_top1"]) == ("0.02", "")


def test_a_resumed_run_updates_its_row(tmp_path):
    run(tmp_path / "run", "SOLVER.EPOCHS", "3", callbacks=[lambda result: False])
    stopped = read_table(tmp_path)["run"]
    assert (stopped["epoch"], stopped["epochs"]) == ("1", "3")
    curve = run(tmp_path / "run", "SOLVER.EPOCHS", "3", resume=True)
    (row,) = read_table(tmp_path).values()
    assert row["epoch"] == "3" and float(row["top1"]) == curve[-1]["top1"]
    assert float(row["seconds"]) > float(stopped["seconds"])


def test_a_run_that_fails_keeps_the_result_of_its_last_evaluation(tmp_path):
    def fail(result):
        if result["epoch"] == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path / "run", "SOLVER.EPOCHS", "3", callbacks=[fail])
    assert read_table(tmp_path)["run"]["epoch"] == "2"


def test_the_table_can_be_switched_off(tmp_path):
    run(tmp_path / "run", "SOLVER.EPOCHS", "1", "LOG.RESULTS", "False")
    assert not (tmp_path / "results.csv").exists()
    assert collect_results(tmp_path)[0]["run"] == "run"


def test_another_file_of_this_name_is_not_replaced(tmp_path, caplog):
    (tmp_path / "results.csv").write_text("date,money\n1,2\n")
    run(tmp_path / "run", "SOLVER.EPOCHS", "1")
    assert (tmp_path / "results.csv").read_text() == "date,money\n1,2\n"
    assert "is not a table of runs" in caplog.text
    with pytest.raises(OutputError, match="rename it"):
        update_results_table(tmp_path)


def test_corrupt_results_and_other_folders_are_left_out(tmp_path):
    save_result(tmp_path, "good", arch="x", top1=1.5)
    for name, content in (("cut", '{"arch'), ("list", "[]")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(content)
    (tmp_path / "empty").mkdir()
    assert [(row["run"], row["top1"], row["loss"]) for row in collect_results(tmp_path)] == [
        ("good", 1.5, None)
    ]


def finish(folder, name, barrier):
    barrier.wait()
    save_result(folder, name, arch=name)
    update_results_table(folder)


def test_runs_that_end_at_the_same_time_are_all_in_the_table(tmp_path):
    names = [f"run{i}" for i in range(8)]
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(names))
    processes = [context.Process(target=finish, args=(tmp_path, name, barrier)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(names)
    assert [*read_table(tmp_path)] == names


def test_a_result_that_appears_while_the_table_is_written_is_not_lost(tmp_path, monkeypatch):
    from fbnetv3.training.tracking import results_table

    save_result(tmp_path, "first", arch="x")
    write = results_table.write_csv

    def write_slowly(*arguments):
        if not (tmp_path / "second").exists():
            save_result(tmp_path, "second", arch="y")
        write(*arguments)

    monkeypatch.setattr(results_table, "write_csv", write_slowly)
    update_results_table(tmp_path)
    assert [*read_table(tmp_path)] == ["first", "second"]
