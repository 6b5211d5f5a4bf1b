"""Time from the submission of a trial to its first step, in a worker that has run trials before. Goal: at most 0.5 s.

The trials, which end after this step, train networks of configs/nars/spaces/cifar10_small.yaml on handwritten digits.
"""

import argparse
import statistics
import tempfile
import time
from functools import wraps
from pathlib import Path

import numpy as np
from measure import report_value

from fbnetv3.arch import configs_folder
from fbnetv3.nars.evaluators import training_evaluator
from fbnetv3.nars.execution.attempts import SearchContext, TrialAttempt
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.space.search_space import load_space
from fbnetv3.training import Trainer, builders, classifier_run
from fbnetv3.training.run_state.run_folder import RunFolder

STEP = "first step"
PARTS = {
    "config": (training_evaluator, "load_config"),
    "datasets": (builders, "dataset_from_config"),
    "fingerprints of the datasets": (classifier_run, "data_fingerprint"),
    "network": (classifier_run, "build_model"),
    "run folder": (RunFolder, "prepare"),
    STEP: (Trainer, "step"),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=12, metavar="N", help="at least 2 (default: 12)")
    parser.add_argument("--config", default=str(configs_folder() / "digits" / "fbnetv3_digits.yaml"))
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config keys, as in tools/train_net.py"
    )
    args = parser.parse_args()
    overrides = dict(zip(args.overrides[::2], args.overrides[1::2], strict=True))
    totals, parts = measure_starts(args.config, overrides, args.trials)
    print(f"{'ms':32} {'first trial':>12} {'others, median':>15}")
    for name, seconds in {**parts, "in all": totals}.items():
        print(f"{name:32} {1e3 * seconds[0]:12.1f} {1e3 * statistics.median(seconds[1:]):15.1f}")
    starts = [total - step for total, step in zip(totals, parts[STEP], strict=True)]
    start = statistics.median(starts[1:])
    report_value(
        "start of a trial, before its first step", start, 0.5, f"{start:.3f} s", lower_is_better=True
    )


def measure_starts(config, overrides, trials):
    """Run trials one after another in one worker, and return the seconds until each first step, in all and by part."""
    space = load_space(configs_folder() / "nars" / "spaces" / "cifar10_small.yaml")
    candidates = np.random.default_rng(0).integers(
        0, [len(variable) for variable in space.variables], (trials, len(space))
    )
    totals, parts = [], {name: [] for name in (*PARTS, "everything else")}
    context = SearchContext(space, StartOfTraining(config, overrides))
    epochs = len(PARTS) + 1  # a value for each part, and the time of the first step
    with tempfile.TemporaryDirectory() as folder:
        options = ExecutorOptions(logs=Path(folder) / "logs")
        with open_executor("local", context, options) as executor:
            for number, candidate in enumerate(candidates):
                trial = Path(folder) / str(number)
                trial.mkdir()
                start = time.monotonic()
                executor.submit(TrialAttempt(number, number, candidate, epochs, epochs, number, trial))
                (outcome,) = executor.wait(600)
                if outcome.curve is None:
                    raise SystemExit(outcome.error)
                *seconds, end = outcome.curve
                totals.append(end - start)
                for values, value in zip(
                    parts.values(), [*seconds, end - start - sum(seconds)], strict=True
                ):
                    values.append(value)
    return totals, parts


class TrialEndedError(Exception):
    """Ends a trial."""


class StartOfTraining(training_evaluator.TrainingEvaluator):
    """Trains a candidate for one step, and returns the seconds of each part and the time on the monotonic clock."""

    def __call__(self, candidate, epochs):
        seconds = dict.fromkeys(PARTS, 0.0)
        originals = {name: getattr(*place) for name, place in PARTS.items()}
        for name, (owner, attribute) in PARTS.items():
            setattr(owner, attribute, timed(originals[name], seconds, name))
        try:
            super().__call__(candidate, epochs)
        except TrialEndedError:
            return [*seconds.values(), time.monotonic()]
        finally:
            for name, (owner, attribute) in PARTS.items():
                setattr(owner, attribute, originals[name])
        raise AssertionError("a trial has at least one step")


def timed(function, seconds, name):
    """Wrap a function to add its time to a part; the first step ends the trial."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        start = time.monotonic()
        result = function(*args, **kwargs)
        seconds[name] += time.monotonic() - start
        if name == STEP:
            raise TrialEndedError
        return result

    return wrapper


if __name__ == "__main__":
    main()
