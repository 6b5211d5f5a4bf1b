"""Jobs of a space with one variable, and a loop that runs them on an executor."""

import numpy as np

from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.execution.jobs import Job, JobContext
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict({"name": "one", "variables": {"a": {"range": [0, 99]}}})


def make_job(number, epochs=2, folder=None):
    return Job(number, np.array([number]), epochs, epochs, seed=7, folder=folder)


def run_jobs(executor, *jobs):
    """Return outcomes by job number; never run more jobs at a time than there are slots."""
    waiting = list(jobs)
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
    """Open an executor of two workers."""
    options = {"workers": 2, "logs": folder / "logs", **options}
    return open_executor(name, JobContext(SPACE, evaluator), ExecutorOptions(**options))
