"""tools/simulate_search.py as a user runs it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--pool-size", 300, "--round-size", 6, "--rounds", 2, "--epochs", 8)
PAPER_SPACE = ROOT / "configs" / "nars" / "spaces" / "fbnetv3.yaml"
RECORDED = ROOT / "docs" / "searches" / "cifar10_small.sqlite"


def test_one_row_per_cluster_and_mode_and_a_figure(tool, tmp_path):
    figure = tmp_path / "scaling.png"
    run = tool(
        "simulate_search", *SMALL, "--gpus", 2, 8, "--asynchronous", "--repeats", 2, "--figure", figure
    )
    assert run.code == 0, run.err
    assert "12 trials of" in run.out and "10,700 GPU hours with one GPU per trial, calibrated:" in run.out
    assert "8 epochs in round 1, then 6" in run.out
    assert len(re.findall(r"^ +[28] +\d+ +(?:rounds|asynchronous) ", run.out, re.MULTILINE)) == 4
    assert (
        len(re.findall(r"^\d GPUs: -?[\d.]+% less wall time asynchronously$", run.out, re.MULTILINE)) == 2
    )
    assert figure.exists()


def test_a_reliable_gpu_takes_the_calibrated_gpu_hours(tool):
    reliable = ("--failure-rate", 0, "--stragglers", 0, "--startup", 0)
    run = tool("simulate_search", *SMALL, "--gpus", 1, *reliable)
    assert run.code == 0, run.err
    assert re.search(r"1 +1 +rounds +445\.83 +445\.83 to 445\.83 +10,700 +100% +0\.0 +0\.00 +6$", run.out)


def test_a_given_throughput(tool):
    run = tool("simulate_search", *SMALL, "--gpus", 2, "--repeats", 1, "--macs-per-second", "7.66e11")
    assert run.code == 0, run.err
    assert "from the throughput: 7.66e+11 MACs/s" in run.out and "100% of a V100 in float32" in run.out


def test_comparison_with_a_recorded_search(tool):
    space = ROOT / "configs" / "nars" / "spaces" / "cifar10_small.yaml"
    run = tool("simulate_search", "--replay", RECORDED, "--space", space)
    assert run.code == 0, run.err
    assert "times from macs, one rate per round: deviation" in run.out
    assert len(re.findall(r"^ +[123] +\d+ +[12] ", run.out, re.MULTILINE)) == 4
    assert "recorded times: " in run.out


def test_the_papers_space_is_not_that_of_the_recorded_search(tool):
    run = tool("simulate_search", "--replay", RECORDED, "--space", PAPER_SPACE)
    assert run.code == 2
    assert "fbnetv3.yaml: has 37 variables, but the recorded candidates 26: pass the space" in run.err


def test_bounds_for_another_space(tool):
    space = (
        "--space",
        ROOT / "configs" / "nars" / "spaces" / "cifar10_small.yaml",
        "--macs",
        "8e5",
        "2.5e6",
    )
    run = tool("simulate_search", *SMALL, "--gpus", 2, "--repeats", 1, *space)
    assert run.code == 0, run.err
    assert "12 trials of 2 to 2 M MACs" in run.out


def test_a_missing_search(tool):
    run = tool("simulate_search", "--replay", "none.sqlite")
    assert run.code in (1, 2) and run.err.count("\n") == 1
    assert "none.sqlite: cannot be read" in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", 0], "gpus: 0 must be at least 1"),
        (["--gpus", 4, "--gpus-per-trial", 8], "gpus_per_trial: 8 must be in [1, 4]"),
        (["--gpus-per-trial", "some"], "--gpus-per-trial: 'some' must be auto or a positive integer"),
        (["--failure-rate", -1], "failure_rate: -1.0 must be at least 0"),
        (["--stopping-epoch", 9], "stopping_epoch: 9 must be in [1, 8]"),
        (["--stopping-epoch", 0], "stopping_epoch: 0 must be in [1, 8]"),
        (["--repeats", 0], "--repeats: 0 must be at least 1"),
        (["--retries", -1], "retries: -1 must be at least 0"),
        (["--costly-fraction", 0.001], "costly_fraction: 0.001 leaves 1 candidates"),
        (["--time-column", "time"], "argument --time-column: invalid choice"),
        (["--max-in-flight", 3], "--max-in-flight needs --asynchronous"),
        (["--replay", RECORDED], "--pool-size has no effect with --replay"),
        (["--space", "none.yaml"], "none.yaml"),
    ],
)
def test_invalid_calls_print_one_line(arguments, message, tool):
    run = tool("simulate_search", *SMALL, *arguments)
    assert run.code in (1, 2)
    assert message in run.err
    assert len(run.err.splitlines()) == 1
