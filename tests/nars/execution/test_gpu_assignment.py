"""GPUs of workers: whole ones, shares, and too few."""

import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.execution.gpu_assignment import assign_gpus

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
