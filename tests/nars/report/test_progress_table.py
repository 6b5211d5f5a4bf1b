"""Progress of a search as text: stages on the terminal, and the failed trials of a search in a folder."""

import contextlib
import io

import numpy as np

from fbnetv3.nars.algorithm.rounds import SearchProgress
from fbnetv3.nars.algorithm.trial_store import TrialStore
from fbnetv3.nars.report.progress_table import ProgressTable, describe_search


def test_each_stage_is_described_once():
    stream = io.StringIO()
    table = ProgressTable(stream)
    for stage in ("pretraining", "pretraining", "evolution", "done"):
        table(SearchProgress(stage))
    assert stream.getvalue().splitlines() == [
        "pretraining the predictor on architecture statistics",
        "searching for the best candidate within each budget",
        "search finished",
    ]


def test_failures_that_are_not_shown_are_counted(tmp_path):
    with contextlib.closing(TrialStore(tmp_path, create=True)) as store:
        store.add_round(0, np.zeros((12, 2), int), epochs=1)
        for number in range(12):
            store.fail(number, "unlucky", 1.0, retry=False)
    *_, tenth, rest = describe_search(tmp_path).splitlines()
    assert tenth == "trial 9 failed: unlucky"
    assert rest == "... and 2 more failed trials"
