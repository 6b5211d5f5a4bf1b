"""Asking for candidates and telling their values: alone, from several processes, and after kills."""

import csv
import multiprocessing
import re
import time

import numpy as np
import pytest

from fbnetv3.errors import FieldError, UsageError, UserError
from fbnetv3.nars import Candidate, Search, search, space_from_dict
from fbnetv3.nars.trials.history import visible_history
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, GIVEN, RUNNING, TrialStoreError
from tests.nars.toy import QUICK, SPACE, evaluate, outcome

SETTINGS = {**QUICK, "evaluations": 14, "initial_trials": 6}
OWN = {"x0": 5, "x1": 5, "x2": 5, "x3": 5, "kind": "b", "lr": 3}  # the best of all


def run_to_end(asked):
    while candidates := asked.ask():
        for candidate in candidates:
            asked.tell(candidate, evaluate(candidate, candidate.epochs))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    asked = Search(SPACE, tmp_path_factory.mktemp("asked") / "out", **SETTINGS)
    run_to_end(asked)
    return asked


@pytest.fixture
def started(tmp_path):
    """A search with two completed trials."""
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    for candidate in asked.ask(2):
        asked.tell(candidate, evaluate(candidate, candidate.epochs))
    return asked


def test_trials_and_recommendations_are_those_of_a_search(finished, tmp_path):
    search(SPACE, evaluate, tmp_path / "out", **SETTINGS)
    finished.result()
    assert outcome(finished.folder) == outcome(tmp_path / "out")


def test_after_the_last_evaluation_there_is_nothing_to_ask_for(finished):
    assert finished.ask() == finished.ask(10) == []
    assert len(finished.trials) == 14 and {trial.status for trial in finished.trials} == {COMPLETED}
    assert sum(trial.epochs for trial in finished.trials) == 14 * SETTINGS["epochs"]


def test_the_best_trial_and_the_recommendation(finished):
    assert finished.best.value(6) == max(trial.value(6) for trial in finished.trials)
    (recommendation,) = finished.result().recommendations
    # Values without noise: the best measured is the best
    assert recommendation.trial.number == finished.best.number == finished.incumbent.number
    assert recommendation.measured == finished.best.value(6)
    assert recommendation.files.provenance.exists()


