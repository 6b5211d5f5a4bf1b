"""Progress of a search as text: stages, a line for each trial that ends, and a bar on a terminal."""

import io

import numpy as np
import pytest

from fbnetv3.nars import search
from fbnetv3.nars.report.progress_table import ProgressTable, format_prediction
from fbnetv3.nars.trials.progress import SearchProgress
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, Segment, Trial
from tests.nars.toy import QUICK, SPACE, evaluate


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trial(number, status=COMPLETED, curve=(70.0, 75.0), epochs=2, **fields):
    error = "ValueError: no" if status == FAILED else None
    segment = Segment(
        number=number,
        trial=number,
        epochs=epochs,
        status=status,
        attempts=1,
        error=error,
        seconds=12.34,
        ended=0.0,
        state={},
    )
    values = {"phase": "proposed", "predicted": None, "predicted_std": None, **fields}
    return Trial(
        number=number,
        candidate=np.zeros(1, int),
        values={},
        round=0,
        budget=None,
        curve=curve,
        segments=(segment,),
        **values,
    )


def progress(*trials, ended=None, **fields):
    done = sum(len(item.curve) for item in trials)
    values = {"full_epochs": 2, "epochs_done": done, "epochs_planned": 20, **fields}
    return SearchProgress("trials", trials, ended=ended, **values)


def test_each_stage_is_described_once():
    stream = io.StringIO()
    table = ProgressTable(stream)
    for stage in ("pretraining", "pretraining", "evolution", "done"):
        table(SearchProgress(stage))
    assert stream.getvalue().splitlines() == [
        "pretraining the predictor on architecture statistics",
        "choosing a candidate for each budget",
        "search finished",
    ]


def test_a_trial_that_ends_has_a_line_with_its_prediction_and_the_best():
    stream = io.StringIO()
    table = ProgressTable(stream)
    best = trial(0, phase="initial")
    paused = trial(1, curve=(71.5,), epochs=1, predicted=77.12, predicted_std=0.426)
    table(progress())
    table(progress(best, ended=best, best=best))
    table(progress(best, paused, best=best))  # it has started
    table(progress(best, paused, ended=paused, best=best))
    header, *rows = [line.split() for line in stream.getvalue().splitlines()]
    assert header == ["trial", "phase", "epochs", "value", "predicted", "best", "so", "far", "seconds"]
    assert rows == [
        ["0", "initial", "2/2", "75", "75", "(trial", "0)", "12.3"],
        ["1", "proposed", "1/2", "71.5", "77.12", "±", "0.43", "75", "(trial", "0)", "12.3"],
    ]


def test_a_failure_has_one_line_with_its_error():
    stream = io.StringIO()
    failed = trial(0, FAILED, curve=())
    ProgressTable(stream)(progress(failed, ended=failed, message="trial 0 failed: ValueError: no"))
    assert stream.getvalue().splitlines()[1:] == ["trial 0 failed: ValueError: no"]


def test_a_terminal_has_a_bar_below_the_lines():
    stream = Terminal()
    table = ProgressTable(stream)
    done = trial(0)
    table(progress(done, ended=done, best=done, seconds_left=83.0))
    assert "10%|" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("2/20 epochs, 1:23 left")
    table(SearchProgress("done"))
    assert stream.getvalue().endswith("search finished\n")


def test_a_resumed_search_says_what_it_has():
    stream = io.StringIO()
    ProgressTable(stream)(progress(trial(0), trial(1, curve=(60.0,))))
    assert stream.getvalue().splitlines()[0] == "resuming a search with 2 trials, 3 of 20 epochs"


def test_a_search_reports_each_of_its_trials(tmp_path):
    stream = io.StringIO()
    table = ProgressTable(stream)
    result = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 10}, on_progress=table)
    lines = [line.split() for line in stream.getvalue().splitlines()]
    numbers = {int(line[0]) for line in lines if line[0].isdecimal()}
    assert numbers == {item.number for item in result.trials}


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (None, None, ""),
        (77.123456, None, "77.123"),
        (77.123456, 0.0, "77.123"),
        (77.123456, 0.4, "77.12 ± 0.40"),
        (77.123456, 12.6, "77 ± 13"),
        (1234.5, 250, "1234 ± 250"),
        (0.0123456, 0.000123, "0.01235 ± 0.00012"),
        (1.5, 1e-9, "1.5 ± 1e-09"),
    ],
)
def test_predictions_have_two_digits_of_their_deviation(mean, std, text):
    assert format_prediction(mean, std) == text
