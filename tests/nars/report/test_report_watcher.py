"""The report is rewritten until the search finishes."""

import contextlib

import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars import save_analysis, search
from fbnetv3.nars.report.report_watcher import watch_search
from fbnetv3.nars.trials.trial_store import FINISHED, STOPPED_BY_FAILURES, TrialStore
from tests.nars.toy import PAPER_QUICK, SPACE, evaluate


@pytest.fixture
def finished(tmp_path):
    return search(SPACE, evaluate, tmp_path / "out", **{**PAPER_QUICK, "rounds": 1, "round_size": 3})


def set_metadata(folder, **values):
    with contextlib.closing(TrialStore(folder)) as store:
        store.update_metadata(values)


def test_the_page_is_rewritten_until_the_analysis_is_there(finished):
    page = finished.folder / "report.html"
    refreshes = []
    with contextlib.closing(TrialStore(finished.folder)) as store:
        time = store.metadata()[FINISHED]
    set_metadata(finished.folder, finished=None)

    def sleep(seconds):
        """Finish the search, then analyze it."""
        refreshes.append(f'content="{seconds}"' in page.read_text())
        if len(refreshes) == 1:
            set_metadata(finished.folder, finished=time)
        else:
            save_analysis(finished)

    lines = []
    assert watch_search(finished.folder, 7, show=lines.append, sleep=sleep) == page
    assert refreshes == [True, True]
    assert 'http-equiv="refresh"' not in page.read_text()
    assert [line.split(":")[0] for line in lines] == ["not finished", "finished", "report"]
    assert f"(trial {finished.best.number})" in lines[0]


def test_a_search_that_is_never_analyzed_ends_the_watch(finished):
    set_metadata(finished.folder, finished=1.0)  # long ago
    watch_search(finished.folder, show=lambda line: None, sleep=pytest.fail)


def test_a_search_that_has_stopped_ends_the_watch(finished):
    set_metadata(finished.folder, **{FINISHED: None, STOPPED_BY_FAILURES: True})
    lines = []
    watch_search(finished.folder, show=lines.append, sleep=pytest.fail)
    assert lines[0].startswith("stopped by failures: 18 of 18 epochs")


def test_a_search_that_stopped_without_results_is_an_error(tmp_path):
    with contextlib.closing(TrialStore(tmp_path, create=True)) as store:
        store.update_metadata({STOPPED_BY_FAILURES: True})
    with pytest.raises(UsageError, match="no trials have finished yet"):
        watch_search(tmp_path, show=lambda line: None)
