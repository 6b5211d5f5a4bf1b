"""Workloads of an ImageNet search have the paper's GPU hours, or follow from a throughput."""

import numpy as np
import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.simulation.imagenet_workload import (
    PAPER_GPU_HOURS,
    TRAINING_IMAGES,
    V100_MACS_PER_SECOND,
    build_imagenet_workload,
    draw_trials,
)

COSTS = {
    "macs": np.linspace(400e6, 800e6, 1000)[::-1].copy(),
    "params": np.full(1000, 10_000_000),
    "activations": np.linspace(1e6, 9e6, 1000),
}
SETTINGS = SearchSettings(paper=True, round_size=10, epochs=20)


@pytest.mark.parametrize("column", ["macs", "activations"])
def test_calibration_reproduces_the_papers_gpu_hours(column):
    """10.7 K GPU hours (Table 4), with epochs proportional to the chosen cost column."""
    trials = build_imagenet_workload(COSTS, SETTINGS, 5, 15, time_column=column)
    assert trials.workload.gpu_seconds / 3600 == pytest.approx(PAPER_GPU_HOURS)
    ratios = np.array(trials.workload.rounds) / COSTS[column][draw_trials(COSTS["macs"], 5, 10)]
    assert np.ptp(ratios) < 1e-9 * ratios.max()


def test_a_given_throughput_sets_the_time_of_an_epoch():
    trials = build_imagenet_workload(COSTS, SETTINGS, 1, 20, macs_per_second=V100_MACS_PER_SECOND)
    passes = 3 * TRAINING_IMAGES + 10_000
    np.testing.assert_allclose(
        trials.workload.rounds[0], passes * COSTS["macs"][:10] / V100_MACS_PER_SECOND
    )
    assert trials.images_per_second == pytest.approx(655 * 390e6 / COSTS["macs"][:10].mean())


def test_number_of_training_images_of_section_4():
    assert TRAINING_IMAGES == 246_233


def test_later_rounds_can_be_drawn_from_the_costliest_candidates():
    trials = draw_trials(COSTS["macs"], 3, 10, costly_fraction=0.05, seed=1)
    assert (trials[0] == np.arange(10)).all()
    assert len(set(trials.ravel())) == 30
    assert trials[1:].max() < 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: draw_trials(COSTS["macs"], 5, 1000),
            "costly_fraction: 1 leaves 0 candidates for 4000 trials after the first round",
        ),
        (
            lambda: draw_trials(COSTS["macs"], 5, 10, costly_fraction=0.01),
            "costly_fraction: 0.01 leaves 0 candidates for 40 trials",
        ),
        (
            lambda: draw_trials(COSTS["macs"], 5, 10, costly_fraction=2.0),
            r"costly_fraction: 2.0 must be in \[0, 1\]",
        ),
        (
            lambda: build_imagenet_workload(COSTS, SETTINGS, 5, 15, gpu_hours=0),
            "gpu_hours: 0 must be a positive number",
        ),
    ],
)
def test_invalid_arguments_are_named(call, message):
    with pytest.raises(UsageError, match=message):
        call()
