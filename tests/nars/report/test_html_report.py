"""Contents of a search's report, and what it omits."""

import contextlib
import json
import warnings

import pytest

from fbnetv3.errors import OutputError
from fbnetv3.nars import save_analysis, search, write_report
from fbnetv3.nars.algorithm.trial_store import FINISHED, TrialStore, TrialStoreError
from tests.nars.toy import QUICK, SPACE, evaluate, spent


def run_search(folder, **settings):
    return search(SPACE, evaluate, folder, **{**QUICK, "rounds": 1, "batch": 3, **settings})


@pytest.mark.parametrize(
    ("num_trials", "expected"),
    [(2, set()), (3, {"predictor"}), (5, {"predictor", "samples"})],
    ids=("two", "three", "five"),
)
def test_figures_that_need_more_trials_are_omitted(num_trials, expected, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run_search(tmp_path / "out", batch=num_trials)
        save_analysis(result)
        write_report(result.folder)
    figures = {path.stem for path in (tmp_path / "out/report").glob("*.png")}
    assert figures & {"predictor", "samples"} == expected
    analysis = (tmp_path / "out/analysis.json").read_text()
    assert "NaN" not in analysis
    assert len(json.loads(analysis)["recommendations"]) == len(result.recommendations)


def test_the_page_has_recommendations_rounds_figures_and_settings(tmp_path):
    budgets = {"columns": {"spent": spent}, "budgets": [{"spent": 12}, {"spent": 18}]}
    result = run_search(tmp_path / "out", rounds=2, **budgets)
    save_analysis(result)
    page = write_report(result.folder).read_text()
    for recommendation in result.recommendations:
        assert f"<td>{recommendation.files.name}</td>" in page
        assert f'href="{recommendation.files.provenance.relative_to(result.folder)}"' in page
    assert "6 trials completed, 0 failed" in page and "<th>spent</th>" in page
    assert page.count("data:image/png;base64,") == len(list((tmp_path / "out/report").glob("*.png"))) >= 4
    assert "<td>batch</td><td>3</td>" in page
    assert "{{" not in page and "{%" not in page


def test_texts_of_the_search_are_escaped(tmp_path):
    result = run_search(tmp_path / "out", columns={"<script>": spent})
    page = write_report(result.folder).read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page


def test_without_an_analysis_the_report_shows_the_trials(tmp_path):
    result = run_search(tmp_path / "out")
    page = write_report(result.folder).read_text()
    assert "The search has finished, but its analysis is missing" in page
    assert "<h2>Recommended</h2>" not in page and "3 trials completed" in page
    with contextlib.closing(TrialStore(result.folder)) as store:
        store.update_metadata({FINISHED: None})  # as while it runs
    assert "The search has not finished" in write_report(result.folder).read_text()


def test_early_stopping_has_a_figure_if_it_was_possible(tmp_path):
    for num_trials in (4, 5):
        result = run_search(tmp_path / f"{num_trials}", batch=num_trials)
        write_report(result.folder)
        assert (result.folder / "report" / "stopping.png").exists() == (num_trials == 5)


def test_a_corrupt_analysis_is_named(tmp_path):
    result = run_search(tmp_path / "out")
    (tmp_path / "out/analysis.json").write_text('{"recommendations": [')
    with pytest.raises(
        TrialStoreError, match=r"analysis\.json: is corrupt .*; delete it and resume the search"
    ):
        write_report(result.folder)


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    result = run_search(tmp_path / "out")
    (tmp_path / "out/report").write_text("in the way")
    with pytest.raises(OutputError, match="report: cannot be written: File exists"):
        write_report(result.folder)
