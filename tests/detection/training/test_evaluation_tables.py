"""Tables of average precision: in the terminal, as CSV and as JSON."""

import csv
import json
import math

from fbnetv3.detection.training.evaluation_tables import class_tables, detection_table, write_results

TASKS = {
    "bbox": {"AP": 40.0, "AP50": 61.239, "AP-cat": 30.0, "AP-dog": 50.0, "AP-fox": math.nan},
    "segm": {"AP": 20.0, "AP50": math.nan, "AP-cat": 25.0, "AP-dog": 15.0, "AP-fox": math.nan},
}


def test_a_row_for_each_dataset_and_task():
    lines = detection_table({"a": TASKS}).splitlines()
    assert lines[0].split() == ["dataset", "task", "AP", "AP50", "AP75", "APs", "APm", "APl"]
    assert [line.split() for line in lines[2:]] == [
        ["a", "bbox", "40.00", "61.24"],
        ["a", "segm", "20.00", "n/a"],
    ]


def test_classes_are_sorted_by_their_precision():
    lines = class_tables({"a": TASKS}).splitlines()
    assert lines[0].split() == ["class", "of", "a", "AP", "(bbox)", "AP", "(segm)"]
    assert [line.split() for line in lines[2:]] == [
        ["dog", "50.00", "15.00"],
        ["cat", "30.00", "25.00"],
        ["fox", "n/a", "n/a"],
    ]


def test_long_tables_show_the_best_and_the_worst():
    values = {f"AP-class {number}": float(number) for number in range(80)}
    rows = class_tables({"coco": {"bbox": values}}).splitlines()[2:]
    assert len(rows) == 21
    assert rows[0].split("  ")[0] == "class 79" and rows[-1].split("  ")[0] == "class 0"
    assert "... 60 more in per_class.csv" in rows[10]


def test_without_classes_there_is_no_table():
    assert class_tables({"a": {"bbox": {"AP": 3.0}}}) == ""


def test_files(tmp_path):
    write_results(tmp_path, TASKS)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["bbox"]["AP50"] == 61.239 and results["segm"]["AP50"] is None
    rows = list(csv.reader((tmp_path / "per_class.csv").open()))
    assert rows[0] == ["class", "AP (bbox)", "AP (segm)"]
    assert rows[1:] == [["dog", "50.00", "15.00"], ["cat", "30.00", "25.00"], ["fox", "n/a", "n/a"]]
