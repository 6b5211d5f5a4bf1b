"""A small space, learning curves, and settings with which a search takes seconds."""

import contextlib
import json
from pathlib import Path

import numpy as np

from fbnetv3.nars.space.search_space import space_from_dict
from fbnetv3.nars.trials.trial_store import TrialStore

ROOT = Path(__file__).resolve().parents[2]
SPACE = space_from_dict(
    {
        "name": "toy",
        "variables": {f"x{i}": {"range": [0, 7]} for i in range(4)}
        | {"kind": {"choices": ["a", "b", "c"]}, "lr": {"range": [1, 9], "part": "recipe"}},
    }
)
FAST = {"members": 4, "width": 32, "pretrain_epochs": 5, "frozen_epochs": 20, "finetune_epochs": 20}
# 30 full evaluations each: one after another, and in the rounds of Algorithm 1
_SHARED = {"epochs": 6, "pool_size": 400, "predictor": FAST, "executor": "serial"}
QUICK = {**_SHARED, "evaluations": 30, "window": 1}
PAPER_QUICK = {**_SHARED, "paper": True, "rounds": 3, "round_size": 10}


def accuracy(candidate):
    bumps = sum((candidate[f"x{i}"] - 5) ** 2 for i in range(4)) / 10
    return 90 - bumps - (candidate["lr"] - 3) ** 2 / 5 + {"a": 0, "b": 2, "c": 1}[candidate["kind"]]


def evaluate(candidate, epochs):
    """Return deterministic learning curves that cross in the first epochs."""
    noise = np.random.default_rng(candidate.vector.tolist()).normal(0, [9, 3, 0.5, 0, 0, 0])
    return [accuracy(candidate) * (1 - 0.5**epoch) + noise[epoch - 1] for epoch in range(1, epochs + 1)]


def constant(candidate, epochs):
    return [0.5] * epochs


def spent(candidates):
    """Compute the cost column of candidates, (N, variables)."""
    return candidates[:, :4].sum(1)


def outcome(folder):
    """Return the trials, with their segments, and recommendations in a search's folder, without times."""
    with contextlib.closing(TrialStore(Path(folder))) as store:
        trials = [
            {
                **vars(trial),
                "candidate": trial.candidate.tolist(),
                "segments": [
                    (segment.number, segment.epochs, segment.status) for segment in trial.segments
                ],
            }
            for trial in store.trials()
        ]
    recommendations = [
        json.loads(path.read_text()) for path in sorted(Path(folder).glob("recommendations/*.json"))
    ]
    return trials, recommendations
