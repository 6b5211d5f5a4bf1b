"""Attempts at trials of a space with one variable, and a loop that runs them on an executor."""

import numpy as np

from fbnetv3.nars.execution.attempts import SearchContext, TrialAttempt
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict({"name": "one", "variables": {"a": {"range": [0, 99]}}})


def make_attempt(number, epochs=2, folder=None, alone=False):
    vector = np.array([number])
    return TrialAttempt(number, number, vector, epochs, epochs, seed=7, folder=folder, alone=alone)


def run_attempts(executor, *attempts):
    """Return outcomes by number; never run more attempts at a time than there are slots."""
    waiting = list(attempts)
    outcomes = {}
    num_running = 0
    while waiting or num_running:
        while waiting and num_running < executor.slots:
            executor.submit(waiting.pop(0))
            num_running += 1
        for outcome in executor.wait(1.0):
            outcomes[outcome.number] = outcome
            num_running -= 1
    return outcomes


def open_for_tests(evaluator, folder, name="local", **options):
    """Open an executor with two workers."""
    options = {"workers": 2, "logs": folder / "logs", **options}
    return open_executor(name, SearchContext(SPACE, evaluator), ExecutorOptions(**options))