def test_candidates_know_what_their_evaluation_needs(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    first, second = asked.ask(2)
    assert (first.number, second.number) == (0, 1)
    assert first.epochs == first.full_epochs == 6
    assert first.seed != second.seed and first.folder != second.folder
    assert set(first) == {"x0", "x1", "x2", "x3", "kind", "lr"}
    assert [trial.status for trial in asked.trials] == [RUNNING, RUNNING]


def test_several_candidates_at_once_differ_and_stay_within_the_evaluations(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    candidates = asked.ask(8)
    for candidate in candidates[::-1]:
        asked.tell(candidate, evaluate(candidate, candidate.epochs))
    candidates += asked.ask(50)
    assert len(candidates) == 14 == len({candidate.vector.tobytes() for candidate in candidates})
    assert asked.ask() == []


def test_a_search_is_continued_by_opening_its_folder_again(started):
    again = Search(SPACE, started.folder, **SETTINGS)
    assert [trial.curve for trial in again.trials] == [trial.curve for trial in started.trials]
    (candidate,) = again.ask()
    assert candidate.number == 2


def test_other_settings_are_refused(started):
    with pytest.raises(TrialStoreError, match=r"a different seed \(0, now 5\)"):
        Search(SPACE, started.folder, **SETTINGS, seed=5)


@pytest.mark.parametrize(
    ("curve", "message"),
    [
        ([1.0], "expected one accuracy for each of 6 epochs, got 1"),
        ([1.0] * 7, "expected one accuracy for each of 6 epochs, got 7"),
        ([1.0] * 5 + [float("nan")], "the accuracy after epoch 6 is nan"),
        (None, "got None"),
        ("good", "got 'good'"),
    ],
)
def test_values_that_are_no_learning_curve_are_refused_and_can_be_told_again(started, curve, message):
    (candidate,) = started.ask()
    with pytest.raises(UsageError, match=message):
        started.tell(candidate, curve)
    assert started.tell(candidate, [1.0] * 6).curve == (1.0,) * 6


def test_telling_twice_is_refused(started):
    (candidate,) = started.ask()
    started.tell(candidate, [2.0] * 6)
    message = "candidate 2 is not being evaluated to epoch 6: .* its value was told before"
    with pytest.raises(UsageError, match=message):
        started.tell(candidate, [3.0] * 6)
    with pytest.raises(UsageError, match=message):
        started.tell_failure(candidate, "too late")
    assert started.trials[2].curve == (2.0,) * 6


def test_a_candidate_of_another_search_is_refused(started, tmp_path):
    other = Search(SPACE, tmp_path / "other", **SETTINGS, seed=1)
    foreign = other.ask(3)[2]
    started.ask()
    with pytest.raises(UsageError, match="candidate 2 is not being evaluated .* not from `ask`"):
        started.tell(foreign, [1.0] * 6)
    small = space_from_dict({"name": "small", "variables": {"x": {"range": [0, 99]}}})
    foreign = Search(small, tmp_path / "small", **SETTINGS).ask(3)[2]
    with pytest.raises(UsageError, match="candidate 2 is not being evaluated"):
        started.tell(foreign, [1.0] * 6)
    assert started.trials[2].status == RUNNING


def test_a_failure_is_recorded_and_its_candidate_not_proposed_again(started):
    (candidate,) = started.ask()
    trial = started.tell_failure(candidate, "out of memory")
    assert (trial.status, trial.error, trial.curve) == (FAILED, "out of memory", ())
    run_to_end(started)
    candidates = [trial.candidate.tobytes() for trial in started.trials]
    assert len(candidates) == len(set(candidates)) == 14
    assert [trial.number for trial in started.trials if trial.status == FAILED] == [2]


def test_candidates_of_ones_own_count_as_trials(started):
    trial = started.tell(OWN, [80.0, 84.0, 87.0, 90.0, 91.0, 92.0])
    assert (trial.phase, trial.status, trial.number) == (GIVEN, COMPLETED, 2)
    assert trial.values == OWN
    assert started.best.number == 2
    run_to_end(started)
    assert len(started.trials) == 14
    assert SPACE.encode(OWN).tobytes() not in {t.candidate.tobytes() for t in started.trials[3:]}
    assert started.result().recommendations[0].trial.number == 2


def test_a_number_is_enough_for_one_epoch(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **{**SETTINGS, "epochs": 1})
    (candidate,) = asked.ask()
    assert asked.tell(candidate, 3).curve == (3.0,)
    assert asked.tell(OWN, 4.5).curve == (4.5,)


@pytest.mark.parametrize(
    ("values", "curve", "error", "message"),
    [
        ({**OWN, "kind": "z"}, [1.0] * 6, FieldError, "kind"),
        ({**OWN, "x9": 1}, [1.0] * 6, FieldError, "x9"),
        (OWN, [float("nan")] * 6, UsageError, "the accuracy after epoch 1 is nan"),
        (OWN, [1.0] * 7, UsageError, "the curve has 7 values; expected one for each of 1 to 6 epochs"),
        (OWN, [], UsageError, "the curve has 0 values"),
        (OWN, ["high"], UsageError, "high"),
    ],
)
def test_a_candidate_of_ones_own_with_an_error_leaves_no_trial(started, values, curve, error, message):
    with pytest.raises(error, match=message):
        started.tell(values, curve)
    assert len(started.trials) == 2
    assert started.ask()[0].number == 2


def test_reclaimed_candidates_are_asked_for_again(started):
    asked = started.ask(3)
    started.tell(asked[1], [1.0] * 6)
    assert started.reclaim() == 2
    again = started.ask(2)
    assert [candidate.number for candidate in again] == [2, 4]
    assert [candidate.seed for candidate in again] == [asked[0].seed, asked[2].seed]
    assert again[0].vector.tolist() == asked[0].vector.tolist()
    # Whoever was asked first may still tell; the value counts once
    started.tell(asked[0], [2.0] * 6)
    with pytest.raises(UsageError, match="candidate 2 is not being evaluated"):
        started.tell(again[0], [2.0] * 6)


def test_nothing_to_conclude_yet(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    with pytest.raises(UsageError, match="no trial has reached the last epoch yet"):
        _ = asked.best
    candidate, _ = asked.ask(2)
    asked.tell(candidate, evaluate(candidate, 6))
    assert asked.best.number == asked.incumbent.number == 0
    with pytest.raises(UsageError, match="fewer than 2 trials have reached epoch 6"):
        asked.result()


def test_settings_and_keywords_exclude_each_other(tmp_path, finished):
    with pytest.raises(UsageError, match="pass either settings or keywords, not both: seed"):
        Search(SPACE, tmp_path / "out", finished.result().settings, seed=1)


def test_rounds_of_algorithm_1_are_asked_for_one_after_another(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **{**SETTINGS, "paper": True, "rounds": 2, "round_size": 5})
    first = asked.ask(99)
    assert len(first) == 5 and asked.ask() == []
    for candidate in first[1:]:
        asked.tell(candidate, evaluate(candidate, candidate.epochs))
    assert asked.ask() == []
    asked.tell(first[0], evaluate(first[0], first[0].epochs))
    assert [candidate.number for candidate in asked.ask(99)] == [5, 6, 7, 8, 9]


def ask_and_tell(folder, log):
    """Ask and tell until the search is over; log the number of each candidate before and after."""
    asked = Search(SPACE, folder, **SETTINGS)
    while candidates := asked.ask():
        for candidate in candidates:
            write_line(log, f"asked {candidate.number}")
            time.sleep(0.01 * (candidate.number % 3))
            asked.tell(candidate, evaluate(candidate, candidate.epochs))
            write_line(log, f"told {candidate.number}")


def write_line(file, line):
    with file.open("a") as stream:
        stream.write(line + "\n")


def logged(file, word):
    return [int(number) for number in re.findall(rf"{word} (\d+)", file.read_text())]


def start_process(*arguments):
    process = multiprocessing.get_context("fork").Process(target=ask_and_tell, args=arguments)
    process.start()
    return process


def test_processes_that_ask_and_tell_in_one_folder_get_different_candidates(tmp_path):
    processes = [start_process(tmp_path / "out", tmp_path / "log") for _ in range(3)]
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert sorted(logged(tmp_path / "log", "asked")) == list(range(14))
    trials = Search(SPACE, tmp_path / "out", **SETTINGS).trials
    assert len({trial.candidate.tobytes() for trial in trials}) == 14
    assert {trial.status for trial in trials} == {COMPLETED}


def test_processes_killed_again_and_again_lose_only_what_was_not_told(tmp_path):
    """Killed at random moments: while asking, evaluating or telling."""
    folder, log = tmp_path / "out", tmp_path / "log"
    rng = np.random.default_rng(0)
    asked = Search(SPACE, folder, **SETTINGS)
    for _ in range(12):
        process = start_process(folder, log)
        process.join(rng.uniform(0.02, 0.4))
        process.kill()
        process.join()
        assert asked.reclaim() <= 1
    process = start_process(folder, log)
    process.join()
    assert process.exitcode == 0
    trials = asked.trials
    assert [trial.number for trial in trials] == list(range(14))
    assert {trial.status for trial in trials} == {COMPLETED}
    assert len({trial.candidate.tobytes() for trial in trials}) == 14
    told = logged(log, "told")
    assert len(told) == len(set(told)), "no value is told twice"
    assert len(logged(log, "asked")) <= 14 + 12, "only what was being evaluated is asked for again"


def fill_in(file, value):
    """Fill in the values of a file of candidates as a user would, in a text editor or another program."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, **value(row)} for row in rows)
    return rows


def test_candidates_leave_and_values_return_by_csv(tmp_path):
    """The trials are those of the same values told one by one."""
    by_csv = Search(SPACE, tmp_path / "csv", **SETTINGS)
    by_hand = Search(SPACE, tmp_path / "hand", **SETTINGS)
    file = tmp_path / "candidates.csv"
    for count in (6, 1, 1):
        candidates = by_hand.ask(count)
        assert by_csv.ask_csv(file, count) == count
        curves = {str(item.number): evaluate(item, item.epochs) for item in candidates}
        rows = fill_in(file, lambda row, curves=curves: {"value": " ".join(map(str, curves[row["trial"]]))})
        assert [row["kind"] for row in rows] == [item["kind"] for item in candidates]
        assert by_csv.tell_csv(file) == count
        assert by_csv.tell_csv(file) == 0, "values are recorded once"
        for item in candidates:
            by_hand.tell(item, curves[str(item.number)])
    assert [trial.curve for trial in by_csv.trials] == [trial.curve for trial in by_hand.trials]


def test_rows_without_a_value_wait(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **{**SETTINGS, "epochs": 1})
    file = tmp_path / "candidates.csv"
    asked.ask_csv(file, 3)
    fill_in(file, lambda row: {"value": "90.5" if row["trial"] == "1" else ""})
    assert asked.tell_csv(file) == 1
    assert [trial.curve for trial in asked.trials] == [(), (90.5,), ()]


def test_candidates_are_not_lost_with_the_file(tmp_path):
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    with pytest.raises(UserError, match="cannot be written"):
        asked.ask_csv(tmp_path / "nowhere" / "candidates.csv", 3)
    assert not asked.trials
    file = tmp_path / "candidates.csv"
    asked.ask_csv(file, 3)
    text = file.read_text()
    with pytest.raises(UsageError, match="has candidates whose values are not known yet, such as trial 0"):
        asked.ask_csv(file, 3)
    assert file.read_text() == text
    asked.reclaim()
    assert asked.ask_csv(file, 3) == 3
    assert file.read_text() == text


def test_a_csv_file_of_several_objectives_and_inactive_variables(tmp_path):
    variables = {"a": {"choices": ["x, y", "z"]}, "b": {"range": [0, 3], "when": {"a": "z"}}}
    objectives = {"up": "maximize", "down": "minimize"}
    asked = Search(
        space_from_dict({"name": "csv", "variables": variables}),
        tmp_path / "out",
        epochs=1,
        evaluations=5,
        objectives=objectives,
    )
    file = tmp_path / "candidates.csv"
    asked.ask_csv(file, 4)
    rows = fill_in(file, lambda row: {"up": row["trial"], "down": "2"})
    assert {(row["a"], row["b"] != "") for row in rows} == {("x, y", False), ("z", True)}
    assert asked.tell_csv(file) == 4
    assert [(trial.curve, trial.objectives) for trial in asked.trials] == [
        ((float(number),), {"down": 2.0}) for number in range(4)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trial,values\n0,1\n", 'lacks the column "value"; keep the columns that the file had'),
        ("trial,value\n0,good\n", "line 2: trial '0', value 'good' must be numbers"),
        ("trial,value\n7,1 2 3 4 5 6\n", "trial 7 is not a trial of"),
        (
            "trial,value\n0,1 2\n",
            "candidates.csv: trial 0: expected one accuracy for each of 6 epochs, got 2",
        ),
    ],
)
def test_csv_files_that_are_not_taken(text, message, tmp_path):
    asked = Search(SPACE, tmp_path / "out", **SETTINGS)
    asked.ask(1)
    file = tmp_path / "candidates.csv"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        asked.tell_csv(file)
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        asked.tell_csv(tmp_path / "nowhere.csv")
    file.write_text("trial,value\n0," + "1" * 200_000 + "\n")  # longer than any cell that csv reads
    with pytest.raises(UsageError, match="cannot be read as CSV"):
        asked.tell_csv(file)


def test_an_own_candidate_does_not_reset_what_the_model_has_learned(started):
    """The next fit starts from the last one, and final trials are still counted."""
    while len(started.trials) < 8:
        for candidate in started.ask():
            started.tell(candidate, evaluate(candidate, candidate.epochs))
    before = visible_history(started.trials, SETTINGS["epochs"]).state
    started.tell(OWN, evaluate(Candidate(SPACE, SPACE.encode(OWN)), 6))
    assert before and visible_history(started.trials, SETTINGS["epochs"]).state == before
