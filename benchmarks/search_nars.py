"""NARS as a searcher of the search benchmark: the same interface as the searchers of `search_peers`."""

import tempfile

from search_peers import Evaluation

from fbnetv3.nars.algorithm.ask_tell import Search

VARIANTS = {
    "nars": {},
    "nars_full": {"early_stopping": False},
    "nars_window4": {"window": 4},
}
"""Settings of `run_nars` by the name of the searcher."""


def run_nars(task, trainings, seed, window=1, **settings):
    """Run a search of the task with at most this many full trainings' epochs; return its `Evaluation`s.

    With a `window` of more than one, so many candidates are asked for before the oldest of them is told.
    """
    evaluations = []
    reached = {}
    spent = 0
    with tempfile.TemporaryDirectory() as folder:
        search = Search(
            task.space,
            folder,
            epochs=task.epochs,
            evaluations=trainings,
            seed=seed,
            columns=task.columns,
            constraints=task.bounds,
            continues=True,
            **settings,
        )
        running = search.ask(window)
        while running:
            candidate = running.pop(0)
            curve = task.curve(candidate.vector, seed)[: candidate.epochs]
            search.tell(candidate, curve)
            spent += candidate.epochs - reached.get(candidate.number, 0)
            reached[candidate.number] = candidate.epochs
            recommended = None
            if task.noise and candidate.epochs == task.epochs:
                recommended = search.incumbent.candidate
            evaluations.append(
                Evaluation(spent, candidate.vector, curve[-1], candidate.epochs, recommended)
            )
            running += search.ask()
    return evaluations
