"""Contents of a search's report, and what it omits."""

import contextlib
import importlib.util
import json
import re
import warnings

import pytest

from fbnetv3.errors import OutputError, UsageError
from fbnetv3.nars import load, save_analysis, search, write_report
from fbnetv3.nars.trials.trial_store import FINISHED, Proposal, TrialStore, TrialStoreError
from tests.nars.toy import PAPER_QUICK, QUICK, SPACE, evaluate, spent

PAPER = {**PAPER_QUICK, "rounds": 1, "round_size": 3}


def run_search(folder, **settings):
    return search(SPACE, evaluate, folder, **settings)


def report_data(page):
    """Return the charts of a page, and the texts of its trials."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def own_text(page):
    """Return a page without the source of plotly.js."""
    return re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def analyzed(tmp_path_factory):
    """A search with budgets and a reference network, its analysis, and its page."""
    settings = {
        "evaluations": 20,
        "columns": {"spent": spent},
        "budgets": [{"spent": 12}, {"spent": 18}],
        "reference_networks": {"net a": {"spent": 9, "accuracy": 85}},
    }
    result = run_search(tmp_path_factory.mktemp("analyzed") / "out", **{**QUICK, **settings})
    save_analysis(result)
    return result, write_report(result.folder).read_text()


def hide_plotly(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "plotly" else find_spec(name, *rest),
    )


def test_recommendations_are_at_the_top_with_their_reasons_and_files(analyzed):
    result, page = analyzed
    for item in result.recommendations:
        budget = item.name
        assert f'<td class="main">{budget}</td>' in page
        assert f'href="{item.files.provenance.relative_to(result.folder)}"' in page
        assert f"<strong>{budget}</strong>: Trial {item.trial.number} has the best" in page
    assert "<th>spent</th>" in page
    assert page.index("<h2>Recommendations</h2>") < page.index("<h2>Values of the trials</h2>")
    assert "{{" not in own_text(page).split("<script>")[0] and "{%" not in own_text(page)


def test_charts_show_all_trials_with_their_values(analyzed):
    result, page = analyzed
    data = report_data(page)
    assert {"trials", "pareto", "curves", "predicted", "importance", "parallel", "slice0"} <= set(
        data["charts"]
    )
    assert set(data["trials"]) == {str(trial.number) for trial in result.trials}
    shown = [number for trace in data["charts"]["trials"]["data"] for number in trace.get("trials", ())]
    assert sorted(shown) == [trial.number for trial in result.trials]
    for trial in result.trials:
        assert f"kind: {trial.values['kind']}" in data["trials"][str(trial.number)]


def test_the_best_so_far_never_gets_worse(analyzed):
    result, page = analyzed
    *_, best = report_data(page)["charts"]["trials"]["data"]
    assert best["y"] == sorted(best["y"])
    assert best["y"][-1] == result.best.value(6)


def test_costs_have_fronts_recommendations_and_references(analyzed):
    result, page = analyzed
    traces = {trace["name"]: trace for trace in report_data(page)["charts"]["pareto"]["data"]}
    assert traces["reference"]["x"] == [9] and traces["reference"]["text"] == ["net a"]
    assert traces["recommended"]["y"] == [item.measured for item in result.recommendations]
    front = traces["measured front"]
    assert front["x"] == sorted(front["x"]) and front["y"] == sorted(front["y"])
    assert len(traces["predicted front"]["x"]) >= 3


def test_what_matters_to_the_accuracies_is_most_important(analyzed):
    """A quadratic of the learning rate has four times the variance of one of the other integers."""
    result, _ = analyzed
    importance = load(result.folder).analysis["importance"]
    totals = {variable["name"]: variable["total"] for variable in importance["variables"]}
    assert max(totals, key=totals.get) == "lr"
    assert len(totals) == 6


def test_the_page_requests_nothing_and_is_small(analyzed):
    _, page = analyzed
    assert not re.findall(r'(?:src|href)="https?:|@import|url\(', own_text(page))
    assert len(page) < 6e6
    assert page.count("<script>/**") == 1  # plotly.js, once


def test_without_plotly_the_figures_are_static(analyzed, monkeypatch):
    result, _ = analyzed
    hide_plotly(monkeypatch)
    page = write_report(result.folder).read_text()
    assert "pip install plotly" in page and len(page) < 1e6
    figures = {path.stem for path in (result.folder / "report").glob("*.png")}
    assert {"trials", "pareto", "predicted", "importance", "predictor", "samples"} <= figures
    assert page.count("data:image/png;base64,") == len(figures)


def test_rounds_of_algorithm_1_are_shown_by_round(paper_search):
    save_analysis(paper_search)
    page = write_report(paper_search.folder).read_text()
    assert "<td>round 3</td>" in page and "<th>phase</th>" not in page
    names = [trace["name"] for trace in report_data(page)["charts"]["trials"]["data"]]
    assert names[:3] == ["round 1", "round 2", "round 3"]
    figures = {path.stem for path in (paper_search.folder / "report").glob("*.png")}
    assert {"rounds", "predictor", "samples", "stopping"} <= figures
    assert "is predicted to be best within the budget; it has not been trained" in page


def test_lower_values_can_be_better(tmp_path):
    def loss(candidate, epochs):
        return [100 - value for value in evaluate(candidate, epochs)]

    settings = {**QUICK, "evaluations": 12, "direction": "minimize"}
    result = search(SPACE, loss, tmp_path / "out", **settings)
    page = write_report(result.folder).read_text()
    assert "lower is better" in page
    *_, best = report_data(page)["charts"]["trials"]["data"]
    assert best["y"] == sorted(best["y"], reverse=True)


@pytest.mark.parametrize(
    ("num_trials", "expected"),
    [(2, set()), (3, {"predictor"}), (5, {"predictor", "samples"})],
    ids=("two", "three", "five"),
)
def test_figures_that_need_more_trials_are_omitted(num_trials, expected, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run_search(tmp_path / "out", **{**PAPER, "round_size": num_trials})
        save_analysis(result)
        write_report(result.folder)
    figures = {path.stem for path in (tmp_path / "out/report").glob("*.png")}
    assert figures & {"predictor", "samples"} == expected
    assert "NaN" not in (tmp_path / "out/analysis.json").read_text()


def test_an_analysis_ends_in_time(tmp_path):
    result = run_search(tmp_path / "out", **PAPER)
    analysis = json.loads(save_analysis(result, max_seconds=0).read_text())
    assert analysis["importance"] is analysis["front"] is analysis["cross_validation"] is None
    write_report(result.folder)


def test_texts_of_the_search_are_escaped(tmp_path):
    result = run_search(tmp_path / "out", **PAPER, columns={"<script>alert": spent})
    page = write_report(result.folder).read_text()
    assert "&lt;script&gt;alert" in page and "<script>alert" not in page


def test_without_an_analysis_the_report_shows_the_trials(tmp_path):
    result = run_search(tmp_path / "out", **PAPER)
    page = write_report(result.folder).read_text()
    assert "The search has finished, but its analysis is missing" in page
    assert "3 trials completed" in page and 'http-equiv="refresh"' not in page
    with contextlib.closing(TrialStore(result.folder)) as store:
        store.update_metadata({FINISHED: None, "outputs": []})  # as while it runs
    page = write_report(result.folder, refresh_seconds=5).read_text()
    assert "The search has not finished" in page and "<h2>Best trial so far</h2>" in page
    assert '<meta http-equiv="refresh" content="5">' in page


def test_failed_trials_are_listed_with_their_errors(tmp_path):
    result = run_search(tmp_path / "out", **PAPER)
    with contextlib.closing(TrialStore(result.folder)) as store:
        (segment,) = store.add([Proposal(6, result.best.candidate)], SPACE.decode)
        store.fail(segment.number, "RuntimeError: out of <memory>", 1.0, retry=False)
    page = write_report(result.folder).read_text()
    assert '<td class="text">RuntimeError: out of &lt;memory&gt;</td>' in page
    assert "1 failed" in page


def test_early_stopping_has_a_figure_if_it_was_possible(tmp_path):
    for num_trials in (4, 5):
        result = run_search(tmp_path / f"{num_trials}", **{**PAPER, "round_size": num_trials})
        write_report(result.folder)
        assert (result.folder / "report" / "stopping.png").exists() == (num_trials == 5)


def test_a_search_without_results_has_no_report(tmp_path):
    with contextlib.closing(TrialStore(tmp_path, create=True)) as store:
        store.add([Proposal(2, SPACE.from_unit([[0.5] * len(SPACE)])[0])], SPACE.decode)
    with pytest.raises(UsageError, match="no trials have finished yet"):
        write_report(tmp_path)


def test_a_corrupt_analysis_is_named(tmp_path):
    result = run_search(tmp_path / "out", **PAPER)
    (tmp_path / "out/analysis.json").write_text('{"recommendations": [')
    with pytest.raises(
        TrialStoreError, match=r"analysis\.json: is corrupt .*; delete it and resume the search"
    ):
        write_report(result.folder)


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    result = run_search(tmp_path / "out", **PAPER)
    (tmp_path / "out/report").write_text("in the way")
    with pytest.raises(OutputError, match="report: cannot be written: File exists"):
        write_report(result.folder)
