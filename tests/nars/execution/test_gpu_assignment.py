"""GPUs of workers: whole ones, shares, and too few."""

import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.execution.gpu_assignment import assign_gpus, gpus_per_trial, largest_share

FOUR = ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("workers", "num_gpus", "expected"),
    [
        (4, 1, ["0", "1", "2", "3"]),
        (2, 1.0, ["0", "1"]),
        (2, 2, ["0,1", "2,3"]),
        (1, 3, ["0,1,2"]),
        (6, 0.5, ["0", "1", "2", "3", "0", "1"]),  # spread over all GPUs
        (12, 1 / 3, FOUR * 3),
        (12, 0.33, FOUR * 3),
        (4, 0.6, FOUR),  # two do not fit on one GPU
        (2, 0, ["", ""]),  # no GPU is visible
    ],
)
def test_gpus_of_workers(workers, num_gpus, expected):
    assert assign_gpus(workers, num_gpus, FOUR) == expected


@pytest.mark.parametrize(
    ("workers", "num_gpus", "gpus", "error"),
    [
        (
            5,
            1,
            FOUR,
            r"5 workers .* do not fit on 4 visible GPUs \(0, 1, 2, 3\): set workers to 4 at most",
        ),
        (2, 3, FOUR, "set workers to 1 at most"),
        (5, 0.6, FOUR, "set workers to 4 at most"),
        (1, 8, FOUR, "set resources.num_gpus to 0"),
        (1, 0.5, [], r"0 visible GPUs \(none\): set resources.num_gpus to 0"),
        (1, 1.5, FOUR, "resources.num_gpus: 1.5 must be an integer, or less than 1"),
    ],
)
def test_too_few_gpus(workers, num_gpus, gpus, error):
    with pytest.raises(UsageError, match=error):
        assign_gpus(workers, num_gpus, gpus)


@pytest.mark.parametrize(
    ("trial_device", "num_gpus", "workers", "gpus", "expected"),
    [
        ("auto", None, 8, 8, 1),
        ("auto", None, 2, 8, 1),  # a training run uses one GPU
        ("cuda", None, 4, 1, 0.25),
        ("auto", None, 12, 8, 0.5),  # two per GPU, on some only one
        ("auto", None, 4, 0, 0),
        ("auto", 2, 4, 8, 2),
        ("auto", 0, 4, 8, 0),
        ("cpu", None, 4, 8, 0),
        (None, None, 4, 8, None),  # the evaluator itself chooses
        (None, 0.5, 4, 8, 0.5),
        ("mps", None, 1, 0, None),
    ],
)
def test_gpus_of_a_trial(trial_device, num_gpus, workers, gpus, expected):
    assert gpus_per_trial(trial_device, num_gpus, workers, gpus) == expected


@pytest.mark.parametrize("workers", range(1, 100))
def test_all_workers_fit_with_the_default_share(workers):
    for gpus in (1, 3, 8):
        share = largest_share(workers, gpus)
        assert len(assign_gpus(workers, share, [str(gpu) for gpu in range(gpus)])) == workers
        # On Ray, too, which counts in steps of 1/10,000
        assert -(-workers // gpus) * round(share * 10_000) <= 10_000


@pytest.mark.parametrize(
    ("trial_device", "num_gpus", "gpus", "error"),
    [
        ("cuda", None, 0, "DEVICE cuda: there is no GPU for the trials: set it to auto or cpu"),
        ("cuda", 0, 4, "resources.num_gpus is 0, but DEVICE is cuda: give the trials GPUs"),
        ("cuda:1", None, 4, "DEVICE cuda:1: a search assigns the GPUs .* set it to cuda, and CUDA_VISIBLE"),
        ("auto", -1, 4, "resources.num_gpus"),
    ],
)
def test_devices_that_trials_cannot_have(trial_device, num_gpus, gpus, error):
    with pytest.raises(UsageError, match=error):
        gpus_per_trial(trial_device, num_gpus, 1, gpus)
