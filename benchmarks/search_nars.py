"""NARS as a searcher of the search benchmark: the same interface as the searchers of `search_peers`."""

VARIANTS = {"nars": {}}
"""Settings of `run_nars` by the name of the searcher."""


def run_nars(task, trainings, seed, **settings):
    """Run a search of the task with at most this many full trainings' epochs; return its `Evaluation`s."""
    raise NotImplementedError
