"""Reading a search from its folder."""

import csv
import math
import sys

import numpy as np
import pytest

from fbnetv3.errors import MissingPackageError, UsageError
from fbnetv3.nars import load, search
from fbnetv3.nars.report.charts.report_data import measured_front, trial_costs
from fbnetv3.nars.trials.trial_store import TrialStoreError
from tests.nars.toy import FAST, QUICK, SPACE, evaluate, spent


def test_a_search_is_read_as_it_was_returned(budgeted_search):
    saved = load(budgeted_search.folder)
    assert saved.is_finished and saved.state == "finished"
    assert saved.space.variables == SPACE.variables
    assert saved.best.number == budgeted_search.best.number
    assert saved.comparison_epoch == budgeted_search.comparison_epoch
    assert len(saved.trials) == len(budgeted_search.trials)
    assert saved.settings["evaluations"] == 30
    assert saved.settings["evaluator"] == "tests.nars.toy:evaluate"
    assert saved.settings["columns"] == {"spent": "tests.nars.toy:spent"}
    assert sum(map(len, saved.groups.values())) == len(saved.trials)


def test_recommendations_are_those_of_the_result(budgeted_search):
    saved = load(budgeted_search.folder)
    for data, recommendation in zip(saved.recommendations, budgeted_search.recommendations, strict=True):
        assert data["values"] == dict(recommendation.candidate)
        assert data["measured"] == recommendation.measured
        assert data["predicted_std"] == recommendation.predicted_std
        assert data["columns"] == recommendation.columns
        assert (saved.folder / data["files"]["provenance"]).exists()


def test_the_refitted_predictor_is_that_of_the_search(plain_search):
    predictor = load(plain_search.folder).predictor()
    candidates = SPACE.from_unit(np.random.default_rng(0).random((20, len(SPACE))))
    assert predictor(candidates) == pytest.approx(plain_search.predictor(candidates), abs=1e-6)


def test_costs_are_computed_for_the_trials(budgeted_search):
    saved = load(budgeted_search.folder)
    candidates = np.array([trial.candidate for trial in saved.trials])
    assert saved.columns["spent"].tolist() == spent(candidates).tolist()


def test_functions_that_cannot_be_imported_are_left_out(tmp_path):
    settings = {
        **QUICK,
        "evaluations": 8,
        "columns": {"spent": lambda c: c[:, 0]},
        "budgets": [{"spent": 5}],
    }
    result = search(SPACE, evaluate, tmp_path / "out", **settings, constraints={"spent": 6})
    saved = load(result.folder)
    assert saved.columns == {}
    assert saved.constraints.constraints == ()
    assert np.isfinite(saved.predictor()(saved.best.candidate[None]))


def test_a_table_has_a_row_for_each_trial(budgeted_search, tmp_path):
    saved = load(budgeted_search.folder)
    with saved.write_csv(tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["number"]) for row in rows] == [trial.number for trial in saved.trials]
    for row, trial in zip(rows, saved.trials, strict=True):
        assert float(row["last_value"]) == trial.curve[-1]
        assert row["value"] == (row["last_value"] if len(trial.curve) == 6 else "")
        assert row["kind"] == trial.values["kind"]
        assert float(row["spent"]) == sum(trial.values[f"x{i}"] for i in range(4))
        assert row["predicted"] == ("" if trial.predicted is None else str(trial.predicted))


def test_a_data_frame_has_the_same_rows(budgeted_search, monkeypatch):
    pytest.importorskip("pandas")
    saved = load(budgeted_search.folder)
    frame = saved.to_dataframe()
    assert frame["lr"].tolist() == [trial.values["lr"] for trial in saved.trials]
    assert math.isnan(frame["predicted"][0])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingPackageError, match="pip install pandas"):
        saved.to_dataframe()


def test_several_objectives(tmp_path):
    def measure(candidate, epochs):
        return {
            "accuracy": evaluate(candidate, epochs),
            "latency": sum(candidate[f"x{i}"] for i in range(4)),
        }

    objectives = {"accuracy": "maximize", "latency": "minimize"}
    settings = {**QUICK, "evaluations": 12, "objectives": objectives}
    result = search(SPACE, measure, tmp_path / "out", **settings)
    saved = load(result.folder)
    assert saved.objectives == objectives and saved.sign == 1
    assert [row["latency"] for row in saved.rows()] == [
        sum(trial.values[f"x{i}"] for i in range(4)) for trial in saved.trials
    ]
    column, latencies = trial_costs(saved)
    front = measured_front(saved, column, latencies)
    assert column == "latency"
    assert {trial.number for trial in front} == {trial.number for trial in result.pareto_front}


def test_a_search_that_has_just_begun_has_no_best_trial(tmp_path):
    def interrupted(candidate, epochs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(SPACE, interrupted, tmp_path / "out", epochs=2, predictor=FAST, executor="serial")
    saved = load(tmp_path / "out")
    assert not saved.is_finished and saved.space.name == "toy"
    with pytest.raises(UsageError, match="no trials have finished yet"):
        saved.best  # noqa: B018
    with pytest.raises(UsageError, match="the predictor needs 2 finished trials"):
        saved.predictor()


def test_a_folder_without_a_search_is_an_error(tmp_path):
    with pytest.raises(TrialStoreError, match="contains no search"):
        load(tmp_path)
