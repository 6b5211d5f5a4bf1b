"""A search whose evaluations take no time: it proposes as the trial runner does, but keeps trials in memory."""

from dataclasses import replace

from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.settings.search_settings import parse_settings
from fbnetv3.nars.trials.history import visible_history
from fbnetv3.nars.trials.trial_store import COMPLETED, FAILED, WAITING, Segment, Trial


def run_proposals(space, measure, continues=False, max_segments=1000, **keywords):
    """Return the trials.

    `measure(values, epochs)` returns a learning curve, or None if the evaluation fails.
    """
    settings = parse_settings({"window": 1, **keywords})
    proposer = SearchPlan(space, settings).build_proposer(continues)
    trials = []
    number = 0
    while number < max_segments:
        history = visible_history(trials, settings.epochs, proposer.num_required(number))
        proposals = proposer.propose(history)
        if not proposals:
            break
        for proposal in proposals:
            trial = _find_or_add(trials, proposal, space)
            segment = make_segment(number, trial.number, proposal.epochs, WAITING, proposal.state)
            number += 1
            curve = measure(trial.values, proposal.epochs)
            segment = replace(segment, status=FAILED if curve is None else COMPLETED)
            trials[trial.number] = replace(
                trial,
                curve=trial.curve if curve is None else tuple(curve),
                segments=(*trial.segments, segment),
            )
    return trials


def make_segment(number, trial, epochs, status, state=None):
    return Segment(number, trial, epochs, status, 1, None, 0.0, None, state or {})


def _find_or_add(trials, proposal, space):
    if proposal.candidate is None:
        return trials[proposal.trial]
    trials.append(
        Trial(
            number=len(trials),
            phase=proposal.phase,
            round=proposal.round,
            budget=proposal.budget,
            candidate=proposal.candidate,
            values=space.decode(proposal.candidate),
            predicted=proposal.predicted,
            predicted_std=proposal.predicted_std,
            curve=(),
            segments=(),
        )
    )
    return trials[-1]


def candidates_of(trials):
    return [tuple(trial.candidate.tolist()) for trial in trials]


def spent_epochs(trials, continues):
    """Count the epochs that were trained, one segment after another."""
    total = 0
    for trial in trials:
        reached = 0
        for segment in trial.segments:
            total += segment.epochs - (reached if continues else 0)
            reached = segment.epochs
    return total
